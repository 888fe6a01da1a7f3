"""Measure logits by a loop that torch.compile makes, for devices without a kernel of their own (``kernel="compiled"``).

The compiled loop reduces every block of 256 logits to its maximum, Σ exp(x − maximum) and, for the entropy,
Σ (x − maximum)·exp(x − maximum). Plain PyTorch does the rest on these 128 times fewer numbers: the argmax, because a compiled
argmax runs at a tenth of the speed, and the final sums, because a compiled loop sums in one float32 per lane and is off by 7e-5
where many logits are equal. Where nothing can be compiled, ``eager`` measures instead, with one warning.

Shapes: n rows of a chunk, K blocks, N tokens, V vocabulary.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pplmon.measure import eager
from pplmon.measure.eager import LOWEST, Measured, Partials

BLOCK = 256
LEAST_VOCAB, LEAST_LOGITS = (
    2**13,
    2**23,
)  # of smaller rows and batches the reference was faster: 1.1 times, up to 4 times
CHUNK_LOGITS = 2**23  # a call costs a hundredth of its time
SHARE = 8  # of the rows at most an eighth at once: what is kept of them is a tenth of bf16 logits
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows and blocks that the first call of a loop sees; unlike each other and all strides, so that no guard says "equal".
EXAMPLE = (29, 131)

Loop = Callable[[Tensor], tuple[Tensor, ...]]


_refused: set[tuple[object, ...]] = set()  # what could not be compiled


def measure(logits: Tensor, targets: Tensor, entropy: bool = False) -> Measured:
    """Measure as ``eager.measure`` does, which also measures what does not suit (see ``suits``): within the same error of float64, the same argmax, NaN and inf in the same places.

    The first call of each dtype compiles for some seconds, and so does the first with V a multiple of 256, or not one.
    """
    way = (logits.device, logits.dtype, entropy)
    if suits(logits) and way not in _refused:
        try:
            return eager.finish(_partials(_loop(*way), logits, targets, entropy))
        except Exception as error:
            _warn(error)
            _refused.add(way)
    return eager.measure(logits, targets, entropy)


def suits(logits: Tensor) -> bool:
    """Return True where compiling pays and the rows of ``logits`` can be viewed as blocks: dense, and not float64."""
    dense = logits.stride(-1) == 1 and logits.stride(-2) >= logits.shape[-1]
    pays = logits.shape[-1] >= max(LEAST_VOCAB, 4 * BLOCK) and logits.numel() >= max(LEAST_LOGITS, 1)
    return dense and pays and logits.dtype in DTYPES


@functools.cache
def _loop(device: torch.device, dtype: torch.dtype, entropy: bool) -> Loop:
    """Compile the loop for whatever number of rows and blocks."""
    loop: Loop = torch.compile(_with_entropy if entropy else _without_entropy, dynamic=True)
    rows, blocks = EXAMPLE
    _run(loop, _blocks(torch.zeros(rows, BLOCK * blocks + 64, dtype=dtype, device=device)))
    return loop


def _warn(error: Exception) -> None:
    if not _refused:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        warnings.warn(
            f'pplmon: kernel="compiled" could not be compiled and the eager kernel measures instead: {type(error).__name__}: '
            f"{reason}. On a CPU it needs a C++ compiler, such as g++",
            stacklevel=2,
        )


def _run(loop: Loop, blocks: Tensor) -> tuple[Tensor, ...]:
    # A guard on autocast, which a training step may or may not have on here, would compile twice.
    with torch.no_grad(), torch.autocast(blocks.device.type, enabled=False):
        return loop(blocks.data)  # a view's base is guarded, too


def _without_entropy(blocks: Tensor) -> tuple[Tensor, ...]:
    """Return the maximum and Σ exp(x − maximum) of each block of [n, K, BLOCK]."""
    x = blocks.float()
    top = x.amax(-1)
    return top, (x - _finite(top)).exp().sum(-1)


def _with_entropy(blocks: Tensor) -> tuple[Tensor, ...]:
    """Return the same, and Σ (x − maximum)·exp(x − maximum)."""
    x = blocks.float()
    top = x.amax(-1)
    below = x - _finite(top)
    power = below.exp()
    return top, power.sum(-1), (below.clamp_min(LOWEST) * power).sum(-1)


def _finite(top: Tensor) -> Tensor:
    """Return a finite maximum for blocks that are all −inf, so that their sum is 0 and not NaN."""
    return top.clamp_min(torch.finfo(torch.float32).min).unsqueeze(-1)


def _partials(loop: Loop, logits: Tensor, targets: Tensor, entropy: bool) -> Partials:
    count, vocab = targets.numel(), logits.shape[-1]
    limit = CHUNK_LOGITS if logits.device.type == "cpu" else eager.ACCELERATOR_LOGITS
    height = max(eager.MIN_ROWS, min(limit // vocab, count // SHARE))
    top, index, rest, *weighted = map(torch.cat, zip(*(_of_chunk(loop, chunk) for chunk in _chunks(logits, height))))
    gap = top - logits.gather(-1, targets.view(*logits.shape[:-1], 1)).reshape(-1)
    return Partials(top, index, gap, rest, weighted[0] if weighted else None)


def _of_chunk(loop: Loop, chunk: Tensor) -> tuple[Tensor, ...]:
    """Return top, argmax, rest and, with entropy, weighted of ``chunk`` [n, V]: the argmax's block without it, and the others."""
    if chunk.shape[0] == 1:  # a size of 1 would be compiled for itself, and a lone row summed in other bits
        return tuple(part[:1] for part in _of_chunk(loop, chunk.repeat(2, 1)))
    vocab = chunk.shape[1]
    whole = vocab - vocab % BLOCK
    tops, *sums = _run(loop, _blocks(chunk))
    if whole < vocab:
        tail = (_with_entropy if len(sums) == 2 else _without_entropy)(chunk[:, None, whole:])
        tops, *sums = (torch.cat(pair, dim=1) for pair in zip((tops, *sums), tail))
    top, block = tops.max(dim=-1, keepdim=True)
    columns = (block * BLOCK).clamp_max_(vocab - BLOCK) + torch.arange(BLOCK, device=chunk.device)
    near = chunk.gather(1, columns).float().masked_fill_(columns < block * BLOCK, -torch.inf)
    place = near.max(dim=-1, keepdim=True).indices
    near = (near - top).scatter_(1, place, -torch.inf)
    below = (tops - top).scatter_(1, block, -torch.inf)
    scale, power = below.exp(), near.exp()
    rest = (scale * sums[0]).sum(-1) + power.sum(-1)
    measured = (top.squeeze(1), columns.gather(1, place).squeeze(1), rest)
    if len(sums) == 1:
        return measured
    others = scale * (sums[1] + below.clamp_min(LOWEST) * sums[0])
    return *measured, others.sum(-1) + (near.clamp_min(LOWEST) * power).sum(-1)


def _blocks(chunk: Tensor) -> Tensor:
    """Look at [n, V] as [n, K, BLOCK], without the last V % BLOCK columns."""
    return chunk[:, : chunk.shape[1] // BLOCK * BLOCK].view(chunk.shape[0], -1, BLOCK)


def _chunks(logits: Tensor, rows: int) -> Iterator[Tensor]:
    """Yield the rows of ``logits``, some at a time, and never a copy: always [n, V], which can be looked at as blocks."""
    if logits.dim() == 2:
        yield from torch.split(logits, rows)
    elif logits.stride(0) == logits.shape[1] * logits.stride(1):
        yield from _chunks(logits.view(-1, logits.shape[-1]), rows)
    else:
        for sequence in logits:
            yield from _chunks(sequence, rows)
