"""From what was measured of one or several batches to findings: from what is certain to what is likely."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pplmon.doctor import batch_rules, batch_words, loss_rules, loss_words
from pplmon.doctor.alignment import TokenSet
from pplmon.doctor.facts import Facts
from pplmon.doctor.finding import Finding
from pplmon.doctor.hypotheses import Observation

OF_A_MASK = {"padding_scored", "truncated_rows", "one_id"}  # a mask of the opposite sense brings these with it


def judge(batches: Sequence[Observation], ignore_index: int | None = -100) -> list[Finding]:
    """Return what does not agree in these batches, which were all told the same shift; nothing where all does.

    A cause is told where it holds in every batch. More batches tell more: one batch may fit by chance.
    """
    facts = [batch.facts for batch in batches]
    if (finding := batch_rules.not_logits(facts)) is not None:
        return [finding]
    found = list(batch_rules.of_targets(facts, ignore_index))
    batches = [batch for batch in batches if batch.facts.sums[batch.facts.told].tokens]
    if not batches:
        return found
    facts = [batch.facts for batch in batches]
    found += loss_rules.nonfinite(batches)
    compared = [batch for batch in batches if batch.loss is not None and math.isfinite(batch.loss.value)]
    if (finding := batch_rules.other_labels(facts)) is not None or (
        not compared and batch_rules.alignment(facts) is None and (finding := batch_rules.forgot_shift(facts))
    ):
        found.append(finding)
    base, misaligned = _by_ids(batches, compared)
    found += misaligned
    padded = batch_rules.is_padding_scored(facts)
    if compared and not any(f.evidence.get("loss_too") for f in misaligned):
        causes = loss_rules.explain(compared, base, batch_rules.alignment(facts) is not None, padded)
        settled = {"another_loss", "further_term", "several_fit", "low_precision_loss"} if found or padded else set()
        found += [cause for cause in causes if cause.kind not in settled]
    if batch_rules.is_mask_opposite(facts) and not any(f.kind == "mask_opposite" for f in found):
        found.append(_opposite(facts, compared, base))
    elif padded and not any(f.kind == "padding_scored" for f in found):
        found.append(_padding(batches, base))
    opposite = any(f.kind == "mask_opposite" for f in found)
    return [f for f in found if not (opposite and f.kind in OF_A_MASK)]


def _by_ids(batches: Sequence[Observation], compared: Sequence[Observation]) -> tuple[TokenSet, list[Finding]]:
    """Return the candidate that should be scored, and what the input ids say of the one that pplmon was told to."""
    facts = [batch.facts for batch in batches]
    told, ids = facts[0].told, batch_rules.alignment(facts)
    if ids is None or ids + told.shift == 1:
        return told, []
    right = TokenSet(1 - ids)
    if not all(f.sums[right].tokens for f in facts):  # rows of one column have no next one
        return told, []
    mean, of_next = batch_rules.mean_of(facts, told), batch_rules.mean_of(facts, right)
    loss = sum(b.loss.value for b in compared if b.loss) / len(compared) if compared else None
    same = bool(compared) and loss_rules.agrees(compared, told)
    if loss is not None and not same and loss_rules.agrees(compared, right):
        return right, [loss_words.pplmon_shift(loss, mean, told.shift, right.shift)]
    return right, [batch_words.misaligned(ids + told.shift, mean, of_next, told.shift, ids, loss=loss, same=same)]


def _opposite(facts: Sequence[Facts], compared: Sequence[Observation], base: TokenSet) -> Finding:
    losses = [batch.loss.value for batch in compared if batch.loss]
    return batch_words.mask_opposite(
        batch_rules.total(facts, "told"),
        batch_rules.total(facts, "opposite"),
        batch_rules.mean_of(facts, base),
        sum(losses) / len(losses) if losses else None,
        bool(compared) and loss_rules.agrees(compared, base),
    )


def _padding(batches: Sequence[Observation], base: TokenSet) -> Finding:
    facts = [batch.facts for batch in batches]
    losses = [batch.loss.value for batch in batches if batch.loss]
    without = batch_rules.mean_of(facts, TokenSet(base.shift, "no padding"))
    return batch_words.padding_scored(
        batch_rules.total(facts, "padding_scored"),
        batch_rules.total(facts, "told"),
        batch_rules.mean_of(facts, base),
        without,
        sum(losses) / len(losses) if losses else None,
    )
