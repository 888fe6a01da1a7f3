"""Measure a batch on a CUDA device in one launch: each logit is read once, and no logits-sized memory is taken.

Triton is imported, and the program compiled, at the first batch. A compiler or driver that gets the program wrong would give
wrong numbers that look plausible. So before the first batch of a kind (dtype, mask, shift, …) the program and the reference
both measure two small batches. If they differ, or the program fails, one warning says so and the reference measures all batches.
"""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from pplmon.measure import eager
from pplmon.measure.waiting import waiting_allowed

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CHUNK_BYTES = 16  # what one thread loads at once, the widest load there is
CHUNKS_PER_THREAD = 2  # two loads and two states in flight per thread hide more of the memory's delay than one
MIN_ROUNDS = 8  # the end of a row costs a warp what five rounds of the loop do, so a short row takes fewer warps
MAX_WARPS = 4  # training has thousands of rows: a longer row needs more rounds, not more warps

_broken = False  # set where Triton failed on this machine
_proved: set[tuple[object, ...]] = set()  # what decides which program is compiled


class Columns(NamedTuple):
    """The columns of ``TokenStats``, each [N]."""

    nll: Tensor
    correct: Tensor
    top_probability: Tensor
    predicted: Tensor
    targets: Tensor
    scored: Tensor
    invalid: Tensor
    entropy: Tensor | None


def fits(logits: Tensor) -> bool:
    """Return True where this kernel can measure ``logits``: plain CUDA tensors, where Triton works."""
    return logits.is_cuda and type(logits) is Tensor and not _complaint(logits) and _installed() and not _broken


def check(logits: Tensor) -> None:
    """Raise where this kernel was asked for by name and cannot measure ``logits``."""
    complaint = _complaint(logits)
    if not logits.is_cuda and not interpreted():
        complaint = f"logits on {logits.device}"
    if complaint:
        raise ValueError(
            "kernel='triton' measures CUDA logits in bfloat16, float16 or float32 whose last dimension is contiguous, "
            f"got {complaint}; kernel=None takes the fastest kernel that fits"
        )
    if not _installed():
        raise ValueError("kernel='triton' needs the package triton, which is not installed; kernel=None does without")


