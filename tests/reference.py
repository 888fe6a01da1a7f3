"""Every number, recomputed in plain Python from float64 logits, one token at a time.

Nothing of pplmon's arithmetic is used or imitated: losses are ln Σ exp(x_j − x_target), quantiles are numpy's, tails are sorted.

Shapes: B sequences, T positions, N = B·T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplmon import TokenStats

CAP = 1024.0  # nats
EXACT = ("tokens", "sequences", "nonfinite_tokens", "capped_tokens", "invalid_targets")


@dataclass(frozen=True)
class Token:
    """One target and what the logits before it said."""

    nll: float
    target: int
    row: int = 0
    column: int = 0
    sequence: Hashable = 0  # None: the batch is flat, there are no sequences
    correct: bool | None = None
    top_probability: float | None = None
    predicted: int | None = None
    scored: bool = True
    invalid: bool = False

    @property
    def valid(self) -> bool:
        """Scored, and not non-finite."""
        return self.scored and math.isfinite(self.nll)


def measure(x: np.ndarray, target: int) -> tuple[float, int, float]:
    """Return (nll, argmax, probability of the argmax) of one row of logits, in float64."""
    if np.isnan(x).any() or (x == np.inf).any() or (x == -np.inf).all():
        return math.nan, 0, math.nan
    best = int(np.flatnonzero(x == x.max())[0])
    others = np.delete(x, best) - x[best]
    top_probability = 1 / (1 + float(np.exp(others).sum()))
    if x[target] == -np.inf:
        return math.inf, best, top_probability
    away = np.delete(x, target) - x[target]
    largest = max(0.0, float(away.max(initial=-math.inf)))
    if largest == 0:
        return math.log1p(float(np.exp(away).sum())), best, top_probability
    return largest + math.log(math.exp(-largest) + float(np.exp(away - largest).sum())), best, top_probability


def tokens_of(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    ignore_index: int | None = -100,
    shift: bool = False,
) -> list[Token]:
    """Measure one batch: a ``Token`` for each target, in reading order."""
    flat = logits.dim() == 2
    x = logits.detach().double().numpy()
    x = x[None] if flat else x
    ids = targets.reshape(x.shape[:2]).tolist()
    keep = np.ones(x.shape[:2], bool) if mask is None else mask.reshape(x.shape[:2]).numpy()
    documents = None if document_ids is None else document_ids.reshape(x.shape[:2]).tolist()
    tokens = []
    for row in range(x.shape[0]):
        names = _sequence_names(row, x.shape[1], documents and documents[row], flat)
        for column in range(x.shape[1]):
            source, target = column - int(shift), ids[row][column]
            token = Token(0.0, target, row, column, names[column], scored=False)
            wanted = source >= 0 and bool(keep[row, column]) and target != ignore_index
            if wanted and documents is not None and documents[row][source] != documents[row][column]:
                wanted = False
            if wanted and not 0 <= target < x.shape[2]:
                token = replace(token, invalid=True)
            elif wanted:
                nll, best, probability = measure(x[row, source], target)
                token = replace(
                    token, nll=nll, scored=True, correct=best == target, top_probability=probability, predicted=best
                )
            tokens.append(token)
    return tokens


def numbers_of(
    tokens: Iterable[Token], vocab: int | None, min_sequence_tokens: int = 16, token_bytes: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return every number but tokens_seen and duplicate_sequences."""
    tokens = list(tokens)
    valid = [t for t in tokens if t.valid]
    losses = np.array([min(t.nll, CAP) for t in valid])
    n, nan = len(valid), math.nan
    total = math.fsum(losses)
    entropy = total / n if n else nan
    ranked = np.sort(losses)[::-1]
    worst = ranked[: math.ceil(n / 100)]
    highest = max((t.nll for t in valid), default=nan)
    flat = any(t.sequence is None for t in valid)
    means = []
    by_sequence: dict[Hashable, list[float]] = {}
    for token in valid:
        by_sequence.setdefault(token.sequence, []).append(min(token.nll, CAP))
    means = [math.fsum(group) / len(group) for group in by_sequence.values() if len(group) >= min_sequence_tokens]
    bytes_ = sum(token_bytes[t.target] for t in valid) if token_bytes is not None else 0
    known = all(t.correct is not None for t in valid)
    sure = known and all(t.top_probability is not None for t in valid)

    def rate(hits: Iterable[bool]) -> float:
        return sum(hits) / n if n else nan

    return {
        "cross_entropy": entropy,
        "perplexity": _exp(entropy),
        "bits_per_token": entropy / math.log(2),
        "bits_per_byte": None if token_bytes is None else (total / math.log(2) / bytes_ if bytes_ else nan),
        "relative_cross_entropy": entropy / math.log(vocab) if vocab and vocab > 1 else None,
        "token_accuracy": rate(bool(t.correct) for t in valid) if known else None,
        "mean_target_probability": math.fsum(math.exp(-t.nll) for t in valid) / n if n else nan,
        "inverse_perplexity": math.exp(-entropy),
        "max_token_loss": highest,
        "max_sequence_loss": None if flat else max(means, default=None if n else nan),
        **{
            name: float(np.quantile(losses, q, method="inverted_cdf")) if n else nan
            for name, q in (
                ("token_loss_p50", 0.5),
                ("token_loss_p90", 0.9),
                ("token_loss_p99", 0.99),
                ("token_loss_p999", 0.999),
            )
        },
        "worst_1pct_loss": float(worst.mean()) if n else nan,
        "worst_1pct_share": float(worst.sum()) / total if total else nan,
        "perplexity_without_worst_1pct": _exp(float(ranked[len(worst) :].mean())) if n > len(worst) else nan,
        "above_uniform_rate": rate(t.nll > math.log(vocab) * (1 + 1e-6) for t in valid) if vocab else None,
        "max_token_excess": highest - math.log(vocab) - math.log(n) if vocab and n else None,
        "overconfident_error_rate": (
            rate(not t.correct and (t.top_probability or 0.0) >= 0.9 for t in valid) if sure else None
        ),
        "nonfinite_tokens": sum(t.scored and not t.valid for t in tokens),
        "capped_tokens": sum(t.nll >= CAP for t in valid),
        "invalid_targets": sum(t.invalid for t in tokens),
        "tokens": n,
        "sequences": None if flat else len(by_sequence),
    }


