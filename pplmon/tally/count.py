"""One batch of ``TokenStats`` becomes integers: sums, histogram, maxima.

Nothing here waits for the device: no item(), no boolean indexing, no tensor made from Python values.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pplmon import cells
from pplmon.tally.layout import FRACTION_MASK
from pplmon.tally.sequences import Sequences
from pplmon.tokens import TokenStats

SCALE = 2.0**cells.FRACTION_BITS
OVERCONFIDENT = 0.9
ROUNDING = 1 + 2.0**-20  # exactly uniform logits give ln V up to a rounding, and are not worse than uniform


class Batch(NamedTuple):
    """One batch, ready to be counted."""

    stats: TokenStats
    scored: Tensor  # [N] bool
    valid: Tensor  # [N] bool: scored and finite
    invalid: Tensor  # [N] bool: to be scored, but outside the vocabulary
    units: Tensor  # [N] int64: the loss in 2**-32 nats, capped; 0 where not valid
    bits: Tensor  # [N] int64: float bits of the loss, NaN and inf included; −1 where not scored
    sequences: Sequences | None


class SequenceSums(NamedTuple):
    """Per sequence [S]: valid tokens, and the mean loss in 2**-32 nats (−1 where too short)."""

    tokens: Tensor
    mean_units: Tensor


def prepare(stats: TokenStats, sequences: Sequences | None) -> Batch:
    """Decide which tokens count, and turn their losses into integers."""
    scored, invalid = stats.scored, stats.invalid
    if sequences is not None and sequences.crosses is not None:
        scored, invalid = scored & ~sequences.crosses, invalid & ~sequences.crosses
    valid = scored & torch.isfinite(stats.nll)
    capped = torch.where(valid, stats.nll, 0.0).clamp_max(cells.CAP_NATS)
    units = (capped * SCALE).round().to(torch.int64)
    # One pattern for every NaN, so that all sick tokens sort alike on all devices.
    clean = torch.where(torch.isnan(stats.nll), torch.nan, stats.nll)
    bits = torch.where(scored, clean.view(torch.int32).to(torch.int64) & 0x7FFFFFFF, -1)
    return Batch(stats, scored, valid, invalid, units, bits, sequences)


def count_sequences(batch: Batch, least: int) -> SequenceSums | None:
    """Sum each sequence's valid tokens, in integers, so that the order cannot matter."""
    if batch.sequences is None:
        return None
    zeros = torch.zeros(batch.sequences.count, dtype=torch.int64, device=batch.units.device)
    tokens = zeros.scatter_add(0, batch.sequences.segment, batch.valid.to(torch.int64))
    total = zeros.scatter_add(0, batch.sequences.segment, batch.units)
    mean = torch.div(total, tokens.clamp_min(1), rounding_mode="floor")
    return SequenceSums(tokens, torch.where(tokens >= max(least, 1), mean, -1))


def sums(batch: Batch, per_sequence: SequenceSums | None, token_bytes: Tensor | None) -> Tensor:
    """Return the sums of ``cells.SUMS`` [S]."""
    stats, valid = batch.stats, batch.valid
    tokens = valid.sum()
    none = torch.zeros_like(tokens)
    probability = (torch.exp(-torch.where(valid, stats.nll, torch.inf)) * SCALE).round().to(torch.int64)
    parts = {
        "tokens": tokens,
        "nll_whole": (batch.units >> cells.FRACTION_BITS).sum(),
        "nll_fraction": (batch.units & FRACTION_MASK).sum(),
        "probability_whole": (probability >> cells.FRACTION_BITS).sum(),
        "probability_fraction": (probability & FRACTION_MASK).sum(),
        "nonfinite_tokens": (batch.scored & ~valid).sum(),
        "capped_tokens": (valid & (stats.nll >= cells.CAP_NATS)).sum(),
        "invalid_targets": batch.invalid.sum(),
        "sequences_unknown" if per_sequence is None else "sequences": (
            tokens if per_sequence is None else (per_sequence.tokens > 0).sum()
        ),
    }
    if stats.correct is None:
        parts["correct_unknown"] = tokens
    else:
        parts["correct"] = (valid & stats.correct).sum()
    if stats.top_probability is None:
        parts["top_probability_unknown"] = tokens
    elif stats.correct is not None:
        parts["overconfident_errors"] = (valid & ~stats.correct & (stats.top_probability >= OVERCONFIDENT)).sum()
    if stats.vocab_size is None:
        parts["vocab_unknown"] = tokens
    else:
        parts["above_uniform"] = (valid & (stats.nll > math.log(stats.vocab_size) * ROUNDING)).sum()
    if token_bytes is None:
        parts["bytes_unknown"] = tokens
    else:
        known = valid & (stats.targets < len(token_bytes))
        index = torch.where(known, stats.targets, 0)
        parts["bytes"] = torch.where(known, token_bytes[index], 0).sum()
        parts["bytes_unknown"] = (valid & ~known).sum()
    return torch.stack([parts.get(name, none) for name in cells.SUMS])


def maxima(batch: Batch, per_sequence: SequenceSums | None, token_bytes: Tensor | None) -> Tensor:
    """Return the maxima of ``cells.MAXIMA`` [M]."""
    empty = torch.full_like(batch.units[:1], -1).squeeze(0)
    vocab = batch.stats.vocab_size
    example = batch.stats.targets.clamp(-cells.EXAMPLE_OFFSET, cells.EXAMPLE_OFFSET) + cells.EXAMPLE_OFFSET
    parts = {
        "token_loss_bits": torch.where(batch.valid, batch.bits, -1).amax(),
        "invalid_target_example": torch.where(batch.invalid, example, -1).amax(),
    }
    if per_sequence is not None:
        parts["sequence_loss_units"] = per_sequence.mean_units.amax()
    if vocab is not None:
        parts["vocab_size"] = torch.full_like(empty, vocab)
        parts["vocab_complement"] = torch.full_like(empty, cells.VOCAB_LIMIT - vocab)
    missing = {
        "sequences": per_sequence,
        "correct": batch.stats.correct,
        "top_probability": batch.stats.top_probability,
        "vocab": vocab,
        "bytes": token_bytes,
    }
    for name, value in missing.items():
        if value is None:
            parts[f"{name}_missing"] = torch.ones_like(empty)
    return torch.stack([parts.get(name, empty) for name in cells.MAXIMA])


def histogram(batch: Batch) -> Tensor:
    """Count losses by the upper bits of their float pattern [cells.BUCKETS]."""
    bucket = ((batch.bits >> cells.BUCKET_SHIFT) - cells.BUCKET_OFFSET).clamp(0, cells.BUCKETS - 1)
    counts = torch.zeros(cells.BUCKETS, dtype=torch.int64, device=batch.bits.device)
    # scatter_add_ of integers: exact in any order, and neither waits for the device (bincount) nor is refused in
    # deterministic mode (histc).
    return counts.scatter_add_(0, bucket, batch.valid.to(torch.int64))
