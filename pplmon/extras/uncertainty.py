"""``Uncertainty``: give the perplexity an interval, and say how far it moved since the pass before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pplmon.extras.base import Extra
from pplmon.extras.interval import Bucket, half_width, mean_of, standard_error
from pplmon.extras.nats import total, upper_and_lower
from pplmon.extras.parts import add_up
from pplmon.extras.sequences import Places, by_column, given, places_of
from pplmon.measure.tokens import TokenStats
from pplmon.report.formulas import exp
from pplmon.report.numbers import Number, Value

BUCKETS = 256
COLUMNS = 3
HEADER = 2
INTERVAL = ("perplexity_low", "perplexity_high", "uncertainty_is_lower_bound")
CHANGE = ("cross_entropy_change", "cross_entropy_change_error")
FACTORS = (0xFF51AFD7ED558CCD - 2**64, 0xC4CEB9FE1A85EC53 - 2**64)  # of MurmurHash3, as signed integers


class Uncertainty(Extra):
    """An extra that gives a 95 % interval of the perplexity, and tells whether it moved since the pass before.

    Tokens of one document resemble each other, so that a thousand of them are no thousand observations. The interval is
    therefore made from the spread between documents. A document is known by its ids: the sample id with the document id, as far
    as they are given; without sample ids, by a hash of its own ids (``input_ids``, else the targets). Documents are put into
    256 buckets by that key, which add over batches, ranks and resumed runs, wherever the parts of a document come from.

    With μ = Σ nll / tokens over all, and over the G buckets that hold any the sums Sᵦ of nll and Nᵦ of tokens:
    SE² = G/(G−1) · Σ (Sᵦ − μNᵦ)² / tokens², and ``perplexity_low``, ``perplexity_high`` = exp(μ ∓ t·SE), t for G−1 degrees of
    freedom. They are None of one bucket alone.

    ``cross_entropy_change`` is μ less that of the pass before of the same stage; ``cross_entropy_change_error`` its standard
    error from the differences bucket by bucket, which is much smaller than that of either, as both passes read the same
    documents. A change of less than two errors may be noise. They are numbers of val and test, from the second pass on.

    Where neither sample ids nor document ids nor ``input_ids`` are given, a row of the batch stands for a document. A document
    may fill many rows, so the interval is then too narrow (``uncertainty_is_lower_bound`` is 1), and there is no change.

    All are None where a batch has no sequences ([N, V] without ``document_ids``). NaN: there is no valid token.
    """

    declares = (
        Number("perplexity_low", "", "exp(μ − t·SE), the lower end of the 95 % interval", low=0.0),
        Number("perplexity_high", "", "exp(μ + t·SE), the upper end of the 95 % interval", low=1.0, best="min"),
        Number("uncertainty_is_lower_bound", "", "1 where rows stand for documents, else 0", high=1.0),
        Number("cross_entropy_change", "nats per token", "cross_entropy − that of the pass before", low=-math.inf),
        Number("cross_entropy_change_error", "nats per token", "standard error of cross_entropy_change"),
    )
    size = HEADER + BUCKETS * COLUMNS  # tokens without a sequence; of rows; of each bucket tokens and Σ nll as two
    needs_sequences = True

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        """Return this batch's integers [size]."""
        tokens, places = valid.sum()[None], places_of(stats, batch_data)
        none = torch.zeros_like(tokens)
        if places is None:
            return torch.cat([tokens, none.expand(self.size - 1)])
        named = any(name in batch_data for name in ("sample_ids", "document_ids", "input_ids"))
        # A valid target and its logits are of one document, so the key of the column will do where targets are shifted, too.
        bucket = torch.where(valid, bucket_of(_keys(stats, places, batch_data)).flatten(), -1)
        sums = add_up(bucket, BUCKETS, [valid, *upper_and_lower(torch.where(valid, stats.nll, 0.0))])
        return torch.cat([none, none if named else tokens, sums])

    def numbers(self, integers: Sequence[int]) -> Mapping[str, Value]:
        """Return the interval."""
        unknown, rows, *_ = integers
        buckets = _buckets(integers)
        mean = mean_of(buckets)
        if unknown or math.isnan(mean):
            return dict.fromkeys(INTERVAL, None if unknown else math.nan)
        width = half_width(buckets)
        low, high = (None, None) if width is None else (exp(mean - width), exp(mean + width))
        return dict(zip(INTERVAL, (low, high, int(rows > 0))))

    def compare(self, integers: Sequence[int], before: Sequence[int]) -> Mapping[str, Value]:
        """Return the change of the cross-entropy since the pass before, and its standard error."""
        known = not any(any(part[:HEADER]) for part in (integers, before))
        passes = _buckets(before), _buckets(integers)
        if not known or not all(any(b.tokens for b in buckets) for buckets in passes):
            return dict.fromkeys(CHANGE)
        return dict(zip(CHANGE, (mean_of(passes[1]) - mean_of(passes[0]), standard_error(*passes))))


def bucket_of(key: Tensor) -> Tensor:
    """Return the bucket that a document is put into by its key."""
    return _mixed(key) & (BUCKETS - 1)


def _buckets(integers: Sequence[int]) -> list[Bucket]:
    rows = (integers[start : start + COLUMNS] for start in range(HEADER, len(integers), COLUMNS))
    return [Bucket(tokens, total(upper, lower)) for tokens, upper, lower in rows]


def _keys(stats: TokenStats, places: Places, batch_data: Mapping[str, Tensor]) -> Tensor:
    """Return a key of the document that each of the caller's columns is of, [R, T]."""
    samples, documents = (given(name, stats, batch_data, or_by_row=True) for name in ("sample_ids", "document_ids"))
    if samples is None:
        return _content(stats, places, batch_data)
    return samples if documents is None else _mixed(samples) + documents


def _content(stats: TokenStats, places: Places, batch_data: Mapping[str, Tensor]) -> Tensor:
    """Return a hash of the ids of each column's document, [R, T]: a sum over them, each mixed with its place there."""
    ids = given("input_ids", stats, batch_data)
    ids = by_column(stats, stats.targets) if ids is None else ids
    rows, length = ids.shape
    document = (places.first + torch.arange(rows, device=ids.device)[:, None] * length).flatten()
    terms = _mixed(_mixed(ids) + places.column - places.first).flatten()
    # Sums wrap around at 2^64, alike in any order.
    return torch.zeros_like(terms).scatter_add_(0, document, terms)[document].view(rows, length)


def _mixed(x: Tensor) -> Tensor:
    """Return integers of which every bit depends on every bit of ``x`` (the last step of MurmurHash3)."""
    for factor in FACTORS:
        x = (x ^ ((x >> 33) & (2**31 - 1))) * factor
    return x ^ ((x >> 33) & (2**31 - 1))
