"""How logits and targets are found in a user's module without changing it.

Four ways, in this order; the first that gives something on the first batch of a stage is the only one used there:

1. ``pplmon.observe(self, logits, targets)`` in the step;
2. ``logits=`` names a submodule (hooked), a key of the step's output, or is a callable; ``targets=`` a part of the batch;
3. the step returns a dict with ``logits`` and ``labels`` or ``targets``;
4. a Hugging Face model inside the module (hooked), with the ``labels`` it was given.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from pplmon.capture.batch import Targets, data_of, first_tensor, targets_of
from pplmon.capture.modules import fitted, hugging_face_model, labels_given, logits_in, shifts_labels
from pplmon.tally import TokenTally
from pplmon.tokens import TokenStats, shifted, token_stats

Logits = str | Callable[[Any, Any], Tensor]

OBSERVE, CONFIGURED, RETURNED, HUGGING_FACE = range(1, 5)
WAYS = """\
pplmon found no logits and targets in the first {stage} batch. Use one of these:
  1. in the module's step:       pplmon.observe(self, logits, targets)
  2. name them:                  PerplexityMonitor(logits="model.head", targets="labels")
                                 (a submodule's path or a key of the step's output; a key, attribute or index of the batch)
  3. return them from the step:  return {{"loss": loss, "logits": logits, "labels": labels}}
  4. a Hugging Face model that is a submodule of the module and is called with labels=...{hint}"""


class Capture:
    """Finds logits and targets, stage by stage, and counts them in that stage's tally."""

    def __init__(self, logits: Logits | None, targets: Targets | None, shift: bool | None) -> None:
        self._logits, self._targets, self._shift = logits, targets, shift
        self._hooks: list[Any] = []
        self._hooked = 0  # which way the hook serves
        self._module: nn.Module | None = None
        self._chosen: dict[str, int] = {}
        self._stage: str | None = None
        self._tally: TokenTally | None = None
        self._trials: dict[int, TokenTally] = {}
        self._batch: Any = None
        self._address: dict[str, int] = {}
        self._pieces: list[TokenStats] = []
        self._warned: set[str] = set()

    # Hooks.

    def attach(self, module: nn.Module) -> None:
        """Set the hooks. It has to happen before the module's first compiled call."""
        self.detach()
        self._module = module
        _disabled.setdefault(_tell_monitors, torch.compiler.disable(_tell_monitors))  # type: ignore[no-untyped-call]
        if isinstance(self._logits, str):
            target = dict(module.named_modules()).get(self._logits)
            if target is not None:
                self._hook(target, CONFIGURED)
        elif self._logits is None:
            model = hugging_face_model(module)
            if model is not None:
                self._hook(model, HUGGING_FACE)

    def detach(self) -> None:
        """Remove the hooks and forget the stage under way."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._hooked, self._module = [], 0, None
        self.close()

    @property
    def attached(self) -> bool:
        """True between ``attach`` and ``detach``."""
        return self._module is not None

    def _hook(self, target: nn.Module, way: int) -> None:
        def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            # Activation checkpointing runs the forward again during backward; that is no new batch.
            if self._stage is not None and torch._C._current_graph_task_id() == -1:
                self._take_call(module, args, kwargs, output, way)

        self._hooked = way
        # A measurement is not part of the user's graph.
        eager = torch.compiler.disable(take)  # type: ignore[no-untyped-call]
        self._hooks.append(target.register_forward_hook(eager, with_kwargs=True))

    # A stage, and its batches.

    def open(self, stage: str, tally: TokenTally) -> None:
        """Listen, and count in ``tally``."""
        self._stage, self._tally = stage, tally

    def close(self) -> None:
        """Stop listening."""
        self._stage, self._tally, self._batch = None, None, None
        self._trials, self._pieces = {}, []

    def batch(self, batch: Any, step: int, micro_batch: int) -> None:
        """A new batch begins."""
        self._batch = batch
        self._address = {"step": step, "micro_batch": micro_batch}
        self._pieces = []

    @torch.no_grad()
    def end_batch(self, outputs: Any) -> None:
        """The step is over: look at what it returned, and after the first batch choose the way."""
        if self._stage is None:
            return
        chosen = self._chosen.get(self._stage)
        if chosen in (None, CONFIGURED) and self._logits is not None and self._hooked != CONFIGURED:
            self._take_configured(outputs)
        if chosen in (None, RETURNED) and self._logits is None:
            self._take_returned(outputs)
        if self._pieces:
            self._warn("pieces", "a hooked module gave logits for a part of the targets only; they are not counted")
            self._pieces = []
        self._batch = None
        if chosen is None:
            self._choose()

    def observe(self, logits: Tensor, targets: Tensor, shift: bool | None = None, **data: Tensor) -> None:
        """Way 1: the module's own words. Does nothing outside a stage."""
        if self._stage is not None:
            shift = self._shift if shift is None else shift
            self._count(OBSERVE, logits, targets, shift, {**self._data(targets), **data})

    def _choose(self) -> None:
        assert self._stage is not None and self._tally is not None
        trials, self._trials = self._trials, {}
        if trials:
            way = min(trials)
            self._chosen[self._stage] = way
            self._tally.merge_state(trials[way])
            return
        text = WAYS.format(stage=self._stage, hint=self._near())
        if self._stage == "train":
            raise ValueError(text)
        self._warn(f"none in {self._stage}", text)

    # The four ways.

    def _take_call(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any, way: int) -> None:
        labels = labels_given(module, args, kwargs) if way == HUGGING_FACE else None
        if way == HUGGING_FACE and labels is None and self._targets is None:
            return  # called for something else, or for its logits alone
        logits = logits_in(output, has_loss=labels is not None)
        targets = targets_of(self._batch, self._targets) if labels is None else labels
        if logits is None or targets is None:
            return
        shift = self._shift
        if shift is None and labels is not None:
            shift = shifts_labels(module)
        fit = fitted(logits, targets)
        if fit is not None:
            self._count(way, fit, targets, shift, self._data(targets))
        elif not self._take_piece(way, logits, targets, shift):
            self._warn(
                "shape",
                f"a call of {type(module).__name__} gave logits {tuple(logits.shape)}, which do not fit targets "
                f"{tuple(targets.shape)}; it is not counted (generation?)",
            )

    def _take_piece(self, way: int, logits: Tensor, targets: Tensor, shift: bool | None) -> bool:
        """Count a head that is applied to chunks of positions, once all of its pieces are there."""
        if logits.dim() != 3 or targets.dim() != 2 or logits.shape[0] != targets.shape[0]:
            return False
        start = sum(piece.batch_shape[1] for piece in self._pieces)
        stop = start + logits.shape[1]
        if stop > targets.shape[1]:
            return False
        tally = self._target_tally(way, shift)
        if tally is None:
            return True
        data = self._data(targets)
        mask = data.pop("mask", None)
        if tally.shift:
            targets, mask = shifted(targets, mask)
        part = slice(start, stop)
        piece = token_stats(logits, targets[:, part], tally.ignore_index, None if mask is None else mask[:, part])
        self._pieces.append(piece)
        if stop == targets.shape[1]:
            joined, self._pieces = TokenStats.join(self._pieces, shift=tally.shift), []
            tally.update(joined, **data)
        return True

    def _take_configured(self, outputs: Any) -> None:
        given = outputs if isinstance(outputs, Mapping) else {}
        logits = self._logits(outputs, self._batch) if callable(self._logits) else given.get(self._logits)
        if logits is not None:
            self._take_pair(CONFIGURED, logits, given)

    def _take_returned(self, outputs: Any) -> None:
        if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
            self._take_pair(RETURNED, outputs["logits"], outputs)

    def _take_pair(self, way: int, logits: Tensor, outputs: Mapping[str, Any]) -> None:
        """Targets come from the batch where they were named, else from beside the logits, else from the batch."""
        targets = first_tensor(outputs) if self._targets is None else None
        if targets is None:
            targets = targets_of(self._batch, self._targets)
        if targets is not None:
            fit = fitted(logits, targets)
            self._count(way, logits if fit is None else fit, targets, self._shift, self._data(targets))

    def _count(self, way: int, logits: Any, targets: Tensor, shift: bool | None, data: dict[str, Any]) -> None:
        tally = self._target_tally(way, shift)
        if tally is not None:
            tally.update(logits, targets, **data)

    def _target_tally(self, way: int, shift: bool | None) -> TokenTally | None:
        """The tally that this way counts in: the stage's own, once chosen; before that one of its own."""
        assert self._stage is not None and self._tally is not None
        tally: TokenTally | None
        if self._stage in self._chosen:
            tally = self._tally if self._chosen[self._stage] == way else None
        else:
            if way not in self._trials:
                self._trials[way] = self._tally.clone()
                self._trials[way].reset()
            tally = self._trials[way]
        if tally is not None and shift is not None:
            tally.shift = shift
        return tally

    def _data(self, targets: Tensor) -> dict[str, Any]:
        """What else the batch says of its tokens, for ``TokenTally.update``."""
        found: dict[str, Any] = dict(self._address)
        for name, value, complaint in data_of(self._batch, targets):
            if complaint is None:
                found[name] = value
            else:
                self._warn(name, complaint)
        return found

    # Words.

    def _near(self) -> str:
        if not isinstance(self._logits, str) or self._module is None:
            return ""
        names = [name for name, _ in self._module.named_modules() if name]
        near = get_close_matches(self._logits, names, n=3, cutoff=0.3) or names[:5]
        if self._hooked:
            return f"\nThe submodule {self._logits!r} gave no logits that fit the targets."
        return (
            f"\nlogits={self._logits!r} is neither a submodule of {type(self._module).__name__} (nearest: "
            f"{', '.join(near) or 'none'}) nor a key of what the step returned."
        )

    def _warn(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(f"pplmon: {text}", stacklevel=3)


def observe(module: nn.Module, logits: Tensor, targets: Tensor, **data: Any) -> None:
    """Show logits [B, T, V] or [N, V] and targets to the monitors of the module's trainer; does nothing without one.

    ``data`` are what ``TokenTally.update`` takes (mask, document_ids, sample_ids, …) and ``shift``.
    """
    _outside_the_graph(_tell_monitors)(module, logits, targets, data)


def _tell_monitors(module: nn.Module, logits: Tensor, targets: Tensor, data: dict[str, Any]) -> None:
    # A LightningModule raises where it has no trainer, so its private attribute is asked.
    for callback in getattr(getattr(module, "_trainer", None), "callbacks", ()):
        take = getattr(callback, "observe_tokens", None)
        if take is not None:
            take(logits, targets, **data)


_disabled: dict[Callable[..., None], Callable[..., None]] = {}


def _outside_the_graph(function: Callable[..., None]) -> Callable[..., None]:
    """Keep a function out of a compiled step. Known from the first ``attach`` on: importing the compiler takes a second."""
    return _disabled.get(function, function)
