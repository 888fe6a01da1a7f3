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


def measure(logits: Tensor, targets: Tensor, entropy: bool = False) -> Measured:
    """Measure ``logits`` [..., V] against ``targets`` [N] in [0, V), row by row. No copy of the logits is made.

    nll = (max − x_target) + log1p(Σ_{j≠argmax} exp(x_j − max)): leaving the largest term out of the sum keeps small losses
    exact, where ``logsumexp − x_target`` has already cancelled.
    """
    count, vocab = targets.numel(), logits.shape[-1]
    nll = torch.empty(count, dtype=torch.float32, device=logits.device)
    top_probability = torch.empty_like(nll)
    predicted = torch.empty(count, dtype=torch.int64, device=logits.device)
    spread = torch.empty_like(nll) if entropy else None
    for start, chunk in _chunks(logits, max(MIN_ROWS, CHUNK_LOGITS // max(vocab, 1))):
        rows = slice(start, start + chunk.shape[0])
        if chunk.shape[0] == 1:  # torch sums a lone row over several threads, which gives other bits
            chunk = chunk.expand(2, vocab)
        wanted = targets[rows].expand(chunk.shape[0]).unsqueeze(1)
        loss, log_total, index, chunk_spread = _measure_chunk(chunk, wanted, entropy)
        size = rows.stop - rows.start
        nll[rows] = loss[:size]
        top_probability[rows] = torch.exp(-log_total)[:size]
        predicted[rows] = index[:size]
        if spread is not None and chunk_spread is not None:
            spread[rows] = chunk_spread[:size]
    return Measured(nll, top_probability, predicted, spread)


def _measure_chunk(chunk: Tensor, wanted: Tensor, entropy: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    # fp64 logits are measured in fp64, so that ties are those of the logits; all others in fp32, which holds them exactly.
    x = chunk if chunk.dtype == torch.float64 else chunk.float()
    top, index = x.max(dim=-1, keepdim=True)  # the lowest index wins a tie
    gap = top - x.gather(1, wanted)
    x = x.sub_(top) if x is not chunk else x - top
    weighted = None
    if entropy:
        weighted = torch.where(x == -torch.inf, 0.0, x).mul_(x.exp()).sum(-1)  # 0·(−inf) counts as 0
    rest = x.exp_().scatter_(1, index, 0.0).sum(-1)
    # A NaN or +inf logit makes NaN above or in the sum, except where it is the argmax itself, whose term was left out.
    rest = rest + (top - top).squeeze(1)
    log_total = torch.log1p(rest)
    spread = None if weighted is None else log_total - weighted / (1 + rest)
    return gap.squeeze(1) + log_total, log_total, index.squeeze(1), spread


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
