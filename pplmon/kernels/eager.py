"""The reference: log-sum-exp over chunks of rows, in plain PyTorch, on any device.

Shapes: B sequences, T positions, N = B·T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_LOGITS = 2**19  # a float32 chunk of 2 MiB stays in a core's cache; measured best at V = 32k and V = 128k
MIN_ROWS = 16


class Measured(NamedTuple):
    """What one pass over the logits gives, per token [N]."""

    nll: Tensor  # float32
    top_probability: Tensor  # float32
    predicted: Tensor  # int64
    entropy: Tensor | None  # float32 nats


class Partials(NamedTuple):
    """What one pass over some columns gives, per token [N]; of all columns, or merged over shards, ``finish`` ends it.

    float32, and float64 of fp64 logits, whose ties are then those of the logits; all others are held exactly by float32.
    """

    top: Tensor  # the largest logit
    argmax: Tensor  # int64: its column, the lowest of several
    gap: Tensor  # top − x_target
    rest: Tensor  # Σ_{j≠argmax} exp(x_j − top)
    weighted: Tensor | None  # Σ_j (x_j − top)·exp(x_j − top), when entropy is asked for


def measure(logits: Tensor, targets: Tensor, entropy: bool = False) -> Measured:
    """Measure ``logits`` [..., V] against ``targets`` [N] in [0, V), row by row. No copy of the logits is made."""
    return finish(partials(logits, targets, entropy))


def finish(parts: Partials) -> Measured:
    """Return the measurement that the partials of whole rows give.

    nll = (max − x_target) + log1p(Σ_{j≠argmax} exp(x_j − max)): leaving the largest term out of the sum keeps small losses
    exact, where ``logsumexp − x_target`` has already cancelled.
    """
    # A NaN or +inf logit makes NaN above or in the sum, except where it is the argmax itself, whose term was left out.
    rest = parts.rest + (parts.top - parts.top)
    log_total = torch.log1p(rest)
    entropy = None if parts.weighted is None else (log_total - parts.weighted / (1 + rest)).float()
    return Measured((parts.gap + log_total).float(), torch.exp(-log_total).float(), parts.argmax, entropy)


def partials(logits: Tensor, targets: Tensor, entropy: bool = False) -> Partials:
    """Return the partials of ``logits`` [..., V], V ≥ 1, for ``targets`` [N], which are columns of them."""
    count, vocab = targets.numel(), logits.shape[-1]
    wide = logits.dtype if logits.dtype == torch.float64 else torch.float32
    top = torch.empty(count, dtype=wide, device=logits.device)
    index = torch.empty(count, dtype=torch.int64, device=logits.device)
    weighted = torch.empty_like(top) if entropy else None
    whole = Partials(top, index, torch.empty_like(top), torch.empty_like(top), weighted)
    for start, chunk in _chunks(logits, max(MIN_ROWS, CHUNK_LOGITS // max(vocab, 1))):
        rows = slice(start, start + chunk.shape[0])
        size = rows.stop - rows.start
        if size == 1:  # torch sums a lone row over several threads, which gives other bits
            chunk = chunk.expand(2, vocab)
        wanted = targets[rows].expand(chunk.shape[0]).unsqueeze(1)
        for column, part in zip(whole, _of_chunk(chunk, wanted, entropy)):
            if column is not None and part is not None:
                column[rows] = part[:size]
    return whole


def _of_chunk(chunk: Tensor, wanted: Tensor, entropy: bool) -> Partials:
    x = chunk if chunk.dtype == torch.float64 else chunk.float()
    top, index = x.max(dim=-1, keepdim=True)  # the lowest index wins a tie
    gap = top - x.gather(1, wanted)
    x = x.sub_(top) if x is not chunk else x - top
    weighted = None
    if entropy:
        weighted = torch.where(x == -torch.inf, 0.0, x).mul_(x.exp()).sum(-1)  # 0·(−inf) counts as 0
    rest = x.exp_().scatter_(1, index, 0.0).sum(-1)
    return Partials(top.squeeze(1), index.squeeze(1), gap.squeeze(1), rest, weighted)


def _chunks(logits: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, [n, V]) over the rows of ``logits``; only a strided chunk is ever copied, never the whole."""
    if logits.dim() == 2:
        for start in range(0, logits.shape[0], rows):
            yield start, logits[start : start + rows]
        return
    sequences, length, vocab = logits.shape
    if logits.stride(0) == length * logits.stride(1):
        yield from _chunks(logits.view(-1, vocab), rows)
    elif length >= rows:
        for index in range(sequences):
            for start, chunk in _chunks(logits[index], rows):
                yield index * length + start, chunk
    else:
        step = rows // max(length, 1)
        for index in range(0, sequences, step):
            yield index * length, logits[index : index + step].reshape(-1, vocab)
