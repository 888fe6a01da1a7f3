"""A batch whose logits come in pieces is measured as if they had come whole."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from pplmon import TokenTally, token_stats
from pplmon.trainers.capture.chunked_head import Pieces


def batch(length: int = 10) -> tuple[Tensor, Tensor]:
    """Logits [3, T, 20] and targets, some of them ignored."""
    targets = torch.randint(20, (3, length))
    targets[0, 2] = -100
    return torch.randn(3, length, 20), targets


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_pieces_are_the_whole(shift: bool, masked: bool) -> None:
    """Uneven pieces give every column of the stats that the whole logits give, and only the last of them gives any."""
    (logits, targets), pieces, got = batch(), Pieces(), []
    mask = torch.rand(3, 10) < 0.7 if masked else None
    for part in logits.split((3, 5, 2), dim=1):
        columns = pieces.columns_of(part, targets)
        assert columns is not None
        got.append(pieces.measure(part, columns, targets, mask, shift, TokenTally()))
    want = token_stats(logits, targets, mask=mask, shift=shift)
    assert got[:2] == [None, None] and pieces.begun
    for field in fields(want):
        one, other = getattr(got[2], field.name), getattr(want, field.name)
        assert torch.equal(one, other) if isinstance(other, Tensor) else one == other, field.name


def test_what_is_no_piece() -> None:
    """Single positions (generation), more than is left, other rows, and flat logits."""
    logits, targets = batch()
    pieces = Pieces()
    for wrong in (logits[:, :1], torch.randn(3, 11, 20), logits[:2], logits[0]):
        assert pieces.columns_of(wrong, targets) is None
    assert pieces.columns_of(logits[:, :2], targets[0]) is None
    pieces.measure(logits[:, :6], slice(0, 6), targets, None, False, TokenTally())
    assert pieces.columns_of(logits[:, 6:], targets) == slice(6, 10)
    assert pieces.columns_of(logits[:, 5:], targets) is None


def test_after_a_whole_call_there_are_no_pieces() -> None:
    """Those before it are forgotten, and none is taken until the next batch."""
    (logits, targets), pieces = batch(), Pieces()
    pieces.measure(logits[:, :6], slice(0, 6), targets, None, False, TokenTally())
    pieces.refuse()
    assert not pieces.begun and pieces.columns_of(logits[:, :6], targets) is None
