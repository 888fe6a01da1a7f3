"""The worst tokens and sequences: the right ones, in the right order, with an address that leads back to the text."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pplmon
from pplmon import TokenStats, TokenTally, WorstToken
from pplmon.report.texts import Texts
from tests.reference import tokens_of


def quiet(rows: int = 4, length: int = 12, vocab: int = 50) -> tuple[Tensor, Tensor]:
    """A model that is right everywhere: every loss is near 0. Ids are 10·row + column, so that each is its address."""
    targets = (10 * torch.arange(rows)[:, None] + torch.arange(length)) % vocab
    logits = torch.nn.functional.one_hot(targets, vocab).float() * 12
    return logits, targets


def plant(logits: Tensor, targets: Tensor, row: int, column: int, nats: float, wrong: int = 49) -> None:
    """Make one target cost about ``nats``, with ``wrong`` in its place."""
    logits[row, column] = -100.0
    logits[row, column, wrong] = 0.0
    logits[row, column, targets[row, column]] = -nats


def worst_of(*args: Any, context: int = 2, **how: Any) -> tuple[WorstToken, ...]:
    """The worst tokens of one update."""
    tally = TokenTally(top_k=4, context=context, shift=how.pop("shift", False))
    tally.update(*args, **how)
    return tally.report().worst


def test_address_of_a_token() -> None:
    """Everything that names a token is there: where, when, what was wanted, what was said, and how sure."""
    logits, targets = quiet()
    plant(logits, targets, 2, 7, 40.0)
    tally = TokenTally(top_k=2, context=2)
    tally.update(logits[:2], targets[:2], step=8, micro_batch=5, sample_ids=torch.tensor([70, 71]))
    tally.update(logits[2:], targets[2:], step=9, micro_batch=3, sample_ids=torch.tensor([2**62, -5]))
    worst = tally.report().worst[0]
    assert worst.loss == pytest.approx(40)
    assert (worst.step, worst.micro_batch, worst.rank, worst.sequence, worst.position) == (9, 3, 0, 0, 7)
    assert (worst.target, worst.predicted, worst.sample_id) == (27, 49, 2**62)
    assert worst.predicted_probability == pytest.approx(1)
    assert worst.context_ids == (25, 26, 27, 28, 29)
    assert worst.context_losses[2] == worst.loss and max(worst.context_losses[:2] + worst.context_losses[3:]) < 1e-3
    assert worst.context_text is worst.target_text is worst.predicted_text is None
    sequence = tally.report().worst_sequences
    assert sequence == ()  # 12 tokens are fewer than min_sequence_tokens
    late = TokenTally()
    late.update(logits, targets, step=2**42, micro_batch=2**20 - 1)
    assert (late.report().worst[0].step, late.report().worst[0].micro_batch) == (2**42, 2**20 - 1)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("column", [1, 6, 11])
def test_context_ends_with_the_row(column: int, shift: bool) -> None:
    """At a row's edge the context is None outside, never the next row's text; with shift the column is the target's."""
    logits, targets = quiet()
    if shift:
        logits = torch.cat([logits[:, 1:], logits[:, :1]], dim=1)
    plant(logits, targets.roll(-1, 1) if shift else targets, 1, column - shift, 30.0)
    (worst, *_) = worst_of(logits, targets, shift=shift)
    assert (worst.sequence, worst.position, worst.target) == (1, column, 10 + column)
    want = [10 + c if 0 <= c < 12 else None for c in range(column - 2, column + 3)]
    assert list(worst.context_ids) == want
    unscored = 0 if shift else -1  # with shift nothing predicts column 0: it has an id, and no loss
    for c, loss in zip(range(column - 2, column + 3), worst.context_losses):
        assert (loss is None) == (not 0 <= c < 12 or c == unscored), c