def tolerance(name: str, expected: float) -> float:
    """How far a number may be from the reference: what the contract promises, else float rounding."""
    if name in EXACT or name.endswith(("_rate", "accuracy")):
        return 1e-12
    if name.startswith(("token_loss_p", "worst_1pct")):
        return 0.01 * abs(expected)
    if name == "perplexity_without_worst_1pct":
        return 0.01 * abs(expected)  # it leaves out a sum that is itself within 1 %
    return 1e-6 * max(1.0, abs(expected))


def assert_numbers(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare all numbers, None and NaN included, and say which one differs."""
    for name, want in expected.items():
        have = got[name]
        if want is None or have is None:
            assert have is want, f"{name}: {have} instead of {want}"
        elif math.isnan(want) or math.isinf(want):
            assert have == want or (math.isnan(want) and math.isnan(have)), f"{name}: {have} instead of {want}"
        else:
            assert abs(have - want) <= tolerance(name, want), f"{name}: {have} instead of {want}"


def rows_of(stats: TokenStats, rows: slice | list[int]) -> TokenStats:
    """Return the stats of some sequences [B, T] of a batch, bit for bit."""

    def cut(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.view(stats.batch_shape)[rows].reshape(-1)

    count = len(torch.arange(stats.batch_shape[0])[rows])
    return replace(
        stats,
        nll=cut(stats.nll),
        correct=cut(stats.correct),
        top_probability=cut(stats.top_probability),
        predicted=cut(stats.predicted),
        targets=cut(stats.targets),
        scored=cut(stats.scored),
        invalid=cut(stats.invalid),
        entropy=cut(stats.entropy),
        batch_shape=(count, *stats.batch_shape[1:]),
    )


def _sequence_names(row: int, length: int, documents: list[int] | None, flat: bool) -> list[Hashable]:
    if documents is None:
        return [None if flat else row] * length
    names: list[Hashable] = []
    for number, (_, run) in enumerate(groupby(documents)):
        names += [(row, number)] * len(list(run))
    return names


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else (x if math.isnan(x) else math.inf)
