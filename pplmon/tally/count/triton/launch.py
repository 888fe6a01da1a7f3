"""Count a batch on a GPU with three kernels, or four where sequences are packed, instead of some 180.

They add the same integers as ``sums`` and ``worst`` do; only p(target), through the device's own exp, may differ in its
last bits. Integer atomics give the same sums in any order. Nothing waits for the device, and the states are changed in
place, so that a captured graph can be replayed.

Importing this needs Triton.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pplmon.measure.tokens import TokenStats
from pplmon.report import layout
from pplmon.tally.count.sums import ROUNDING
from pplmon.tally.count.triton.counting import close_sequences, count, cut
from pplmon.tally.count.triton.finishing import finish
from pplmon.tally.records import Given, Settings, State

WIDTH = 512  # tokens, or sequences, of a program: an H200 counts 8,192 tokens in 31 µs so, and in 36 with 1024
MOST_TOKENS = 2**layout.ORDER_BITS  # the key of a sequence holds its number beside its mean loss
MOST_ROWS = 64  # rows are compared in pairs, in one program's registers
# Of the rows kept and those found, in the same registers: 8 rows take a context of 508, and 64 of 60.
MOST_CELLS = 2**14


class Scratch(NamedTuple):
    """Memory for one batch, from the caching allocator: 16 bytes a sequence, a few kilobytes, and 9 bytes a packed token."""

    of_sequences: Tensor  # [2, S] int64: valid tokens and their loss in 2**-32 nats
    candidates: Tensor  # [programs, K] int64 keys
    found: Tensor  # [K, C] and [K, C of sequences] int64
    first: Tensor  # [N] int64, the name of each token's sequence
    crosses: Tensor  # [N] uint8


def fits(state: State, stats: TokenStats) -> bool:
    """Return True within the kernels' limits: up to 2**20 tokens in a micro-batch and 64 rows kept, not too wide."""
    keep, columns = state.token_rows.shape
    merged = triton.next_power_of_2(2 * keep) * triton.next_power_of_2(columns)
    return stats.nll.numel() <= MOST_TOKENS and keep <= MOST_ROWS and merged <= MOST_CELLS


