"""The records that counting a batch takes: the tally's states, the batch's own data, and the tally's settings."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class State(NamedTuple):
    """The tensors of a tally."""

    sums: Tensor
    maxima: Tensor
    histogram: Tensor
    token_rows: Tensor
    sequence_rows: Tensor
    extra_sums: Tensor
    extra_maxima: Tensor


class Given(NamedTuple):
    """The data that came with a batch, checked and on its device. Shapes: R rows, T columns, N = R·T."""

    step: int
    micro_batch: int
    rank: int
    documents: Tensor | None  # [R, T] int64
    sample_ids: Tensor | None  # [R] int64
    position_ids: Tensor | None  # [N] int64


class Settings(NamedTuple):
    """The settings of a tally that counting needs."""

    min_sequence_tokens: int
    context: int
    whole_sequences: bool  # False under context parallelism
    token_bytes: Tensor | None  # [V] int64
    wants_valid: bool  # the caller needs the mask of the tokens that were counted
