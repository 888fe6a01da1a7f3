"""Count the calls of a model in a loop of one's own: each is a micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pplmon.measure.outside_graphs import outside_graphs
from pplmon.measure.private_names import graph_task
from pplmon.monitor.evaluation import Pass, check_part
from pplmon.trainers.capture import Targets
from pplmon.trainers.capture.hooks import listen_to
from pplmon.trainers.capture.modules import arguments
from pplmon.trainers.capture.sources.arguments import innermost
from pplmon.trainers.capture.sources.hugging_face import HuggingFace
from pplmon.trainers.session import Session
from pplmon.trainers.settings import Settings

if TYPE_CHECKING:
    from pplmon.monitor import Monitor


class Hook:
    """A session on the monitor of a loop, whose batches are the calls of one module."""

    def __init__(
        self,
        monitor: Monitor,
        model: nn.Module,
        logits: str | None,
        targets: Targets | None,
        shift: bool | None,
        recompute_logits: bool,
    ) -> None:
        module = next(iter(HuggingFace(targets, shift).modules_in(model).values()), None)
        module = innermost(model) if module is None else module
        # The session's own hook is to come between these two.
        begin = module.register_forward_pre_hook(outside_graphs(self._begin), with_kwargs=True)
        given: dict[str, Any] = {"logits": logits, "targets": targets, "shift": shift}
        settings = Settings(**given, recompute_logits=recompute_logits, wire="hook")
        self.session = Session(settings, module, monitor=monitor)
        self._ends = begin, listen_to(module, self._end)
        self._counts = False

    def remove(self) -> None:
        """Leave the model alone."""
        for end in self._ends:
            end.remove()
        self.session.stop_listening()

    def give_up(self) -> None:
        """Leave the model alone after an exception; nothing is sent."""
        self.session.give_up()
        self.remove()

    @contextmanager
    def stage(self, stage: str, loader: Any, part: str | None) -> Iterator[Pass]:
        """Count the calls within as a pass."""
        check_part(part)
        opened = self.session.begin_pass(stage, (loader,), part=part)
        try:
            yield opened
        except BaseException:
            self.session.give_up_pass()
            raise
        self.session.end_pass()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Backward runs a forward again where activations are checkpointed; and a loop may evaluate outside a pass.
        self._counts = graph_task() == -1 and (self.session.in_pass or torch.is_grad_enabled())
        if self._counts:
            self.session.begin_batch(arguments(module, args, kwargs))

    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._counts:
            self.session.end_batch()
