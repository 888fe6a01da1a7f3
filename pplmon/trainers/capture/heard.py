"""Measure what a call gave on a stage's first batches, so that it can be compared with the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pplmon.doctor import Facts, Loss, Measured, Observation, Run, TokenSet, measure
from pplmon.doctor.facts import Sums
from pplmon.measure.tokens import token_stats
from pplmon.monitor.heard import alike
from pplmon.report import layout
from pplmon.trainers.capture.choose import Call
from pplmon.trainers.capture.padding import Unpadded, total, unpadded
from pplmon.trainers.capture.sources.source import Found

USUAL_LSE = 16.0  # of logits that nobody looked at: an amount in nats, for the rounding of sums
_TOKENS, _WHOLE, _FRACTION = map(layout.place, ("tokens", "nll_whole", "nll_fraction"))


@dataclass(frozen=True, eq=False)
class Counted:
    """Losses that cannot be measured anew (``TokenStats``, sharded logits, joined pieces), as a tally counted them."""

    shift: bool  # as it is counted if no loss says otherwise
    before: dict[bool, Tensor]  # a tally's sums, for each shift that was counted
    after: dict[bool, Tensor]

    def facts(self) -> Facts:
        """Return the tokens and their losses as plain numbers. Waits for the device."""
        sums = {TokenSet(int(shift)): self._sums(shift) for shift in self.after}
        told = sums[TokenSet(int(self.shift))].tokens
        return Facts(1, 1, 0, int(self.shift), 0.0, sums, {"told": [told], "lse": [USUAL_LSE]})

    def _sums(self, shift: bool) -> Sums:
        change = [after - before for after, before in zip(self.after[shift].tolist(), self.before[shift].tolist())]
        nan = float("nan")
        nll = change[_WHOLE] + change[_FRACTION] * 2.0**-layout.FRACTION_BITS
        return Sums(change[_TOKENS], nll, nan, nan, 0.0, nan, nan, 0.0)


class Next(NamedTuple):
    """Targets of the batch that go one column further than those that were given: the same, one on."""

    name: str  # the expression that gives them
    values: Tensor  # [3]: whether the given ones are the first of them; tokens; Σ nll of the one-on


@dataclass
class Heard:
    """A call of one batch: what was measured of it, and the loss that it made by itself."""

    call: Call
    measured: Measured | Counted
    shift: bool  # as it is counted if no loss says otherwise
    stated: bool
    rank: int
    loss: Loss | None
    items: Tensor | float | None
    unpadded: Unpadded | None = None  # where nobody said that padding is scored, or is not
    next: Next | None = None
    digest: Tensor | None = None  # [] int64, of the rows
    shared: bool = False  # other ranks hold parts of the logits

    @property
    def is_whole(self) -> bool:
        """True where every candidate was measured, False where losses were only counted."""
        return isinstance(self.measured, Measured)

    @cached_property
    def facts(self) -> Facts:
        """Return what was measured as plain numbers. Waits for the device."""
        return self.measured.facts()

    def without(self, kind: str, shift: bool) -> tuple[float, float] | None:
        """Return the tokens, and the Σ nll, that are left without the padding of one kind."""
        values = None if self.unpadded is None else self.unpadded.sums.get((kind, shift))
        if values is None:
            return None
        tokens, nll = values.tolist()
        return tokens, nll


@dataclass
class Batch:
    """The calls of one batch, and the loss that its step returned, not divided by the accumulation."""

    heard: list[Heard] = field(default_factory=list)
    loss: Loss | None = None
    accumulation: int = 1  # micro-batches of an optimizer step


def observation(heard: Heard, loss: Loss | None, ranks: int, accumulation: int = 1) -> Observation:
    """Return a call of one batch beside a loss."""
    measured = heard.measured if isinstance(heard.measured, Measured) else None
    items = None if heard.items is None else float(heard.items)
    return Observation(heard.facts, loss, Run(accumulation, ranks=ranks, items=items), measured)


def hear(
    call: Call, found: Found, shift: bool, data: Mapping[str, Any], ignore_index: int | None, batch: Any
) -> Heard | None:
    """Measure what a call gave under every shift; ``None`` where that cannot be done."""
    logits, targets = found.logits, found.targets
    if type(logits) is not Tensor and type(logits) is not torch.nn.Parameter:
        return None
    if "vocab_shard" in data or not targets.numel() or tuple(targets.shape) != tuple(logits.shape[:-1]):
        return None
    mask, ignored = data.get("mask"), -100 if ignore_index is None else ignore_index
    targets = targets.detach().to(logits.device)
    one_on = _next(logits.detach(), targets, ignored, batch)
    ids = alike(found.input_ids, targets)
    seen = alike(found.attention_mask, targets)
    measured = measure(logits, targets, shift and logits.dim() == 3, ids, seen, ignored, mask)
    loss = None if found.loss is None else Loss.of(found.loss)
    is_open = mask is None and ignore_index == -100 and targets.dim() == 2
    left = unpadded(measured, mask_of(found, targets, batch)) if is_open else None
    return Heard(call, measured, shift, found.stated or logits.dim() == 2, found.rank, loss, found.items, left, one_on)


def mask_of(found: Found, targets: Tensor, batch: Any) -> Tensor | None:
    """Return the attention mask that goes with these targets: the call's own, else the batch's."""
    own = alike(found.attention_mask, targets)
    if own is not None or not isinstance(batch, Mapping):
        return own
    return alike(batch.get("attention_mask"), targets)


def _next(logits: Tensor, targets: Tensor, ignored: int, batch: Any) -> Next | None:
    """Measure the logits on the batch's own ids, one on, where the given targets are these without the last column."""
    if targets.dim() != 2:
        return None
    rows, columns = targets.shape
    if isinstance(batch, Tensor):
        parts: dict[str, Any] = {"batch": batch}
    elif isinstance(batch, Mapping):
        parts = {f"batch[{name!r}]": part for name, part in batch.items()}
    else:
        parts = {f"batch[{i}]": part for i, part in enumerate(batch)} if isinstance(batch, (list, tuple)) else {}
    for name, part in parts.items():
        usable = isinstance(part, Tensor) and part.shape == (rows, columns + 1)
        if usable and not part.is_floating_point():
            whole = part.to(logits.device)
            stats = token_stats(logits, whole[:, 1:], ignore_index=ignored)
            same = (whole[:, :-1] == targets).all().view(1)
            return Next(name, torch.cat([same, total(stats.scored, stats.nll)]))
    return None