def test_neighbours_that_are_not_scored() -> None:
    """A masked neighbour keeps its id and has no loss; an ignored or impossible one neither; a non-finite one NaN."""
    logits, targets = quiet()
    plant(logits, targets, 0, 5, 30.0)
    targets[0, 3], targets[0, 6] = -100, -3
    logits[0, 7] = torch.nan
    mask = torch.ones_like(targets, dtype=torch.bool)
    mask[0, 4] = False
    worst = worst_of(logits, targets, mask=mask)[1]
    assert worst.position == 5 and worst.context_ids == (None, 4, 5, None, 7)
    assert worst.context_losses[:2] == (None, None) and worst.context_losses[3] is None
    assert math.isnan(worst.context_losses[4])


def test_an_id_too_large_to_be_held_is_left_out() -> None:
    """A neighbour's id beyond 31 bits is left out; it does not come back as another token's."""
    stats = TokenStats.from_losses(torch.tensor([[1.0, 9.0, 1.0]]), torch.tensor([[2**33 + 5, 7, 2**31 - 1]]))
    assert worst_of(stats, context=1)[0].context_ids == (None, 7, 2**31 - 1)


@pytest.mark.parametrize("shift", [False, True])
def test_context_ends_with_the_document(shift: bool) -> None:
    """In a packed row the context stops at the document's border, and a target across the border is not scored."""
    logits, targets = quiet()
    documents = torch.tensor([5] * 4 + [9] * 4 + [5] * 4).expand(4, 12)
    if shift:
        logits = torch.cat([logits[:, 1:], logits[:, :1]], dim=1)
    plant(logits, targets.roll(-1, 1) if shift else targets, 3, 5 - shift, 30.0)
    plant(
        logits, targets.roll(-1, 1) if shift else targets, 3, 8 - shift, 60.0
    )  # the first token of the third document
    worst = worst_of(logits, targets, document_ids=documents, shift=shift, context=3)
    assert [w.position for w in worst[: 2 - shift]] == [5] if shift else [8, 5]
    at = worst[0 if shift else 1]
    assert at.context_ids == (None, None, 34, 35, 36, 37, None)
    assert (at.context_losses[2] is None) == shift  # with shift nothing predicts a document's first token


def test_flat_batches_give_the_flat_index() -> None:
    """[N, V] logits have no rows: the position is the index in the batch, and the sequence 0."""
    logits, targets = quiet()
    plant(logits, targets, 2, 7, 40.0)
    (worst, *_) = worst_of(logits.flatten(0, 1), targets.flatten())
    assert (worst.sequence, worst.position, worst.target) == (0, 31, 27)


def test_order_of_the_worst() -> None:
    """NaN comes before inf before finite, every NaN alike, and equal losses in the order of their address."""
    tally = TokenTally(top_k=6, context=0)
    nll = torch.tensor([[3.0, torch.inf, 3.0], [torch.nan, 7.0, 7.0]])
    other = torch.tensor([0xFFC00123 - 2**32], dtype=torch.int32).view(torch.float32)  # a NaN with a sign and a payload
    for step, row in ((2, torch.cat([nll[:1], torch.cat([other, nll[1, 1:]])[None]])), (1, nll)):
        tally.update(TokenStats.from_losses(row, torch.arange(6).view(2, 3)), step=step)
    worst = tally.report().worst
    assert [str(w.loss) for w in worst] == ["nan", "nan", "inf", "inf", "7.0", "7.0"]
    assert [(w.step, w.sequence, w.position) for w in worst] == [
        (1, 1, 0), (2, 1, 0), (1, 0, 1), (2, 0, 1), (1, 1, 1), (1, 1, 2),
    ]  # fmt: skip
    assert all(w.predicted is None and w.predicted_probability is None and w.sample_id is None for w in worst)


