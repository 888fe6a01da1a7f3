"""Hypotheses with a number in them that is fitted: label smoothing, z-loss, a multiple, a shorter vocabulary, a prompt's end.

One batch fits any such number. So of one batch only usual numbers count, and of several batches one that fits them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from pplmon.doctor.alignment import TOLD, TokenSet, moved
from pplmon.doctor.hypotheses import TIGHT, Observation
from pplmon.doctor.loss import BATCHES

USUAL_SMOOTHING = (0.1, 0.05, 0.2, 0.15, 0.3, 0.01, 0.02)
USUAL_Z_LOSS = (1e-4, 1e-3, 1e-5, 2e-4, 5e-4, 2e-5, 5e-5, 1e-2)
LARGEST_MULTIPLE = 128
LARGEST_MULTIPLE_OF_LOW = 8  # of larger ones two that follow each other are hardly apart
VARIED = 1e-3  # batches differ so much that one multiple of all of them is no chance
CLEAR = 2  # times the tolerance: a smaller effect cannot be told from rounding


def smoothing(batches: Sequence[Observation], base: TokenSet) -> float | None:
    """Return the ε of label smoothing, (1 − ε)·nll + ε·uniform, that gives the loss of every batch."""
    sums = [batch.facts.sums[base] for batch in batches]
    gaps = [(s.uniform - s.nll) / s.tokens for s in sums]
    # Some spread ε over the V − 1 other ids: ε·V/(V − 1) of it over all of them is the same.
    others = batches[0].facts.vocab / max(batches[0].facts.vocab - 1, 1)
    for spread in (1.0, others):
        found = _fit(batches, base, [gap * spread for gap in gaps], USUAL_SMOOTHING, lambda x: round(x, 3))
        if found is not None and 0 < found < 1:
            return found
    return None


def z_loss(batches: Sequence[Observation], base: TokenSet) -> float | None:
    """Return the factor of a z-loss, the mean of lse², that gives the loss of every batch."""
    squares = [batch.facts.sums[base].lse_squared / batch.facts.sums[base].tokens for batch in batches]
    return _fit(batches, base, squares, USUAL_Z_LOSS, lambda x: float(f"{x:.1e}") if x > 0 else 0.0)


def multiple(batches: Sequence[Observation], base: TokenSet) -> float | None:
    """Return what the cross-entropy is to be multiplied by: a whole number or the inverse of one; of several batches any."""
    means = [_expected(batch, base) for batch in batches]
    ratios = [batch.loss.value / mean for batch, mean in zip(batches, means) if batch.loss is not None and mean > 0]
    if is_low(batches) or len(ratios) < len(batches) or min(ratios) <= 0:
        return None
    ratio = sum(ratios) / len(ratios)
    whole = round(max(ratio, 1 / ratio))
    candidates = [float(whole) if ratio > 1 else 1 / whole] if 2 <= whole <= LARGEST_MULTIPLE else []
    if max(means) / min(means) - 1 > VARIED:
        candidates.append(float(f"{ratio:.3g}"))
    good = [c for c in candidates if all(batch.equals(c * mean, TIGHT) for batch, mean in zip(batches, means))]
    return good[0] if good else None


def multiple_of_low(batches: Sequence[Observation], base: TokenSet) -> float | None:
    """Return the small whole number, or the inverse of one, that gives a loss of low precision in three batches."""
    if len(batches) < BATCHES:
        return None
    whole = range(2, LARGEST_MULTIPLE_OF_LOW + 1)
    for times in (*map(float, whole), *(1 / n for n in whole)):
        if all(batch.equals(times * _expected(batch, base)) for batch in batches):
            return times
    return None


def shorter_vocabulary(batches: Sequence[Observation], base: TokenSet) -> int | None:
    """Return the one size of a vocabulary without its last ids that gives the loss of every batch."""
    if base != batches[0].facts.told or is_low(batches):
        return None
    sizes = []
    for index in range(len(batches[0].facts.counts["cuts"])):
        changes = [batch.facts.counts["cuts"][index] / batch.facts.sums[base].tokens for batch in batches]
        if _fits(batches, base, changes):
            sizes.append(batches[0].facts.vocab - index - 1)
    return sizes[0] if len(sizes) == 1 else None


def prompt_ends(batches: Sequence[Observation], base: TokenSet) -> list[str]:
    """Return in words the places that every scored answer may begin at, each of which gives the loss of every batch."""
    if is_low(batches) or any(batch.measured is None for batch in batches):
        return []
    first, *others = [dict(_answers(batch, base)) for batch in batches]
    names = [name for name in first if all(name in other for other in others)]
    return [n for n in names if all(b.equals(tried[n], TIGHT) for b, tried in zip(batches, [first, *others]))]


def _answers(batch: Observation, base: TokenSet) -> Iterator[tuple[str, float]]:
    """Yield each place that an answer may begin at, and the cross-entropy from there on."""
    assert batch.measured is not None
    tokens, nll = batch.measured.tokens, batch.measured.losses(base.shift).double()
    scored = tokens.told & moved(torch.ones_like(tokens.told), -base.shift, fill=False) & nll.isfinite()
    if base.scored != TOLD:
        scored = scored & ~tokens.padding
    sums = torch.where(scored, nll, 0.0).sum(0).flip(0).cumsum(0).flip(0).tolist()  # from each column on
    counts = scored.sum(0).flip(0).cumsum(0).flip(0).tolist()
    for column, (total, count) in enumerate(zip(sums, counts)):
        if 0 < count < counts[0]:
            yield f"column {column}", total / count
    for mark in sorted(set(tokens.full[0][scored[0]].tolist())):
        here = (tokens.full == mark) & scored
        if bool((here.sum(1) == 1).all()):
            after = scored & (here.cumsum(1) == 1) & ~here
            if 0 < after.sum() < scored.sum():
                yield f"id {mark}", float(nll[after].mean())


def _fit(
    batches: Sequence[Observation],
    base: TokenSet,
    effects: Sequence[float],
    usual: Sequence[float],
    rounded: Callable[[float], float],
) -> float | None:
    """Return x where the loss is the cross-entropy + x·effect: usual of one batch, and of several the one that fits them all."""
    if not all(math.isfinite(effect) and effect for effect in effects):
        return None
    if is_low(batches):
        return None  # a few digits are given by many numbers
    candidates = list(usual)
    if len(batches) > 1:
        pairs = [(batch.rest(base), effect) for batch, effect in zip(batches, effects)]
        candidates.append(rounded(sum(d * e for d, e in pairs) / sum(e * e for _, e in pairs)))
    good = {x for x in candidates if _fits(batches, base, [x * effect for effect in effects])}
    return good.pop() if len(good) == 1 else None


def _fits(batches: Sequence[Observation], base: TokenSet, changes: Sequence[float]) -> bool:
    """Tell whether the loss is the cross-entropy and a change to it, well, and in some batch clearly not without it."""
    plain = [_expected(batch, base) for batch in batches]
    clear = [abs(change) > CLEAR * batch.tolerance(x) for batch, x, change in zip(batches, plain, changes)]
    equal = [batch.equals(x + batch.run.share * change, TIGHT) for batch, x, change in zip(batches, plain, changes)]
    return any(clear) and all(equal)


def is_low(batches: Sequence[Observation]) -> bool:
    """Tell whether a loss is known to a few digits only."""
    return any(batch.loss is not None and batch.loss.is_low for batch in batches)


def _expected(batch: Observation, base: TokenSet) -> float:
    return batch.run.share * batch.facts.sums[base].mean
