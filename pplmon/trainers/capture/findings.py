"""Say what does not agree in the calls that are counted, by the rules of the doctor and by what the batch holds besides."""

from __future__ import annotations

from collections.abc import Sequence

from pplmon.doctor import TOLD_ELSEWHERE, Finding, Loss, Observation, judge
from pplmon.doctor.words import both
from pplmon.trainers.capture.heard import Heard, observation


def findings(
    heard: Sequence[Heard], losses: Sequence[Loss | None], ranks: int, accumulation: int
) -> tuple[Finding, ...]:
    """Return what does not agree in these calls, one of each batch."""
    if len(heard) != len(losses) or not all(h.is_whole for h in heard):
        return ()  # of losses that are only counted there is no more to say than that they do not agree
    seen = [observation(h, loss, ranks, accumulation) for h, loss in zip(heard, losses)]
    found = judge(seen)
    wanted = set() if heard[0].stated else {"target_leakage"}  # the default of a masked model is no mistake
    found = [finding for finding in found if finding.kind not in TOLD_ELSEWHERE | wanted]
    one_on = _one_on(heard, seen) if any(f.kind in ("another_loss", "further_term") for f in found) else None
    return tuple(found if one_on is None else [one_on])


def _one_on(heard: Sequence[Heard], seen: Sequence[Observation]) -> Finding | None:
    """Return that the loss scores the targets one column further on, whose last the given ones lack."""
    mean = expected = 0.0
    for h, batch in zip(heard, seen):
        same, tokens, nll = (0.0, 0.0, 0.0) if h.next is None else h.next.values.tolist()
        if not same or not tokens or batch.loss is None or not batch.equals(nll / tokens):
            return None
        mean += batch.facts.sums[batch.facts.told].mean / len(heard)
        expected += batch.loss.value / len(heard)
    name = heard[0].next.name if heard[0].next is not None else ""
    return Finding(
        "shift",
        f"{both(expected, mean)}: the loss scores logits[t] on {name}[:, t + 1], and pplmon was given {name}[:, t], without the last",
        f"Give {name}[:, 1:] as targets: targets=lambda batch: {name}[:, 1:]",
        {"loss": expected, "cross_entropy": mean, "shift": 0, "loss_shift": 1},
    )
