"""Compare what was tried on the first batches of a stage with the loss, and say what to count.

Only here does the host wait for the device, and only on these batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pplmon.doctor import (
    Finding,
    Loss,
    Observation,
    TokenSet,
    alignment,
    decide,
    fitting,
    loss_words,
    tells,
)
from pplmon.doctor.hypotheses import AS_IT_SHOULD_BE
from pplmon.trainers.capture.choose import Call, Chosen
from pplmon.trainers.capture.findings import findings
from pplmon.trainers.capture.heard import Batch, Heard, observation
from pplmon.trainers.capture.joined import Joined, joined
from pplmon.trainers.capture.padding import BY_MASK, KINDS, kind_of


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
    shift: bool | None = None  # that of the calls, where no other is chosen
    divides: bool = False  # the loss is divided by another number of items than the tokens that are chosen

    @property
    def departs(self) -> bool:
        """Tell whether this is not what would be counted without a loss."""
        return self.chosen != self.default


def weigh(batches: Sequence[Batch], order: Sequence[Any], ranks: int = 1) -> Verdict | None:
    """Return what to count by these batches of one stage; ``None`` where nothing was heard in all of them.

    ``order`` are the sources, the preferred first. Logits that several ranks hold parts of are measured by collectives: their
    ranks might not all depart from the default, and would wait for each other for ever. So none does, and the loss only tells.
    """
    verdict = _weigh(batches, order, ranks)
    if verdict is None or not verdict.departs or not any(h.shared for batch in batches for h in batch.heard):
        return verdict
    kept = replace(verdict, chosen=verdict.default, equals=None, is_sure=False)
    heard = [h for batch in batches for h in batch.heard if verdict.chosen.has(h.call)]
    if verdict.chosen.shift is None or verdict.equals is None:
        return kept
    mean = _mean(heard, heard[0].shift)
    finding = loss_words.pplmon_shift(verdict.equals, mean, int(heard[0].shift), int(verdict.chosen.shift))
    return replace(kept, shown=mean, told=(finding,))


def _weigh(batches: Sequence[Batch], order: Sequence[Any], ranks: int) -> Verdict | None:
    batches = [batch for batch in batches if batch.heard]
    if not batches:
        return None
    calls = [heard.call for heard in sorted(batches[0].heard, key=lambda h: (order.index(h.call.source), h.rank))]
    by_call = {call: [h for batch in batches for h in batch.heard if h.call == call] for call in calls}
    by_call = {call: all_heard for call, all_heard in by_call.items() if len(all_heard) == len(batches)}
    first = next(iter(by_call), None)
    if first is None or (first.guess and not all(call.guess for call in calls)):
        return None
    counted = _alike(first, by_call)
    several = len(counted) > 1
    default = Chosen(first.source, first.name, 0 if several and first.source.one_call else None)
    others = tuple(dict.fromkeys(_words(call, several) for call in by_call if _rival(call, first, by_call)))
    steps = [batch.loss for batch in batches]
    if all(loss is not None for loss in steps):
        found = _of_the_step(by_call, default, steps, ranks)
        if found is not None:
            return replace(found, others=others)
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
    told = () if others else findings(own, steps, ranks, batches[0].accumulation)
    return Verdict(default, default, shown=_mean(own, own[0].shift), told=told, others=others, shift=own[0].shift)


def _of_the_step(
    by_call: Mapping[Call, Sequence[Heard]], default: Chosen, steps: Sequence[Loss | None], ranks: int
) -> Verdict | None:
    """Return the call, or the calls of one name together, whose loss the step returned."""
    for lead in by_call:
        group = _alike(lead, by_call)
        if lead is not group[0]:
            continue
        whole = Chosen(lead.source, lead.name)
        if len(group) == 1 or not lead.source.explicit:  # what the user shows call by call is all meant
            for call in group:
                fit = _fit(by_call[call], steps, ranks)
                if fit is not None:
                    chosen = whole if len(group) == 1 else replace(whole, number=call.number)
                    return _verdict(chosen, default, by_call[call], fit, steps)
        together = joined([by_call[call] for call in group], steps) if len(group) > 1 else None
        if together is not None:
            return _of_all(together, whole, default, by_call, steps)
    return None


def _of_all(
    together: Joined,
    whole: Chosen,
    default: Chosen,
    by_call: Mapping[Call, Sequence[Heard]],
    steps: Sequence[Loss | None],
) -> Verdict:
    heard = [h for call, all_heard in by_call.items() if whole.has(call) for h in all_heard]
    if (default.source, default.name, default.number) == (whole.source, whole.name, None):
        default = replace(default, summed=together.summed)
    fit = Fit(together.shift, together.is_sure)
    return _verdict(replace(whole, summed=together.summed), default, heard, fit, steps)


def _alike(call: Call, by_call: Mapping[Call, Sequence[Heard]]) -> list[Call]:
    return [other for other in by_call if (other.source, other.name) == (call.source, call.name)]


def _rival(call: Call, first: Call, by_call: Mapping[Call, Sequence[Heard]]) -> bool:
    """Tell whether a call could as well be what is meant: of the same source, and learnt from like the first."""
    same = call.source is first.source and not first.source.explicit
    return same and call != first and not call.guess and by_call[call][0].rank == by_call[first][0].rank


def _words(call: Call, several: bool) -> str:
    return f"{call.name} (call {call.number + 1})" if several else call.name


class Fit(NamedTuple):
    """A shift, whether it is the only one that gives the loss, and the padding that is left out."""

    shift: bool
    is_sure: bool
    without: int | None = None


def _fit(heard: Sequence[Heard], losses: Sequence[Loss | None], ranks: int) -> Fit | None:
    """Return the shift whose tokens equal the loss in every batch; ``None`` where none does, or several others do."""
    seen = [observation(h, loss, ranks) for h, loss in zip(heard, losses)]
    if not all(map(tells, seen)):
        return None
    told, decided = TokenSet(int(heard[0].shift)), decide({"": seen})
    plain = {h.tokens for h in fitting(seen) if h.factor == "" and h.reduction in AS_IT_SHOULD_BE}
    if told in plain:
        return Fit(heard[0].shift, decided is not None)
    common = {tokens.shift for tokens in plain}  # a loss of low precision equals several sets of one shift
    if len(common) == 1 and (other := TokenSet(common.pop())) in plain:
        return Fit(bool(other.shift), True) if not heard[0].stated and other.shift in (0, 1) else None
    left = _without_padding(heard, seen)
    if left is None or plain - {TokenSet(int(left.shift), "no padding")}:
        return None
    return left


def _without_padding(heard: Sequence[Heard], seen: Sequence[Observation]) -> Fit | None:
    """Return the one shift under which the targets that are no padding equal the loss in every batch."""
    found: dict[bool, int] = {}
    for shift in (False, True):
        for kind in KINDS if shift == heard[0].shift or not heard[0].stated else ():
            left = [h.without(kind, shift) for h in heard]
            if all(part is not None and part[0] and b.equals(part[1] / part[0]) for part, b in zip(left, seen)):
                ids = {int(h.unpadded.id) for h in heard if h.unpadded is not None} - {-1}
                if kind == "mask" or len(ids) == 1:
                    found.setdefault(shift, BY_MASK if kind == "mask" else ids.pop())
    return Fit(next(iter(found)), True, next(iter(found.values()))) if len(found) == 1 else None


def _by_ids(heard: Sequence[Heard]) -> Fit | None:
    """Return the shift that the ids tell which a causal model read; ``None`` where they do not."""
    found = alignment([h.facts for h in heard if h.is_whole])
    return Fit(bool(1 - found), True) if found in (0, 1) else None


def _verdict(
    chosen: Chosen,
    default: Chosen,
    heard: Sequence[Heard],
    fit: Fit,
    losses: Sequence[Loss | None] | None,
    others: tuple[str, ...] = (),
) -> Verdict:
    if fit.shift != heard[0].shift:
        chosen = replace(chosen, shift=fit.shift)
    if fit.without is not None:
        chosen = replace(chosen, without=fit.without)
    equals = None if losses is None else sum(loss.value for loss in losses if loss is not None) / len(losses)
    shown, shift = _mean(heard, fit.shift, fit.without), heard[0].shift
    divides = equals is not None and _divides(heard, fit) and not math.isclose(equals, shown, rel_tol=1e-4)
    return Verdict(chosen, default, equals, shown, (), others, fit.is_sure, shift, divides)


def _divides(heard: Sequence[Heard], fit: Fit) -> bool:
    """Tell whether the model was told to divide by another number than the tokens that are chosen."""
    counts = [(h.items, h.facts.sums[TokenSet(int(fit.shift))].tokens) for h in heard]
    return fit.without is None and any(items is not None and float(items) != tokens for items, tokens in counts)


def _mean(heard: Sequence[Heard], shift: bool, without: int | None = None) -> float:
    if without is None:
        sums = [h.facts.sums[TokenSet(int(shift))] for h in heard]
        parts = [(s.tokens, s.nll) for s in sums]
    else:
        parts = [part for h in heard if (part := h.without(kind_of(without), shift)) is not None]
    tokens = sum(part[0] for part in parts)
    return sum(part[1] for part in parts) / tokens if tokens else math.nan
