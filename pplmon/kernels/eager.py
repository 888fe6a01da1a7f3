"""The reference: log-sum-exp over chunks of rows, in plain PyTorch, on any device.

Shapes: B sequences, T positions, N = B·T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Measured best of 2^16 … 2^21 and of 1 … 16 rows, at V = 1000 … 152064, in fp32 and bf16, on one thread and on two: a smaller
# chunk pays more for its calls, a larger one leaves the cache.
CHUNK_LOGITS, MIN_ROWS = 2**20, 8
ACCELERATOR_LOGITS = 2**24  # there a call costs as much as reading so many
BLOCK = 128  # logits that share a maximum, for the argmax
LOG2_E = math.log2(math.e)


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
    # fp64 logits are measured in fp64, so that ties are those of the logits; all others in fp32, which holds them exactly.
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    top, rest = (torch.empty(count, dtype=dtype, device=logits.device) for _ in range(2))
    predicted = torch.empty(count, dtype=torch.int64, device=logits.device)
    weighted = torch.empty_like(rest) if entropy else None
    limit = CHUNK_LOGITS if logits.device.type == "cpu" else ACCELERATOR_LOGITS
    height = max(MIN_ROWS, limit // vocab)
    # One buffer for all chunks: new memory for each costs more than the arithmetic.
    size = _whole_vectors(max(2, min(height, count)) * vocab)
    scratch = torch.zeros(2 if entropy else 1, size, dtype=dtype, device=logits.device)
    for start, chunk in _chunks(logits, height):
        rows = slice(start, start + chunk.shape[0])
        if chunk.shape[0] == 1:  # torch sums a lone row over several threads, which gives other bits
            chunk = chunk.expand(2, vocab)
        size = rows.stop - rows.start
        best, index, total, spread = (x[:size] for x in _measure_chunk(chunk, scratch))
        top[rows], predicted[rows], rest[rows] = best, index, total
        if weighted is not None:
            weighted[rows] = spread
    # A NaN or +inf logit makes NaN above or in the sum, except where it is the argmax itself, whose term was left out.
    rest = rest + (top - top)
    log_total = torch.log1p(rest)
    gap = top - logits.gather(-1, targets.view(*logits.shape[:-1], 1)).reshape(-1)
    information = None if weighted is None else (log_total - weighted / (1 + rest)).float()
    return Measured((gap + log_total).float(), torch.exp(-log_total).float(), predicted, information)


def _measure_chunk(chunk: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return max, argmax, Σ exp(x − max) and Σ (x − max)·exp(x − max), both without the argmax; the last needs two scratches."""
    flat = scratch[:, : _whole_vectors(chunk.numel())]
    x = flat[0, : chunk.numel()].view(chunk.shape)
    wide = chunk if chunk.dtype == scratch.dtype else x.copy_(chunk)
    top, index = _argmax(wide)
    torch.sub(wide, top, out=x)
    flat[0].mul_(LOG2_E)
    # On a CPU exp2 takes a third of the time of exp. The product's rounding is one of the exponent, as that of x − max is.
    power = torch.exp2(flat[0], out=flat[-1])[: chunk.numel()].view(chunk.shape).scatter_(1, index, 0.0)
    rest = power.sum(-1)
    if scratch.shape[0] == 1:
        return top.squeeze(1), index.squeeze(1), rest, rest
    weighted = x.clamp_min_(-1e4).mul_(power).sum(-1).div_(LOG2_E)  # 0·(−inf) counts as 0
    return top.squeeze(1), index.squeeze(1), rest, weighted


def _argmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum and the lowest index that has it, [n, 1], of [n, V]: ``x.max(-1)``, in a tenth of its time.

    ``amax`` runs at the speed of a read and ``max`` does not: so the blocks' maxima first, and then the one block that is first
    to have the largest. The last block may overlap its neighbour, where no maximum can be that is not the neighbour's, too.
    """
    vocab = x.shape[1]
    if vocab < 4 * BLOCK:
        top, index = x.max(dim=-1, keepdim=True)
        return top, index
    whole = vocab - vocab % BLOCK
    maxima = x[:, :whole].view(x.shape[0], -1, BLOCK).amax(-1)
    if whole < vocab:
        maxima = torch.cat((maxima, x[:, whole:].amax(-1, keepdim=True)), dim=1)
    top, block = maxima.max(dim=-1, keepdim=True)
    first = (block * BLOCK).clamp_max_(vocab - BLOCK)
    within = x.gather(1, first + torch.arange(BLOCK, device=x.device))
    return top, first + within.max(dim=-1, keepdim=True).indices


def _whole_vectors(count: int) -> int:
    """Round up so that every thread takes whole vectors.

    torch's exp2 takes what is left over beside them one by one, in other bits: a token's loss would depend on its neighbours.
    """
    threads = min(torch.get_num_threads(), -(-count // 32768))  # torch gives a thread no fewer elements than this
    step = 64 * max(threads, 1)
    return -(-count // step) * step


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
