"""Compare what was tried on the first batches of a stage with the loss, and say what to count.

Only here does the host wait for the device, and only on these batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pplmon.doctor import (
    Finding,
    Loss,
    Measured,
    Observation,
    Run,
    TokenSet,
    alignment,
    decide,
    fitting,
    judge,
    measure,
)
from pplmon.doctor.hypotheses import AS_IT_SHOULD_BE
from pplmon.trainers.capture.choose import Call, Chosen
from pplmon.trainers.capture.sources.source import Found

BATCHES = 3  # that have to agree
TOLD_ELSEWHERE = {"not_logits", "outside_vocabulary", "nonfinite"}  # by a warning, an error and an alert of their own


@dataclass
class Heard:
    """A call of one batch: what was measured of it, and the loss that it made by itself."""

    call: Call
    measured: Measured
    shift: bool  # as it is counted if no loss says otherwise
    stated: bool
    rank: int
    loss: Loss | None
    items: float | None


@dataclass
class Batch:
    """The calls of one batch, and the loss that its step returned, not divided by the accumulation."""

    heard: list[Heard] = field(default_factory=list)
    loss: Loss | None = None


@dataclass(frozen=True)
class Verdict:
    """The calls and the shift to count, and the reason."""

    chosen: Chosen
    default: Chosen
    equals: float | None = None  # the loss that it equals
    shown: float = math.nan  # the cross-entropy of what is chosen, in nats
    told: tuple[Finding, ...] = ()
    others: tuple[str, ...] = ()  # calls of the same batch that could as well be meant
    is_sure: bool = False  # no other shift gives the loss

    @property
    def departs(self) -> bool:
        """Tell whether this is not what would be counted without a loss."""
        return self.chosen != self.default


def hear(call: Call, found: Found, shift: bool, data: dict[str, Any], ignore_index: int | None) -> Heard | None:
    """Measure what a call gave under every shift; ``None`` where that cannot be done."""
    logits, targets = found.logits, found.targets
    if type(logits) is not Tensor and type(logits) is not torch.nn.Parameter:
        return None
    if "vocab_shard" in data or not targets.numel() or tuple(targets.shape) != tuple(logits.shape[:-1]):
        return None
    mask, ignored = data.get("mask"), -100 if ignore_index is None else ignore_index
    targets = targets.detach().to(logits.device)
    if mask is not None:
        targets = torch.where(mask.to(logits.device), targets, ignored)
    ids = _alike(found.input_ids, targets)
    seen = _alike(found.attention_mask, targets)
    measured = measure(logits, targets, shift and logits.dim() == 3, ids, seen, ignored)
    loss = None if found.loss is None else Loss.of(found.loss)
    return Heard(call, measured, shift, found.stated or logits.dim() == 2, found.rank, loss, found.items)


def weigh(batches: Sequence[Batch], order: Sequence[Any], ranks: int = 1) -> Verdict | None:
    """Return what to count by these batches of one stage; ``None`` where nothing was heard in all of them.

    ``order`` are the sources, the preferred first.
    """
    batches = [batch for batch in batches if batch.heard]
    if not batches:
        return None
    calls = [heard.call for heard in sorted(batches[0].heard, key=lambda h: (order.index(h.call.source), h.rank))]
    by_call = {call: [h for batch in batches for h in batch.heard if h.call == call] for call in calls}
    by_call = {call: all_heard for call, all_heard in by_call.items() if len(all_heard) == len(batches)}
    if not by_call:
        return None
    first = next(iter(by_call))
    counted = [call for call in by_call if call.source is first.source and call.name == first.name]
    several = len(counted) > 1
    default = Chosen(first.source, first.name, 0 if several and first.source.one_call else None)
    others = tuple(dict.fromkeys(_words(call, several) for call in by_call if _rival(call, first, by_call)))
    steps = [batch.loss for batch in batches]
    said = several and first.source.explicit  # the user shows each of them: all are meant
    if all(loss is not None for loss in steps) and not said:
        for call, heard in by_call.items():
            fit = _fit(heard, steps, ranks)
            if fit is not None:
                number = call.number if several and call.name == first.name else None
                return _verdict(Chosen(call.source, call.name, number), default, heard, fit, steps, others)
    own = [h for call, all_heard in by_call.items() if default.has(call) for h in all_heard]
    losses = [h.loss for h in own]
    if all(loss is not None for loss in losses):
        fit = _fit(own, losses, ranks)
        if fit is not None:
            return _verdict(default, default, own, fit, losses, others)
    elif not any(losses) and not any(steps) and not own[0].stated:
        fit = _by_ids(own)
        if fit is not None:
            return _verdict(default, default, own, fit, None, others)
    told = () if others else findings(own, steps, ranks)
    return Verdict(default, default, shown=_mean(own, own[0].shift), told=told, others=others)


def _rival(call: Call, first: Call, by_call: Mapping[Call, Sequence[Heard]]) -> bool:
    """Tell whether a call could as well be what is meant: of the same source, and learnt from like the first."""
    same = call.source is first.source and not first.source.explicit
    return same and call != first and by_call[call][0].rank == by_call[first][0].rank


def _words(call: Call, several: bool) -> str:
    return f"{call.name} (call {call.number + 1})" if several else call.name


class Fit(NamedTuple):
    """A shift, and whether it is the only one that gives the loss."""

    shift: bool
    is_sure: bool


def _fit(heard: Sequence[Heard], losses: Sequence[Loss | None], ranks: int) -> Fit | None:
    """Return the shift whose tokens equal the loss in every batch; ``None`` where none does, or several others do."""
    seen = [_observation(h, loss, ranks) for h, loss in zip(heard, losses)]
    if any(b.loss is None or not math.isfinite(b.loss.value) or not b.facts.count("told") for b in seen):
        return None
    told, decided = TokenSet(int(heard[0].shift)), decide({"": seen})
    if any(h.tokens == told and h.factor == "" and h.reduction in AS_IT_SHOULD_BE for h in fitting(seen)):
        return Fit(heard[0].shift, decided is not None)
    if heard[0].stated or decided is None or decided[1].shift not in (0, 1) or decided[1].scored != told.scored:
        return None
    return Fit(bool(decided[1].shift), True)


def _by_ids(heard: Sequence[Heard]) -> Fit | None:
    """Return the shift that the ids tell which a causal model read; ``None`` where they do not."""
    found = alignment([h.measured.facts() for h in heard])
    return Fit(bool(1 - found), True) if found in (0, 1) else None


def _verdict(
    chosen: Chosen,
    default: Chosen,
    heard: Sequence[Heard],
    fit: Fit,
    losses: Sequence[Loss | None] | None,
    others: tuple[str, ...],
) -> Verdict:
    if fit.shift != heard[0].shift:
        chosen = Chosen(chosen.source, chosen.name, chosen.number, fit.shift)
    equals = None if losses is None else sum(loss.value for loss in losses if loss is not None) / len(losses)
    return Verdict(chosen, default, equals, _mean(heard, fit.shift), others=others, is_sure=fit.is_sure)


def findings(heard: Sequence[Heard], losses: Sequence[Loss | None], ranks: int) -> tuple[Finding, ...]:
    """Return what does not agree in these calls, one of each batch."""
    if len(heard) != len(losses):
        return ()
    found = judge([_observation(h, loss, ranks) for h, loss in zip(heard, losses)])
    wanted = set() if heard[0].stated else {"target_leakage"}  # the default of a masked model is no mistake
    return tuple(finding for finding in found if finding.kind not in TOLD_ELSEWHERE | wanted)


def _observation(heard: Heard, loss: Loss | None, ranks: int) -> Observation:
    facts = heard.measured.facts()
    return Observation(facts, loss, Run(ranks=ranks, items=heard.items), heard.measured)


def _mean(heard: Iterable[Heard], shift: bool) -> float:
    sums = [h.measured.facts().sums[TokenSet(int(shift))] for h in heard]
    tokens = sum(s.tokens for s in sums)
    return sum(s.nll for s in sums) / tokens if tokens else math.nan


def _alike(given: Tensor | None, targets: Tensor) -> Tensor | None:
    usable = isinstance(given, Tensor) and given.shape == targets.shape and not given.is_floating_point()
    return given if usable else None
