"""Measure logits by log-sum-exp over chunks of rows, in plain PyTorch on any device: the reference for all kernels.

Shapes: B sequences, T positions, N = B·T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

# Measured best of 2^16 … 2^21 and of 1 … 16 rows, at V = 1000 … 152064, in fp32 and bf16, on one thread and on two: a smaller
# chunk pays more for its calls, a larger one leaves the cache.
CHUNK_LOGITS, MIN_ROWS = 2**20, 8
ACCELERATOR_LOGITS = 2**24  # there a call costs as much as reading so many
# The buffer is at most a 48th of the rows, 4 % of bf16 logits, but no smaller than is fast on a CPU: 1 MiB, or four rows.
SHARE, LEAST_LOGITS, LEAST_ROWS = 48, 2**18, 4
BLOCK = 128  # logits that share a maximum, for the argmax
# numpy's argmax runs at the speed of a read, but on one thread, and copies rows that do not lie side by side. It takes less time
# than torch's on up to FEW_THREADS + SHORT_ROW // V threads: fewer, the longer the rows.
FEW_THREADS, SHORT_ROW = 2, 3000
LOG2_E = math.log2(math.e)
LOWEST = -1e4  # exp of it is 0 in fp64, too, and 0·LOWEST is 0, where 0·(−inf) is NaN


class Measured(NamedTuple):
    """The measurements of one pass over the logits, per token [N]."""

    nll: Tensor  # float32
    top_probability: Tensor  # float32
    predicted: Tensor  # int64
    entropy: Tensor | None  # float32 nats


class Partials(NamedTuple):
    """The partial results of one pass over some columns, per token [N]; once they cover all columns, ``finish`` ends them.

    They are float32, which holds fp32, bf16 and fp16 logits exactly; of fp64 logits float64, so that ties stay ties.
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
    buffers = 2 if entropy else 1  # of x, and of exp(x) where x is needed again
    height = rows_together(count, vocab, logits.device, buffers)
    # The same buffers for all chunks: new memory for each costs more than the arithmetic.
    size = whole_vectors(max(2, min(height, count)) * vocab)
    scratch = [torch.empty(size, dtype=wide, device=logits.device) for _ in range(buffers)]
    pieces = [_of_chunk(chunk, scratch) for chunk in chunks(logits, height)]
    top, index, rest, *weighted = pieces[0] if len(pieces) == 1 else map(torch.cat, zip(*pieces))
    gap = top - logits.gather(-1, targets.view(*logits.shape[:-1], 1)).reshape(-1)
    return Partials(top, index, gap, rest, weighted[0] if weighted else None)


def rows_together(count: int, vocab: int, device: torch.device, buffers: int = 1) -> int:
    """Return how many of ``count`` rows to look at together, with so many buffers of their size."""
    height = max(MIN_ROWS, (CHUNK_LOGITS if device.type == "cpu" else ACCELERATOR_LOGITS) // vocab)
    return min(height, max(LEAST_ROWS, LEAST_LOGITS // vocab, count // (SHARE * buffers)))


def _of_chunk(chunk: Tensor, scratch: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return top, argmax, rest and, where there are two buffers, weighted of the rows of ``chunk`` [n, V] or [b, t, V]."""
    count, vocab = chunk.numel(), chunk.shape[-1]
    if count == vocab:  # torch sums a lone row over several threads, which gives other bits
        return tuple(part[:1] for part in _of_chunk(chunk.reshape(1, vocab).expand(2, vocab), scratch))
    size = whole_vectors(count)
    flat, terms = scratch[0][:size], scratch[-1][:size]
    x = flat[:count].view(count // vocab, vocab)
    wide = chunk
    if chunk.dim() == 3 or chunk.dtype != x.dtype:
        x.view(chunk.shape).copy_(chunk)
        wide = x
    top, index = argmax(wide)
    torch.sub(wide, top, out=x)
    flat.mul_(LOG2_E)
    # On a CPU exp2 takes a third of the time of exp; the product's rounding adds at most 1e-7·(top − x) to a term's own.
    power = torch.exp2(flat, out=terms)[:count].view(x.shape).scatter_(1, index, 0.0)
    measured = (top.squeeze(1), index.squeeze(1), power.sum(-1))
    return measured if len(scratch) == 1 else (*measured, x.clamp_min_(LOWEST).mul_(power).sum(-1).div_(LOG2_E))


def argmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum of [n, V] and its lowest index, each [n, 1]: the same as ``x.max(-1)``, but several times faster."""
    if _suits_numpy(x):
        index = torch.empty(x.shape[0], 1, dtype=torch.int64, device=x.device)
        with suppress(RuntimeError):  # some tensors hold no memory that numpy could read: under torch.func, fake ones
            x.numpy().argmax(-1, out=index.numpy()[:, 0])  # a NaN is the largest here, too
            return x.gather(1, index), index
    if x.shape[1] < 4 * BLOCK:
        top, index = x.max(dim=-1, keepdim=True)
        return top, index
    return _argmax_of_blocks(x)


def _suits_numpy(x: Tensor) -> bool:
    """Return True where numpy finds the argmax of ``x`` [n, V] faster, and no trace is being recorded (it would miss numpy)."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    few = FEW_THREADS + SHORT_ROW // x.shape[1]
    return x.device.type == "cpu" and x.is_contiguous() and torch.get_num_threads() <= few


def _argmax_of_blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    """Find the block with the largest maximum, then the argmax within the first such block.

    ``amax`` runs at the speed of a read and ``max`` does not. The last block may overlap its neighbour, where no maximum can be
    that is not the neighbour's, too.
    """
    vocab = x.shape[1]
    whole = vocab - vocab % BLOCK
    maxima = x[:, :whole].view(x.shape[0], whole // BLOCK, BLOCK).amax(-1)
    if whole < vocab:
        maxima = torch.cat((maxima, x[:, whole:].amax(-1, keepdim=True)), dim=1)
    top, block = maxima.max(dim=-1, keepdim=True)
    first = (block * BLOCK).clamp_max_(vocab - BLOCK)
    within = x.gather(1, first + torch.arange(BLOCK, device=x.device))
    return top, first + within.max(dim=-1, keepdim=True).indices


def whole_vectors(count: int) -> int:
    """Round up so that every thread takes whole vectors.

    torch's exp2 takes what is left over beside them one by one, in other bits: a token's loss would depend on its neighbours.
    """
    threads = min(torch.get_num_threads(), -(-count // 32768))  # torch gives a thread no fewer elements than this
    step = 64 * max(threads, 1)
    return -(-count // step) * step


def chunks(logits: Tensor, rows: int) -> Iterator[Tensor]:
    """Yield the rows of ``logits``, some at a time, and never a copy: [n, V], or [b, t, V] of rows at uneven distances."""
    if logits.dim() == 2:
        for start in range(0, max(logits.shape[0], 1), rows):  # one chunk of none, where there is no row
            yield logits[start : start + rows]
        return
    _, length, vocab = logits.shape
    if logits.stride(0) == length * logits.stride(1) or not logits.numel():
        yield from chunks(logits.reshape(-1, vocab), rows)
    elif length >= rows:
        for sequence in logits:
            yield from chunks(sequence, rows)
    else:
        yield from torch.split(logits, rows // length)
