"""Rules that explain a loss: what equals it, and if nothing does, on which side of the cross-entropy it lies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pplmon.doctor import fitted, loss_words
from pplmon.doctor.alignment import TOLD, TokenSet
from pplmon.doctor.batch_rules import mean_of, total
from pplmon.doctor.finding import Finding
from pplmon.doctor.hypotheses import AS_IT_SHOULD_BE, Hypothesis, Observation, known_factors, only_pair, simplest
from pplmon.doctor.words import TARGETS

UNEXPLAINED = 1e-4  # of the cross-entropy: a smaller rest is that of sums in another order or precision
LIKE_ANOTHER = 1.0  # nats: a further term of more than this, and than the cross-entropy itself, is rather another loss


def agrees(batches: Sequence[Observation], tokens: TokenSet) -> bool:
    """Tell whether the loss of every batch is the cross-entropy of a candidate."""
    return bool(simplest(batches, tokens, 0)[0])


def nonfinite(batches: Sequence[Observation]) -> Iterator[Finding]:
    """Yield that a loss is not finite where the cross-entropy is."""
    for batch in batches:
        mean = batch.facts.sums[batch.facts.told].mean
        if batch.loss is not None and not math.isfinite(batch.loss.value) and math.isfinite(mean):
            yield loss_words.nonfinite_loss(batch.loss.value, mean)
            return


def explain(batches: Sequence[Observation], base: TokenSet, by_ids: bool, padded: bool) -> list[Finding]:
    """Return why the loss is not the cross-entropy of ``base``, the candidate that should be scored; all losses are finite.

    ``by_ids``: the input ids say that its shift is right. ``padded``: it is known to score padding.
    """
    loss, mean = _values(batches, base)
    low = fitted.is_low(batches)
    found, departures = simplest(batches, base, 1)
    if departures == 0:
        return []
    if len(found) == 1:
        return list(_of(found[0], base, batches, by_ids))
    if found:
        return _of_several(found, base, batches, by_ids, low or padded)
    bases = (base, TokenSet(base.shift, "no padding")) if padded else (base,)
    for tokens in bases:
        if not all(batch.facts.sums[tokens].tokens for batch in batches):
            continue
        if finding := _of_a_number(batches, tokens):
            return [finding]
    if low:
        pair, times = only_pair(batches, base), fitted.multiple_of_low(batches, base)
        if pair is not None and times is None:
            return list(_of(pair, base, batches, by_ids))
        if times is not None and pair is None:
            return [loss_words.scaled(times, loss, mean)]
    else:
        found, _ = simplest(batches, base, 2)
        if len(found) == 1:
            return list(_of(found[0], base, batches, by_ids))
        if both := _of_a_factor_and_a_number(batches, base):
            return both
    return list(_of_the_rest(batches, base, loss, mean, low))


def _values(batches: Sequence[Observation], tokens: TokenSet) -> tuple[float, float]:
    loss = sum(batch.loss.value for batch in batches if batch.loss) / len(batches)
    return loss, mean_of([batch.facts for batch in batches], tokens)


def _of(hypothesis: Hypothesis, base: TokenSet, batches: Sequence[Observation], by_ids: bool) -> Iterator[Finding]:
    """Yield a finding for each respect in which a hypothesis that fits departs from ``base``."""
    loss, mean = _values(batches, base)
    (shift, scored), run, facts = hypothesis.tokens, batches[0].run, [batch.facts for batch in batches]
    if shift != base.shift:
        yield (loss_words.loss_shift if by_ids else loss_words.pplmon_shift)(loss, mean, base.shift, shift)
    if scored != base.scored:
        tokens, of = (int(sum(f.sums[s].tokens for f in facts)) for s in (hypothesis.tokens, TokenSet(shift, TOLD)))
        yield loss_words.other_tokens(scored, total(facts, "inner") > 0, loss, mean, tokens, of, base.shift)
    if hypothesis.reduction not in AS_IT_SHOULD_BE:
        yield loss_words.reduction(hypothesis.reduction, loss, mean)
    if hypothesis.factor:
        yield loss_words.factor(hypothesis.factor, loss, mean, run.accumulation, run.ranks)


def _of_several(
    found: Sequence[Hypothesis], base: TokenSet, batches: Sequence[Observation], by_ids: bool, quiet: bool
) -> list[Finding]:
    """Return what is common to all that fit: the shift, if that; else that several do, unless that says nothing new."""
    loss, mean = _values(batches, base)
    shifts = {hypothesis.tokens.shift for hypothesis in found}
    if len(shifts) == 1 and shifts != {base.shift}:
        return [(loss_words.loss_shift if by_ids else loss_words.pplmon_shift)(loss, mean, base.shift, shifts.pop())]
    if quiet:
        return []
    return [loss_words.several_fit(loss, mean, [f"{TARGETS[h.tokens.shift]}, {h.tokens.scored}" for h in found])]


def _of_a_number(batches: Sequence[Observation], tokens: TokenSet) -> Finding | None:
    """Return the finding of the hypothesis whose fitted number gives the loss of every batch, or that several do."""
    loss, mean = _values(batches, tokens)
    found = []
    if (times := fitted.multiple(batches, tokens)) is not None:
        found.append(loss_words.scaled(times, loss, mean))
    if (epsilon := fitted.smoothing(batches, tokens)) is not None:
        found.append(loss_words.smoothed(epsilon, loss, mean))
    if (weight := fitted.z_loss(batches, tokens)) is not None:
        found.append(loss_words.z_loss(weight, loss, mean))
    if (size := fitted.shorter_vocabulary(batches, tokens)) is not None:
        found.append(loss_words.shorter_vocabulary(loss, mean, size, batches[0].facts.vocab))
    if places := fitted.prompt_ends(batches, tokens):
        found.append(loss_words.prompt_scored(" or ".join(places), loss, mean))
    if len(found) > 1:
        return loss_words.several_fit(loss, mean, [finding.kind for finding in found])
    return found[0] if found else None


def _of_a_factor_and_a_number(batches: Sequence[Observation], base: TokenSet) -> list[Finding]:
    """Return what a factor that the run may have and a fitted number give together: one of each, and only one pair."""
    loss, mean = _values(batches, base)
    run, found = batches[0].run, []
    for factor in known_factors(run):
        finding = _of_a_number([batch.without(factor) for batch in batches], base)
        if finding is not None and finding.kind in ("label_smoothing", "z_loss"):
            found.append([loss_words.factor(factor, loss, mean, run.accumulation, run.ranks), finding])
    return found[0] if len(found) == 1 else []


def _of_the_rest(
    batches: Sequence[Observation], base: TokenSet, loss: float, mean: float, low: bool
) -> Iterator[Finding]:
    """Yield what the sign and size of an unexplained rest say: of a loss of low precision no more than that it is one."""
    rests = [batch.rest(base) for batch in batches]
    if max(abs(rest) for rest in rests) <= max(batch.unexplained(base, UNEXPLAINED) for batch in batches):
        return
    if low:
        worst = max(batches, key=lambda batch: abs(batch.rest(base)))
        assert worst.loss is not None
        yield loss_words.low_precision(worst.loss.precision, worst.loss.value, worst.facts.sums[base].mean)
    elif 0 < min(rests) <= max(LIKE_ANOTHER, mean):
        yield loss_words.further_term(loss, mean, min(rests), max(rests))
    else:
        yield loss_words.another_loss(loss, mean)
