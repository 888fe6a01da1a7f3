"""A trial: a set-up is diagnosed on one batch, and on two and three of them, as a callback would go on."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.doctor.mistakes import Given

from pplmon.doctor import Finding, Loss, Observation, judge, measure


def observe(given: Given) -> Observation:
    measured = measure(
        given.logits, given.targets, given.shift, given.input_ids, given.attention_mask, given.ignore_index
    )
    loss = None if given.loss is None else Loss.of(given.loss)
    return Observation(measured.facts(), loss, given.run, measured)


def findings(batches: Sequence[Given]) -> list[list[Finding]]:
    """Return the findings on the first batch, on the first two, and so on."""
    seen = [observe(given) for given in batches]
    return [judge(seen[:number], batches[0].ignore_index) for number in range(1, len(seen) + 1)]
