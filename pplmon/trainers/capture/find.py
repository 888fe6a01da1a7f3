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
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pplmon.doctor.overwritten import Overwritten
from pplmon.measure.tokens import TokenStats
from pplmon.report import layout
from pplmon.tally import TokenTally
from pplmon.trainers.capture.batch import Targets, data_of, first_tensor, targets_of
from pplmon.trainers.capture.chunked_head import Pieces
from pplmon.trainers.capture.help_text import nothing_found
from pplmon.trainers.capture.modules import fitted, hugging_face_model, labels_given, logits_in, shifts_labels
from pplmon.trainers.capture.observe import keep_out_of_graphs

Logits = str | Callable[[Any, Any], Tensor]

OBSERVE, CONFIGURED, RETURNED, HUGGING_FACE = range(1, 5)


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
        self._pieces = Pieces()
        self._whole: Callable[[], None] | None = None  # counts the pieces, if no whole call comes
        self._excuse: Exception | None = None  # why a way that was tried on the first batch failed
        self._leave_out: int | None = None
        self.left_out: Tensor | None = None  # on the device: the repeated sequence was masked in this batch
        self._warned: set[str] = set()
        self._overwritten = Overwritten()

    # Hooks.

    def attach(self, module: nn.Module) -> None:
        """Set the hooks. It has to happen before the module's first compiled call."""
        self.detach()
        self._module = module
        keep_out_of_graphs()
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
                self._try(self._take_call, module, args, kwargs, output, way)

        self._hooked = way
        # A measurement is not part of the user's graph.
        eager = torch.compiler.disable(take)  # type: ignore[no-untyped-call]
        self._hooks.append(target.register_forward_hook(eager, with_kwargs=True))

    # A stage, and its batches.

    def open(self, stage: str, tally: TokenTally, leave_out: int | None = None) -> None:
        """Listen, and count in ``tally``, but for a last sequence of the batch whose sample id is ``leave_out``."""
        self._stage, self._tally, self._leave_out = stage, tally, leave_out
        self.left_out = None

    def close(self) -> None:
        """Stop listening."""
        self._stage, self._tally, self._batch = None, None, None
        self._trials, self._pieces = {}, Pieces()

    def batch(self, batch: Any, step: int, micro_batch: int) -> None:
        """A new batch begins."""
        self._batch = batch
        self._address = {"step": step, "micro_batch": min(micro_batch, 2**layout.MICRO_BITS - 1)}
        self._pieces, self._whole = Pieces(), None

    def end_batch(self, outputs: Any) -> None:
        """The step is over: look at what it returned, and after the first batch choose the way."""
        if self._stage is None:
            return
        chosen = self._chosen.get(self._stage)
        if chosen != OBSERVE:
            self._look_at(outputs, chosen)

    @torch.no_grad()
    def _look_at(self, outputs: Any, chosen: int | None) -> None:
        if chosen in (None, CONFIGURED) and self._logits is not None and self._hooked != CONFIGURED:
            self._try(self._take_configured, outputs)
        if chosen in (None, RETURNED) and self._logits is None:
            self._try(self._take_returned, outputs)
        if self._whole is not None:
            self._whole()
        elif self._pieces.begun:
            self._warn("pieces", "a hooked module gave logits for a part of the targets only; they are not counted")
        self._pieces, self._whole, self._batch = Pieces(), None, None
        if chosen is None:
            self._choose()

    def observe(
        self, logits: Tensor | TokenStats, targets: Tensor | None = None, shift: bool | None = None, **data: Any
    ) -> None:
        """Way 1: the module's own words. Does nothing outside a stage."""
        if self._stage is None:
            return
        if isinstance(logits, TokenStats):
            found = self._data(logits.targets.view(logits.batch_shape))
            found.pop("mask", None)  # the stats were masked when they were made
        elif targets is not None:
            found = self._data(targets)
        else:
            raise TypeError("pplmon.observe needs targets beside logits; only TokenStats come without")
        self._count(OBSERVE, logits, targets, self._shift if shift is None else shift, {**found, **data})

    def _choose(self) -> None:
        assert self._stage is not None and self._tally is not None
        trials, self._trials = self._trials, {}
        if trials:
            way = min(trials)
            self._chosen[self._stage] = way
            self._tally.merge_state(trials[way])
            return
        excuse, self._excuse = self._excuse, None
        if self._stage == "train" and excuse is not None:
            raise excuse
        text = nothing_found(self._stage, self._module, self._logits, hooked=bool(self._hooked))
        if self._stage == "train":
            raise ValueError(text)
        self._warn(f"none in {self._stage}", text if excuse is None else f"{text}\n{excuse}")

    def _try(self, take: Callable[..., None], *args: Any) -> None:
        """Take one way. What fails on the first batch may be a way that nobody meant; later it is one odd batch."""
        try:
            take(*args)
        except (TypeError, ValueError) as error:
            if self._stage in self._chosen:
                self._warn("odd batch", f"{error}; this batch is not counted")
            elif self._excuse is None:
                self._excuse = error

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
        if shift is None and way == HUGGING_FACE:
            shift = shifts_labels(module)
        fit = fitted(logits, targets)
        if fit is not None:
            self._pieces.refuse()
            self._whole = None
            self._count(way, fit, targets, shift, self._data(targets))
        elif not self._take_piece(way, logits, targets, shift):
            self._warn(
                "shape",
                f"a call of {type(module).__name__} gave logits {tuple(logits.shape)}, which do not fit targets "
                f"{tuple(targets.shape)}; it is not counted (generation?)",
            )

    def _take_piece(self, way: int, logits: Tensor, targets: Tensor, shift: bool | None) -> bool:
        """Keep what a head gives that is applied to chunks of positions, to count it when all are there."""
        columns = self._pieces.columns_of(logits, targets)
        if columns is None:
            return False
        assert self._stage is not None and self._tally is not None
        if self._chosen.get(self._stage, way) != way:
            return True
        shift = self._tally.shift if shift is None else shift
        data = self._without_repeated(self._data(targets), targets)
        whole = self._pieces.measure(logits, columns, targets, data.pop("mask", None), shift, self._tally)
        if whole is not None:
            self._whole = partial(self._count, way, whole, None, None, data)
        return True

    def _take_configured(self, outputs: Any) -> None:
        given = outputs if isinstance(outputs, Mapping) else {}
        logits = self._logits(outputs, self._batch) if callable(self._logits) else given.get(self._logits)
        if logits is not None:
            self._take_pair(CONFIGURED, logits, given)

    def _take_returned(self, outputs: Any) -> None:
        """Needs both halves: a returned Hugging Face output has logits alone, and its model knows about the shift."""
        if not isinstance(outputs, Mapping) or not isinstance(outputs.get("logits"), Tensor):
            return
        if self._targets is not None or first_tensor(outputs) is not None:
            self._take_pair(RETURNED, outputs["logits"], outputs)

    def _take_pair(self, way: int, logits: Tensor, outputs: Mapping[str, Any]) -> None:
        """Targets come from the batch where they were named, else from beside the logits, else from the batch."""
        targets = first_tensor(outputs) if self._targets is None else None
        if targets is None:
            targets = targets_of(self._batch, self._targets)
        if targets is not None:
            fit = fitted(logits, targets)
            self._count(way, logits if fit is None else fit, targets, self._shift, self._data(targets))

    def _count(self, way: int, logits: Any, targets: Tensor | None, shift: bool | None, data: dict[str, Any]) -> None:
        tally = self._target_tally(way)
        if tally is None:
            return
        usual, shift = tally.shift, tally.shift if shift is None else shift
        if shift != usual:  # setting an attribute of a Metric is slow
            tally.shift = shift
        try:
            tally.update(logits, targets, **(data if targets is None else self._without_repeated(data, targets)))
        except Exception:
            self._trials.pop(way, None)  # a way that fails on the first batch has found nothing
            raise
        finally:
            if shift != usual:
                tally.shift = usual
        chosen = "train" in self._chosen  # before that, several ways are tried on one batch
        if self._stage == "train" and chosen and isinstance(logits, Tensor) and targets is not None:
            self._overwritten.look(logits, targets, tally.ignore_index, shift)

    def _target_tally(self, way: int) -> TokenTally | None:
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
        return tally

    def _data(self, targets: Tensor) -> dict[str, Any]:
        """What else the batch says of its tokens, for ``TokenTally.update``."""
        found: dict[str, Any] = dict(self._address)
        whole = self._tally is None or not self._tally.context_parallel
        for name, value, complaint in data_of(self._batch, targets):
            if name == "position_ids" and whole:
                continue  # in a packed batch they begin anew with each document; the column tells more
            if complaint is None:
                found[name] = value
            else:
                self._warn(name, complaint)
        return found

    def _without_repeated(self, data: dict[str, Any], targets: Tensor) -> dict[str, Any]:
        """Mask the sequence that a sampler gave a second time, where ``sample_ids`` say that it is the dataset's row."""
        samples = data.get("sample_ids")
        if samples is None or self._leave_out is None or targets.dim() != 2:
            return data
        last = torch.arange(len(samples), device=targets.device) == len(samples) - 1
        repeated = last & (samples.to(targets.device) == self._leave_out)
        self.left_out = repeated.any()
        kept = ~repeated.unsqueeze(1).expand(targets.shape)
        mask = data.get("mask")
        return {**data, "mask": kept if mask is None else mask.to(targets.device) & kept}

    # Words.

    def _warn(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(f"pplmon: {text}", stacklevel=3)
