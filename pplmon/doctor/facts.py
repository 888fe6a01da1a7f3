"""The measurements of one batch, as plain numbers on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pplmon.doctor.alignment import SCORED, SHIFTS, TokenSet


class Sums(NamedTuple):
    """Sums over the tokens of a candidate, of those whose loss is finite."""

    tokens: float
    nll: float  # Σ −ln p(target), nats
    uniform: float  # Σ −(1/V) Σ_j ln p_j: the loss on a uniform target, which label smoothing adds
    lse_squared: float  # Σ lse², which a z-loss adds
    place: float  # two candidates of one shift are one set of tokens where this is equal
    row_means: float  # Σ over rows of the mean of the row
    rows: float  # rows with a token
    sick: float  # tokens whose loss is not finite, in no other sum

    @property
    def mean(self) -> float:
        """Return the cross-entropy, in nats per token."""
        return self.nll / self.tokens if self.tokens else float("nan")


@dataclass(frozen=True)
class Facts:
    """One batch."""

    rows: int
    columns: int
    vocab: int
    shift: int  # what pplmon was told
    logits_eps: float  # of the logits' dtype
    sums: dict[TokenSet, Sums]
    counts: dict[str, list[float]]  # by the names that ``signs`` gives them

    @classmethod
    def of(cls, parts: dict[str, list[float]], rows: int, columns: int, vocab: int, shift: int, eps: float) -> Facts:
        """Take the parts of ``Measured.values``."""
        size = len(Sums._fields)
        flat = iter(parts["sums"])
        sums = {TokenSet(s, scored): Sums(*(next(flat) for _ in range(size))) for s in SHIFTS for scored in SCORED}
        return cls(
            rows, columns, vocab, shift, eps, sums, {name: part for name, part in parts.items() if name != "sums"}
        )

    def count(self, name: str) -> float:
        """Return one count; 0 where it could not be had, without input ids."""
        return self.counts.get(name, [0.0])[0]

    @property
    def told(self) -> TokenSet:
        """Return the candidate that pplmon was told to score."""
        return TokenSet(self.shift)

    @property
    def rounding(self) -> float:
        """Return how far, in nats, fp32 may bring a mean of losses that are differences of numbers of this size."""
        return 2.0**-22 * (1 + self.count("lse"))
