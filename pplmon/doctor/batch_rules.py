"""Rules that need no loss: are these logits, are there targets, and do ids, mask and model say where they stand.

Plain numbers in, findings out. Counts of several batches are added up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pplmon.doctor import batch_words, overwritten
from pplmon.doctor.alignment import LEAST, SHIFTS, SURE, UNSURE, TokenSet
from pplmon.doctor.facts import Facts
from pplmon.doctor.finding import Finding
from pplmon.doctor.words import nats

HALF, FEW_TARGETS, FEW_IDS = 0.5, 16, 10  # of a vocabulary of fewer ids one may well be half of the targets
STEADY, REPEATED = 0.98, 0.3  # renumbered ids: so many tokens keep their partner, of ids seen before for this share
FEW_EQUAL = 0.1  # labels of other ids are the input's by chance only
PADDING_BY_MASK = 0.01  # of the scored targets: the mask may have a hole beside its padding
# Padding that the ids alone tell: so much of the scored targets, and hardly elsewhere but once a row.
PADDING_SHARE, PADDING_ELSEWHERE = 0.02, 0.02


def total(batches: Sequence[Facts], name: str) -> int:
    """Return a count of all batches."""
    return int(sum(facts.count(name) for facts in batches))


def mean_of(batches: Sequence[Facts], tokens: TokenSet) -> float:
    """Return the mean over batches of the cross-entropy of a candidate."""
    return sum(facts.sums[tokens].mean for facts in batches) / len(batches)


def not_logits(batches: Sequence[Facts]) -> Finding | None:
    """Tell probabilities and gradients from logits."""
    looks = [sum(values) for values in zip(*(facts.counts["looks"] for facts in batches))]
    if batches[0].vocab < overwritten.SMALLEST_VOCAB or looks[0] < overwritten.LEAST:
        return None
    for kind, count in (("gradients", looks[1]), ("probabilities", looks[2])):
        if count >= overwritten.SHARE * looks[0]:
            return batch_words.not_logits(kind, int(count), int(looks[0]))
    return None


def of_targets(batches: Sequence[Facts], ignore_index: int | None) -> Iterator[Finding]:
    """Yield what is wrong with the targets by themselves."""
    positions = sum(facts.rows * facts.columns for facts in batches)
    told, unpadded = total(batches, "told"), total(batches, "unpadded")
    if beyond := total(batches, "beyond"):
        largest = int(max(facts.count("largest") for facts in batches))
        yield batch_words.outside_vocabulary(beyond, positions, largest, batches[0].vocab)
    if negative := total(batches, "negative"):
        value = int(max(facts.count("a_negative") for facts in batches))
        yield batch_words.ignore_index(negative, positions, value, ignore_index)
    if not total(batches, "scored") and not beyond and not negative:
        yield batch_words.all_ignored(positions, told)
    elif (rows := total(batches, "truncated_rows")) and min(facts.columns for facts in batches) >= LEAST:
        yield batch_words.truncated_rows(rows, sum(facts.rows for facts in batches))
    if minus_inf := total(batches, "minus_inf"):
        yield batch_words.padded_targets(minus_inf)
    if sick := int(sum(facts.sums[facts.told].sick for facts in batches)) - minus_inf:
        yield batch_words.nonfinite_logits(sick)
    common = {facts.count("common_id") for facts in batches}
    if len(common) == 1 and unpadded >= FEW_TARGETS and batches[0].vocab >= FEW_IDS:
        count = total(batches, "common")
        if count >= HALF * unpadded and not is_padding_scored(batches):
            yield batch_words.one_id(int(common.pop()), count, unpadded)


def alignment(batches: Sequence[Facts]) -> int | None:
    """Return s where ``targets[t] == input_ids[t + s]``, and no other s does so well; None where ids do not tell."""
    if not all("equal" in facts.counts for facts in batches):
        return None
    equal, of = ([sum(n) for n in zip(*(facts.counts[name] for facts in batches))] for name in ("equal", "compared"))
    shares = [a / b if b else 0.0 for a, b in zip(equal, of)]
    best = max(range(len(SHIFTS)), key=shares.__getitem__)
    others = [share for place, share in enumerate(shares) if place != best]
    return SHIFTS[best] if shares[best] > SURE and max(others) < UNSURE and of[best] >= LEAST else None


def other_labels(batches: Sequence[Facts]) -> Finding | None:
    """Tell targets that are the inputs under other ids, or that the model knows nothing of while it knows its inputs."""
    if alignment(batches) is not None or not all("own_nll" in facts.counts for facts in batches):
        return None
    rows = [
        [sum(n) for n in zip(*(f.counts["renumbered"][3 * i : 3 * i + 3] for f in batches))] for i in range(len(SHIFTS))
    ]
    steady = [kept / max(of, 1) for kept, of, _ in rows]
    best = max(range(len(SHIFTS)), key=steady.__getitem__)
    kept, of, distinct = rows[best]
    others = max(share for place, share in enumerate(steady) if place != best)
    if steady[best] > STEADY and others < UNSURE and of - distinct >= max(REPEATED * of, FEW_TARGETS):
        shift = SHIFTS[best]
        text = f"targets[t] are input_ids[t{shift:+d}] under other ids, in {int(kept)} of {int(of)} tokens: another tokenizer's"
        return batch_words.other_labels(text, {"shift": shift, "tokens": int(kept), "of": int(of)})
    uniform, mean = math.log(batches[0].vocab), mean_of(batches, batches[0].told)
    tokens = total(batches, "own_tokens")
    own = sum(facts.count("own_nll") for facts in batches) / tokens if tokens else math.nan
    equal, of = (zip(*(facts.counts[name] for facts in batches)) for name in ("equal", "compared"))
    most = max(sum(hits) / max(sum(n), 1) for hits, n in zip(equal, of))
    if own < HALF * uniform and mean > uniform and most < FEW_EQUAL:
        text = (
            f"the cross-entropy is {nats(mean)}, above a uniform guess of {nats(uniform)}, and "
            f"{nats(own)} where the input ids themselves are the targets: another tokenizer's, or another row's"
        )
        return batch_words.other_labels(text, {"cross_entropy": mean, "of_inputs": own})
    return None


def is_padding_scored(batches: Sequence[Facts]) -> bool:
    """Tell whether padding is scored: by the attention mask, or where the ids show it beyond doubt."""
    scored, told = total(batches, "padding_scored"), total(batches, "told")
    if not scored:
        return False
    if all(facts.count("padding_by_mask") for facts in batches):
        return scored >= PADDING_BY_MASK * told
    if batches[0].vocab < FEW_IDS:
        return False
    few = total(batches, "padding_elsewhere") <= PADDING_ELSEWHERE * told + sum(facts.rows for facts in batches)
    return few and scored >= max(PADDING_SHARE * told, 4) and total(batches, "padding_rows") >= 2


def is_mask_opposite(batches: Sequence[Facts]) -> bool:
    """Tell whether all that is scored is padding, and what is not scored is text."""
    return is_padding_scored(batches) and not total(batches, "text") and total(batches, "opposite") > 0


def forgot_shift(batches: Sequence[Facts]) -> Finding | None:
    """Tell by the model alone that targets should have been shifted: it is worse than a guess, and good at the next ones."""
    told, uniform = batches[0].told, math.log(batches[0].vocab)
    mean, shifted = mean_of(batches, told), mean_of(batches, TokenSet(1))
    if told.shift == 0 and mean > uniform and shifted < HALF * uniform:
        return batch_words.shift_by_model(mean, shifted, uniform)
    return None