def measure(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    ignore_index: int | None,
    shift: bool,
    entropy: bool,
    required: bool = False,
) -> Columns | None:
    """Measure ``logits`` [B, T, V] or [N, V] against ``targets`` [B, T] or [N], where ``mask`` (bool alike) is True.

    Arguments and results are those of ``token_stats``, which has checked them. A row with a NaN predicts its first NaN,
    as in the reference. Returns None where Triton does not work here, unless it is ``required``.
    """
    global _broken  # noqa: PLW0603 - a machine without a compiler has none for the next batch either
    columns = _outputs(logits, entropy)
    targets = targets.detach().to(logits.device).contiguous()
    mask = None if mask is None else mask.to(logits.device).contiguous()
    if not targets.numel():
        return columns
    try:
        flags = (mask is not None, ignore_index, shift, entropy)
        kind = (logits.device, logits.dtype, shape_of_program(logits.shape[-1] * logits.element_size()), *flags)
        if not required and kind not in _proved:
            if logits.is_cuda and torch.cuda.is_current_stream_capturing():
                return None  # to compare is to wait, which a graph under capture cannot
            with waiting_allowed(logits.device):
                for vocab in (logits.shape[-1], logits.shape[-1] + 1):  # rows of other alignments
                    _prove(logits.device, logits.dtype, vocab, *flags)
            _proved.add(kind)
        _launch(logits, targets, mask, columns, ignore_index, shift)
    except Exception as error:
        if required:
            raise
        _broken = True
        warnings.warn(
            f"pplmon: the Triton kernel does not work here: {type(error).__name__}: {error}; from now on logits are "
            "measured in plain PyTorch: the same numbers, more slowly",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return columns


def _prove(
    device: torch.device,
    dtype: torch.dtype,
    vocab: int,
    masked: bool,
    ignore_index: int | None,
    shift: bool,
    entropy: bool,
) -> None:
    """Compare with the reference on a few rows, with ties, and what is not finite, among them; raise where it differs."""
    index = torch.arange(8 * vocab, device=device)
    logits = ((index * 7919 % 1009).view(2, 4, vocab).float() / 53).to(dtype)
    logits[0, 1, 5 % vocab], logits[0, 2, 9 % vocab] = torch.nan, torch.inf
    logits[1, 0, 3:70], logits[1, 2] = -torch.inf, 0.25
    targets = index[:8].view(2, 4) * 83 % vocab
    if ignore_index is not None:
        targets[0, 3] = ignore_index
    mask = index[:8].view(2, 4) != 5 if masked else None
    columns = _outputs(logits, entropy)
    _launch(logits, targets, mask, columns, ignore_index, shift)
    if shift:
        targets, mask = targets.roll(-1, 1), None if mask is None else mask.roll(-1, 1)
    scored = (targets >= 0) & (targets < vocab) & (targets != (-1 if ignore_index is None else ignore_index))
    if mask is not None:
        scored = scored & mask
    if shift:
        scored[:, -1] = False
    expected = eager.measure(logits, torch.where(scored, targets, 0).flatten(), entropy)._asdict()
    expected["nll"] = torch.where(scored.flatten(), expected["nll"], 0.0)
    expected |= {"scored": scored.flatten(), "targets": targets.flatten()}
    wrong = [
        name for name, value in expected.items() if value is not None and not _agree(getattr(columns, name), value)
    ]
    if wrong:
        raise ArithmeticError(f"{', '.join(wrong)} of a few rows of {dtype} logits differ from the reference's")


def _agree(one: Tensor, two: Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, two)  # allclose would compare integers in the user's default dtype
    return torch.allclose(one, two, rtol=1e-5, atol=1e-5, equal_nan=True)


def shape_of_program(row_bytes: int) -> tuple[int, int]:
    """Return (lanes, warps) for rows of so many bytes. A warp takes in 1 KiB a round."""
    per_round = 32 * CHUNK_BYTES * CHUNKS_PER_THREAD
    warps = 1
    while warps < MAX_WARPS and row_bytes >= 2 * warps * MIN_ROUNDS * per_round:
        warps *= 2
    return 32 * warps * CHUNKS_PER_THREAD, warps


def interpreted() -> bool:
    """Return True where Triton interprets programs in Python, on any tensors: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def _complaint(logits: Tensor) -> str:
    if logits.dtype not in DTYPES:
        return str(logits.dtype)
    return "" if logits.stride(-1) == 1 or logits.shape[-1] == 1 else f"a last stride of {logits.stride(-1)}"


def _outputs(logits: Tensor, entropy: bool) -> Columns:
    # Three allocations, not eight: the host's time counts where batches are small.
    count = logits.shape[:-1].numel()
    floats = torch.empty(3 if entropy else 2, count, dtype=torch.float32, device=logits.device).unbind()
    ints = torch.empty(2, count, dtype=torch.int64, device=logits.device).unbind()
    flags = torch.empty(3, count, dtype=torch.bool, device=logits.device).unbind()
    return Columns(
        nll=floats[0],
        top_probability=floats[1],
        entropy=floats[2] if entropy else None,
        predicted=ints[0],
        targets=ints[1],
        correct=flags[0],
        scored=flags[1],
        invalid=flags[2],
    )


def _launch(
    logits: Tensor, targets: Tensor, mask: Tensor | None, columns: Columns, ignore_index: int | None, shift: bool
) -> None:
    from pplmon.measure.triton.program import measure_row

    vocab = logits.shape[-1]
    lanes, warps = shape_of_program(vocab * logits.element_size())
    # Triton launches on the current device, which need not be that of the logits.
    with torch.cuda.device(logits.device) if logits.is_cuda else nullcontext():
        measure_row[(targets.numel(),)](
            logits=logits,
            targets=targets,
            mask=targets if mask is None else mask,
            sequence_stride=logits.stride(0) if logits.dim() == 3 else 0,
            row_stride=logits.stride(-2),
            length=logits.shape[-2],
            vocab=vocab,
            nll=columns.nll,
            top_probability=columns.top_probability,
            spread=columns.nll if columns.entropy is None else columns.entropy,
            predicted=columns.predicted,
            moved=columns.targets,
            correct=columns.correct,
            scored=columns.scored,
            invalid=columns.invalid,
            masked=mask is not None,
            ignore_index=ignore_index,
            shift=int(shift),
            entropy=columns.entropy is not None,
            C=lanes,
            K=CHUNK_BYTES // logits.element_size(),
            num_warps=warps,
        )
