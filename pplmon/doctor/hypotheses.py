"""Hypotheses of what a loss is, and those that equal it: a set of tokens, a reduction, a factor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pplmon.doctor.alignment import TOLD, TokenSet
from pplmon.doctor.facts import Facts, Sums
from pplmon.doctor.loss import BATCHES, Loss, Run
from pplmon.doctor.measured import Measured

MEAN = "token mean"
UNITS = ("bits", "digits", "perplexity")
AS_IT_SHOULD_BE = (MEAN, "items", "items of all ranks")
LOGITS_ROUNDING = 2  # half a unit in the last place, and four deviations of the mean of so many
TIGHT = 0.15  # of the tolerance: what is not a plain mean fits by chance more easily, and has to fit better
NEAR, CROWDED = 50, 5  # times the tolerance: of so many within it one in ten such losses is met by chance
APART = 3  # times the tolerance
LN2, LN10 = math.log(2), math.log(10)


class Hypothesis(NamedTuple):
    """One explanation of a loss."""

    tokens: TokenSet
    reduction: str = MEAN
    factor: str = ""


@dataclass(frozen=True, eq=False)
class Observation:
    """One batch: what was measured, the loss that its step had, and what is known of the run."""

    facts: Facts
    loss: Loss | None = None
    run: Run = field(default_factory=Run)
    measured: Measured | None = None  # for candidates that need the losses themselves

    def predictions(self) -> Iterator[tuple[Hypothesis, float]]:
        """Yield every hypothesis with the loss that it predicts for this batch; the likelier of two equal ones first."""
        for tokens, sums in self.facts.sums.items():
            if not sums.tokens:
                continue
            for reduction, value in _reductions(sums, tokens, self.facts, self.run):
                for factor, times in _factors(self.run):
                    yield Hypothesis(tokens, reduction, factor), times * value
            yield Hypothesis(tokens, MEAN, "perplexity"), math.exp(min(sums.mean, 700.0))

    def equals(self, expected: float, share: float = 1.0) -> bool:
        """Tell whether the loss is this value, within a share of the tolerance."""
        assert self.loss is not None
        return abs(self.loss.value - expected) <= share * self.tolerance(expected)

    def tolerance(self, expected: float) -> float:
        """Return how far from an expected value the loss may be, by its precision and that of fp32 sums."""
        assert self.loss is not None
        times = max(1.0, abs(expected) / max(self.facts.sums[self.facts.told].mean, 1e-9))  # a sum's rounding is larger
        return self.loss.tolerance(expected, self.facts.rounding * times)

    def without(self, factor: str) -> Observation:
        """Return the batch as it would be if its loss had not been multiplied by a known factor."""
        assert self.loss is not None
        times = dict(_factors(self.run))[factor] / self.run.share
        return replace(self, loss=Loss(self.loss.value / times, self.loss.dtype))

    def rest(self, tokens: TokenSet) -> float:
        """Return what the loss has above the cross-entropy of a candidate, in nats."""
        assert self.loss is not None
        return self.loss.value - self.run.share * self.facts.sums[tokens].mean

    def unexplained(self, tokens: TokenSet, share: float) -> float:
        """Return how large a rest may come from rounding that a hypothesis does not know of: of the logits, or of a fused loss."""
        sums = self.facts.sums[tokens]
        logits = self.facts.logits_eps * self.facts.count("size") / math.sqrt(max(sums.tokens, 1))
        return share * sums.mean + LOGITS_ROUNDING * logits + self.facts.rounding

    def fits(self) -> dict[Hypothesis, float]:
        """Return the hypotheses that this batch's loss equals, with their values."""
        found = {}
        for hypothesis, value in self.predictions():
            plain = hypothesis.factor == "" and hypothesis.reduction in AS_IT_SHOULD_BE
            low = self.loss is not None and self.loss.is_low
            share = 1.0 if plain or low else TIGHT
            if low and hypothesis.factor == "perplexity":
                share *= 1 + self.facts.sums[hypothesis.tokens].mean  # exp makes an absolute error a relative one
            if self.equals(value, share):
                found[hypothesis] = value
        return found


def fitting(batches: Sequence[Observation]) -> list[Hypothesis]:
    """Return the hypotheses that equal the loss in every batch."""
    first, *others = [batch.fits() for batch in batches]
    return [hypothesis for hypothesis in first if all(hypothesis in other for other in others)]


def simplest(batches: Sequence[Observation], base: TokenSet, most: int) -> tuple[list[Hypothesis], int]:
    """Return of the hypotheses that fit those with the fewest departures from ``base``, one for each set of tokens; and how many.

    More than ``most`` departures explain anything, and are left out. So are those that a loss of low precision could not tell
    from ``base``: it may itself be no more than a little further off than it should be; and two departures by one batch, where
    so many values are near the loss that one of them fits by chance.
    """
    fits = fitting(batches)
    for number in range(most + 1):
        found = [h for h in fits if departures(h, base) == number]
        if number:
            found = [h for h in found if any(_apart(batch, h, base, len(batches) == 1) for batch in batches)]
        if number == 2 and len(batches) == 1 and _crowd(batches[0], base, number) > CROWDED:
            found = []
        if found:
            return list(_one_for_each_set(found, batches, base).values()), number
    return [], most + 1


