"""The integers of continuations that a model generated, and the numbers made from them.

Shapes: B sequences, H tokens of each continuation, N = B·H.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pplmon.extras.base import Extra
from pplmon.extras.nats import mean, upper_and_lower
from pplmon.extras.parts import add_up
from pplmon.measure.tokens import TokenStats
from pplmon.report.numbers import Number, Value

DOUBLINGS = 17
STARTS = (
    0,
    *(2**power for power in range(DOUBLINGS)),
)  # the first position of each part; the last has all from there on
HEADER = 4
NATS = "nats per token"


class _Part(NamedTuple):
    """Sums over tokens: twice hits and nats, reading what was generated and reading the correct tokens."""

    tokens: int = 0
    hits: int = 0
    upper: int = 0
    lower: int = 0
    forced_hits: int = 0
    forced_upper: int = 0
    forced_lower: int = 0

    def plus(self, other: _Part) -> _Part:
        return _Part(*(a + b for a, b in zip(self, other)))

    def numbers(self, head: str) -> dict[str, Value]:
        tokens = self.tokens
        return {
            f"{head}cross_entropy": mean(self.upper, self.lower, tokens),
            f"{head}token_accuracy": self.hits / tokens if tokens else math.nan,
            f"{head}teacher_forced_cross_entropy": mean(self.forced_upper, self.forced_lower, tokens),
            f"{head}teacher_forced_token_accuracy": self.forced_hits / tokens if tokens else math.nan,
        }


SUMS = len(_Part._fields)


def _declared(head: str, where: str) -> tuple[Number, ...]:
    return (
        Number(f"{head}cross_entropy", NATS, f"mean nll of correct tokens after generated ones, {where}", best="min"),
        Number(
            f"{head}token_accuracy", "", f"generated tokens that are the correct ones, {where}", high=1.0, best="max"
        ),
        Number(f"{head}teacher_forced_cross_entropy", NATS, f"mean nll of the same tokens after correct ones, {where}"),
        Number(
            f"{head}teacher_forced_token_accuracy",
            "",
            f"hits after correct tokens / the same tokens, {where}",
            high=1.0,
        ),
    )


class Continuations(Extra):
    """Sums of what generated continuations gave; ``FreeRunningProbe`` fills it.

    A token is *before* up to the first one that differs from the correct text, that one included, and *after* behind it.
    NaN: there is no such token.
    """

    declares = (
        *_declared("free_running/", "all"),
        *_declared("free_running/after/", "behind the first that differs"),
        Number("free_running/before/cross_entropy", NATS, "mean nll up to the first token that differs", best="min"),
        *_declared("free_running/position/{from}/", "at positions from there to twice that"),
        Number(
            "free_running/diverged", "", "continuations with a token that differs / continuations", high=1.0, best="min"
        ),
        Number(
            "free_running/mean_match",
            "tokens",
            "mean count of generated tokens before the first that differs",
            best="max",
        ),
        Number("free_running/unsettled_tokens", "count", "tokens left out because max_forwards was reached"),
        Number("free_running/forwards", "count", "forwards of each rank"),
    )
    size = HEADER + 2 * len(STARTS) * SUMS  # sequences, those that differ, Σ matching tokens, unsettled; the parts
    maxima = 1  # forwards
    needs_sequences = True

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        """Return this batch's integers [size + maxima]; see ``FreeRunningProbe`` for what comes with a batch."""
        hits, settled, real = batch_data["hits"], batch_data["settled"], batch_data["real"]
        assert stats.correct is not None
        matches = (hits & settled).long().cumprod(1).sum(1)  # tokens before the first that differs
        place = torch.arange(hits.shape[1], device=hits.device)
        starts = 1 << torch.arange(DOUBLINGS, device=hits.device)
        part = torch.bucketize(place, starts, right=True) + (place > matches[:, None]) * len(STARTS)
        forced = upper_and_lower(torch.where(valid, batch_data["forced_nll"], 0.0))
        sums = add_up(
            torch.where(valid, part.flatten(), -1),
            2 * len(STARTS),
            [
                valid,
                valid & stats.correct,
                *upper_and_lower(torch.where(valid, stats.nll, 0.0)),
                valid & batch_data["forced_correct"],
                *forced,
            ],
        )
        differs = real & (matches < hits.shape[1])
        header = [real.sum(), differs.sum(), (matches * real).sum(), (~settled & real[:, None]).sum()]
        return torch.cat([torch.stack(header), sums, batch_data["forwards"].to(sums.device).view(1)])

    def numbers(self, integers: Sequence[int]) -> Mapping[str, Value]:
        """Return the means before, after, by position and over all, and how far continuations went."""
        sequences, differing, matching, unsettled, *sums, forwards = integers
        parts = [_Part(*sums[start : start + SUMS]) for start in range(0, len(sums), SUMS)]
        before, after = (_together(half) for half in (parts[: len(STARTS)], parts[len(STARTS) :]))
        found = before.plus(after).numbers("free_running/")
        found |= after.numbers("free_running/after/")
        found["free_running/before/cross_entropy"] = mean(before.upper, before.lower, before.tokens)
        for start, early, late in zip(STARTS, parts, parts[len(STARTS) :]):
            both = early.plus(late)
            if both.tokens:
                found |= both.numbers(f"free_running/position/{start}/")
        found["free_running/diverged"] = differing / sequences if sequences else math.nan
        found["free_running/mean_match"] = matching / sequences if sequences else math.nan
        found["free_running/unsettled_tokens"] = unsettled
        found["free_running/forwards"] = max(forwards, 0)
        return found


def _together(parts: Sequence[_Part]) -> _Part:
    whole = _Part()
    for part in parts:
        whole = whole.plus(part)
    return whole