# 1, 3: fewer than there are tokens. 500: more, so that rows are missing.
@pytest.mark.parametrize("keep", [1, 3, 500])
def test_the_true_top_k(keep: int) -> None:
    """Over several updates with ties the kept rows are the first of all tokens, sorted by loss and address."""
    tally = TokenTally(top_k=keep, context=0)
    every = []
    for step in range(3):
        nll = torch.randint(0, 12, (4, 10)).float()
        tally.update(TokenStats.from_losses(nll, torch.zeros(4, 10, dtype=torch.int64)), step=step)
        every += [(-float(nll[b, t]), step, b, t) for b in range(4) for t in range(10)]
    got = [(-w.loss, w.step, w.sequence, w.position) for w in tally.report().worst]
    assert got == sorted(every)[:keep]


@pytest.mark.parametrize("least", [1, 5])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_worst_sequences(packed: bool, shift: bool, least: int) -> None:
    """The worst sequences are those of the reference, each with its mean, size, row, first column and names."""
    logits, targets = torch.randn(5, 24, 30) * 4, torch.randint(30, (5, 24))
    targets[torch.rand(5, 24) < 0.2] = -100
    logits[1, 3] = torch.nan
    documents = (torch.rand(5, 24) < 0.15).cumsum(1) * 7 if packed else None
    samples = torch.arange(5) * 100
    tally = TokenTally(top_k=6, shift=shift, min_sequence_tokens=least)
    tally.update(logits, targets, document_ids=documents, sample_ids=samples, step=4, micro_batch=2)
    groups: dict[Any, list[Any]] = {}
    for token in tokens_of(logits, targets, None, documents, shift=shift):
        groups.setdefault((token.row, token.sequence), []).append(token)
    want = []
    for group in groups.values():
        losses = [t.nll for t in group if t.valid]
        if len(losses) >= least:
            want.append((sum(losses) / len(losses), len(losses), group[0].row, group[0].column))
    want.sort(key=lambda w: -w[0])
    got = tally.report().worst_sequences
    assert len(got) == min(6, len(want))
    for have, (loss, tokens, row, column) in zip(got, want):
        assert have.loss == pytest.approx(loss, rel=1e-6)
        assert (have.tokens, have.sequence, have.position, have.sample_id) == (tokens, row, column, 100 * row)
        assert (have.step, have.micro_batch, have.rank) == (4, 2, 0)
        assert have.document_id == (int(documents[row, column]) if packed else None)
    assert tally.report().max_sequence_loss == pytest.approx(want[0][0], rel=1e-6)


def test_equal_sequences_in_order() -> None:
    """Sequences with one and the same mean come in the order of their address, also over updates."""
    tally = TokenTally(top_k=5, min_sequence_tokens=1)
    for step, rows in ((1, 200), (0, 3)):  # among 200 equal ones a bare topk picks some in the middle
        tally.update(
            TokenStats.from_losses(torch.full((rows, 4), 1.5), torch.zeros(rows, 4, dtype=torch.int64)), step=step
        )
    assert [(s.step, s.sequence) for s in tally.report().worst_sequences] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_decode_sees_no_negative_id() -> None:
    """decode gets known ids only: not ignored ones, not those outside the row, not a missing prediction."""
    seen: list[list[int]] = []

    def decode(ids: list[int]) -> str:
        seen.append(ids)
        return "".join(chr(97 + i % 26) for i in ids)

    nll = torch.tensor([[9.0, 1.0, 1.0, 8.0], [5.0, 5.0, 5.0, 7.0]])
    targets = torch.tensor([[1, -100, -5, 3], [4, 5, 6, 0]])
    known, unknown = TokenTally(context=2), TokenTally(context=2)
    known.update(TokenStats.from_losses(nll, targets, predicted=torch.full_like(targets, 2)))
    unknown.update(TokenStats.from_losses(nll, targets))
    report = known.report().decoded(Texts(decode))
    first = report.worst[0]
    assert (first.context_text, first.target_text, first.predicted_text) == ("b", "b", "c")
    assert report.worst[2].context_text == "fga"  # ids 5, 6, 0: an id of 0 is a token
    assert unknown.report().decoded(Texts(decode)).worst[0].predicted_text is None
    assert seen and all(i >= 0 for ids in seen for i in ids)
    assert isinstance(report, pplmon.Report) and report.numbers["tokens"] == 6