def add(state: State, stats: TokenStats, given: Given, settings: Settings) -> Tensor:
    """Count one batch, and return which tokens were valid, [N] bool (empty where ``settings`` do not ask for it)."""
    if gapped := _gapped(stats.__dict__):
        stats = replace(stats, **gapped)
    if gapped := _gapped(given._asdict()):
        given = given._replace(**gapped)
    rows, length = stats.batch_shape if len(stats.batch_shape) == 2 else (1, *stats.batch_shape)
    packed = given.documents is not None and settings.whole_sequences
    has_sequences = settings.whole_sequences and (packed or len(stats.batch_shape) == 2)
    tokens, keep = rows * length, len(state.token_rows)
    sequences = (tokens if packed else rows) if has_sequences else 0
    of_tokens, of_sequences = triton.cdiv(tokens, WIDTH), triton.cdiv(sequences, WIDTH)
    scratch = _scratch(state, tokens if packed else 0, sequences, of_tokens + of_sequences)
    valid = stats.nll.new_empty(tokens if settings.wants_valid else 0, dtype=torch.uint8)
    vocab = -1 if stats.vocab_size is None else stats.vocab_size
    crosses = packed and stats.shift
    whole, none = settings.token_bytes, stats.nll  # what is missing has an address that is not read
    with torch.cuda.device_of(stats.nll):  # type: ignore[no-untyped-call]
        if packed:
            cut[(rows,)](
                documents=given.documents,
                first=scratch.first,
                crosses=scratch.crosses,
                length=length,
                SHIFT=stats.shift,
                WIDTH=min(WIDTH, triton.next_power_of_2(length)),
            )
        count[(of_tokens,)](
            nll_=stats.nll,
            scored_=_bytes(stats.scored),
            invalid_=_bytes(stats.invalid),
            crosses_=scratch.crosses,
            correct_=none if stats.correct is None else _bytes(stats.correct),
            top_=none if stats.top_probability is None else stats.top_probability,
            targets_=stats.targets,
            first_=scratch.first,
            bytes_=none if whole is None else whole,
            sums=state.sums,
            maxima=state.maxima,
            histogram=state.histogram,
            of_sequences=scratch.of_sequences,
            candidates=scratch.candidates,
            valid_=valid,
            tokens=tokens,
            length=length,
            sequences=sequences,
            vocab=vocab,
            uniform=math.log(vocab) * ROUNDING if vocab > 0 else math.inf,
            table=0 if whole is None else len(whole),
            HAS_SEQUENCES=has_sequences,
            PACKED=packed,
            CROSSES=crosses,
            HAS_CORRECT=stats.correct is not None,
            HAS_TOP=stats.top_probability is not None,
            HAS_BYTES=whole is not None,
            WANTS_VALID=settings.wants_valid,
            K=keep,
            WIDTH=WIDTH,
        )
        if has_sequences:
            close_sequences[(of_sequences,)](
                of_sequences=scratch.of_sequences,
                sums=state.sums,
                maxima=state.maxima,
                candidates=scratch.candidates[of_tokens:],
                sequences=sequences,
                least=max(settings.min_sequence_tokens, 1),
                K=keep,
                WIDTH=WIDTH,
            )
        columns = state.token_rows.shape[1]
        finish[(2,)](
            nll_=stats.nll,
            scored_=_bytes(stats.scored),
            crosses_=scratch.crosses,
            predicted_=none if stats.predicted is None else stats.predicted,
            top_=none if stats.top_probability is None else stats.top_probability,
            targets_=stats.targets,
            first_=scratch.first,
            documents_=none if given.documents is None else given.documents,
            samples_=none if given.sample_ids is None else given.sample_ids,
            positions_=none if given.position_ids is None else given.position_ids,
            sequence_sums=scratch.of_sequences,
            sums=state.sums,
            maxima=state.maxima,
            histogram=state.histogram,
            token_rows=state.token_rows,
            sequence_rows=state.sequence_rows,
            found=scratch.found,
            candidates=scratch.candidates,
            length=length,
            vocab=vocab,
            missing=_missing(stats, has_sequences, whole),
            step=given.step,
            micro_batch=given.micro_batch,
            rank=given.rank,
            of_tokens=of_tokens * keep,
            of_sequences=of_sequences * keep,
            SHIFT=int(stats.shift),
            HAS_SEQUENCES=has_sequences,
            PACKED=packed,
            CROSSES=crosses,
            HAS_PREDICTED=stats.predicted is not None,
            HAS_TOP=stats.top_probability is not None,
            HAS_SAMPLES=given.sample_ids is not None,
            HAS_POSITIONS=given.position_ids is not None,
            CONTEXT=settings.context,
            K=keep,
            C=columns,
            C_SEQUENCE=layout.SEQUENCE_COLUMNS,
            TWICE=triton.next_power_of_2(2 * keep),
            WIDE=triton.next_power_of_2(columns),
            WIDTH=WIDTH,
        )
    return valid.view(torch.bool)


def _scratch(state: State, packed: int, sequences: int, programs: int) -> Scratch:
    keep, columns = state.token_rows.shape

    def empty(*shape: int) -> Tensor:
        return state.sums.new_empty(shape)

    return Scratch(
        of_sequences=state.sums.new_zeros(2, sequences),
        candidates=empty(programs, keep),
        found=empty(keep * (columns + layout.SEQUENCE_COLUMNS)),
        first=empty(packed),
        crosses=state.sums.new_empty(packed, dtype=torch.uint8),
    )


def _missing(stats: TokenStats, has_sequences: bool, token_bytes: Tensor | None) -> int:
    """Return one bit for each of ``layout.KNOWABLE`` that the batch lacks, in their order."""
    known = {
        "sequences": has_sequences or None,
        "correct": stats.correct,
        "top_probability": stats.top_probability,
        "vocab": stats.vocab_size,
        "bytes": token_bytes,
    }
    return sum(1 << bit for bit, what in enumerate(layout.KNOWABLE) if known[what] is None)


def _gapped(columns: dict[str, Any]) -> dict[str, Any]:
    """Return dense copies of tensors with gaps, such as one column of a table: kernels are given no strides."""
    tensors = ((name, value) for name, value in columns.items() if isinstance(value, Tensor))
    return {name: tensor.contiguous() for name, tensor in tensors if not tensor.is_contiguous()}


def _bytes(mask: Tensor) -> Tensor:
    return mask.view(torch.uint8)