def only_pair(batches: Sequence[Observation], base: TokenSet) -> Hypothesis | None:
    """Return the one hypothesis of two departures that a loss of low precision equals in three batches; None where others do, too."""
    found: dict[tuple[object, ...], Hypothesis] = {}
    for hypothesis in fitting(batches) if len(batches) >= BATCHES else ():
        if hypothesis.factor == "" and hypothesis.reduction in AS_IT_SHOULD_BE:
            continue  # of a fresh model the means of all tokens are near each other
        if departures(hypothesis, base) == 2 and any(_apart(batch, hypothesis, base, False) for batch in batches):
            tokens, *rest = hypothesis
            found.setdefault((_same_set(tokens, batches), *rest), hypothesis)
    return next(iter(found.values())) if len(found) == 1 else None


def _apart(batch: Observation, hypothesis: Hypothesis, base: TokenSet, alone: bool) -> bool:
    """Tell whether a batch's loss can tell a hypothesis from ``base``; an unlikely one not ``alone``."""
    assert batch.loss is not None
    if not batch.loss.is_low:
        return True
    if hypothesis.factor in UNITS and alone:
        return False
    plain = batch.run.share * batch.facts.sums[base].mean
    value = dict(batch.predictions())[hypothesis]
    return abs(value - plain) > APART * batch.tolerance(plain)


def _crowd(batch: Observation, base: TokenSet, number: int) -> int:
    """Return how many hypotheses of so many departures come near the loss."""
    near = NEAR * batch.tolerance(batch.facts.sums[base].mean)
    values = [value for h, value in batch.predictions() if departures(h, base) == number]
    return sum(batch.loss is not None and abs(value - batch.loss.value) <= near for value in values)


def decide(sources: Mapping[str, Sequence[Observation]]) -> tuple[str, TokenSet] | None:
    """Return the one source and set of tokens whose loss equals the loss in every batch; None where none or several do.

    Give each source of logits its batches, with the same losses. A set that the told one equals goes by the told one's name.
    """
    found = []
    for source, batches in sources.items():
        if not batches or any(b.loss is None or not math.isfinite(b.loss.value) for b in batches):
            continue
        fits = [h for h in fitting(batches) if h.factor == "" and h.reduction in (*AS_IT_SHOULD_BE, "sequence mean")]
        sets = _one_for_each_set(fits, batches, batches[0].facts.told)
        found += [(source, h.tokens) for h in sets.values()]
    return found[0] if len(found) == 1 else None


def departures(hypothesis: Hypothesis, base: TokenSet) -> int:
    """Count in how many respects a hypothesis differs from a token mean over ``base``."""
    tokens, reduction, factor = hypothesis
    return (
        (tokens.shift != base.shift)
        + (tokens.scored != base.scored)
        + (reduction not in AS_IT_SHOULD_BE)
        + (factor != "")
    )


def _one_for_each_set(
    found: list[Hypothesis], batches: Sequence[Observation], base: TokenSet
) -> dict[tuple[float, ...], Hypothesis]:
    """Keep for each set of tokens its simplest hypothesis. Sets under two names are one where they are so in every batch."""
    kept: dict[tuple[float, ...], Hypothesis] = {}
    for hypothesis in sorted(found, key=lambda h: departures(h, base)):
        kept.setdefault(_same_set(hypothesis.tokens, batches), hypothesis)
    return kept


def _same_set(tokens: TokenSet, batches: Sequence[Observation]) -> tuple[float, ...]:
    """Return what is equal for the same set of tokens under two names."""
    return (tokens.shift, *(batch.facts.sums[tokens].place for batch in batches))


def _reductions(sums: Sums, tokens: TokenSet, facts: Facts, run: Run) -> Iterator[tuple[str, float]]:
    """Yield each way to make one number of the losses, by name."""
    yield MEAN, sums.mean
    if run.items is not None:
        yield "items", sums.nll / run.items
        yield "items of all ranks", sums.nll * run.ranks / run.items  # the Trainer takes the ranks' mean back by it
    yield "sequence mean", sums.row_means / sums.rows
    if sums.rows != facts.rows:
        yield "sequence mean, empty ones as 0", sums.row_means / facts.rows
    yield "sum", sums.nll
    if tokens.scored != TOLD and (told := facts.sums[TokenSet(tokens.shift)].tokens):
        yield "sum / told", sums.nll / told
    yield "sum / sequences", sums.nll / facts.rows
    yield "sum / positions", sums.nll / (facts.rows * facts.columns)
    if tokens.shift and facts.columns > abs(tokens.shift):
        yield "sum / positions left", sums.nll / (facts.rows * (facts.columns - abs(tokens.shift)))


def known_factors(run: Run) -> list[str]:
    """Return the names of what the loss may have been multiplied by, by what is known of the run."""
    return [name for name, _ in _factors(run) if name and name not in UNITS]


def _factors(run: Run) -> Iterator[tuple[str, float]]:
    """Yield what the loss may have been multiplied by, by name; the first is as it should be."""
    yield "", run.share
    if run.accumulation > 1:
        yield "accumulated twice", run.share / run.accumulation
        yield "not accumulated", run.share * run.accumulation
    if run.ranks > 1:
        yield "times ranks", run.share * run.ranks
        yield "by ranks", run.share / run.ranks
    yield "bits", run.share / LN2
    yield "digits", run.share / LN10
