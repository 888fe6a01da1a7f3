"""The doctor's measurements and decisions: exact, without waiting, and only where one set of tokens fits."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from pplmon.doctor import (
    Loss,
    Observation,
    Run,
    TokenSet,
    alignment,
    decide,
    fitting,
    judge,
    measure,
    row_digests,
)
from pplmon.doctor.alignment import SCORED, SHIFTS
from tests.test_laws import watched

VOCAB, ROWS, LENGTH = 30, 4, 12


def problem(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels with holes and padding, ids and their mask."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCAB, (ROWS, LENGTH), generator=made)
    ends = torch.randint(4, LENGTH + 1, (ROWS, 1), generator=made)
    mask = torch.arange(LENGTH) < ends
    ids = ids.masked_fill(~mask, 0)
    labels = ids.masked_fill(~mask | (torch.rand(ids.shape, generator=made) < 0.2), -100)
    return (torch.randn(ROWS, LENGTH, VOCAB, generator=made) * 3).to(dtype), labels, ids, mask.long()


def mean64(logits: Tensor, targets: Tensor, kept: Tensor, shift: int) -> tuple[float, int, float]:
    """The cross-entropy, its tokens and the mean of the rows' means, one token at a time in float64."""
    means, total, count = [], 0.0, 0
    for b in range(ROWS):
        row = [
            -logits[b, t].double().log_softmax(-1)[targets[b, t + shift]].item()
            for t in range(LENGTH)
            if 0 <= t + shift < LENGTH and kept[b, t + shift]
        ]
        total, count = total + sum(row), count + len(row)
        means += [sum(row) / len(row)] if row else []
    return total / max(count, 1), count, sum(means)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**20), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_every_candidate_is_measured_exactly(seed: int, dtype: torch.dtype) -> None:
    """Each shift and each set of targets, against float64: told, without padding, with it, with the rest, all, moved masks and the opposite."""
    logits, labels, ids, mask = problem(seed, dtype)
    told, padding = labels != -100, mask == 0
    sets = {
        "told": told,
        "no padding": told & ~padding,
        "padding too": told | padding,
        "prompt too": told | ~padding,
        "all": torch.ones_like(told),
        "mask late": F.pad(told[:, :-1], (1, 0)),
        "mask early": F.pad(told[:, 1:], (0, 1)),
        "opposite": ~told,
    }
    assert tuple(sets) == SCORED
    facts = measure(logits, labels, True, ids, mask).facts()
    if not facts.count("settled"):
        return  # so few targets that another shift fits, too
    for shift in SHIFTS:
        for name, kept in sets.items():
            mean, tokens, row_means = mean64(logits, ids, kept, shift)
            sums = facts.sums[TokenSet(shift, name)]
            assert sums.tokens == tokens
            if tokens:
                assert (sums.mean, sums.row_means) == pytest.approx((mean, row_means), rel=2e-6)


def test_smoothing_and_z_loss_are_measured_exactly() -> None:
    """The loss on a uniform target, and the square of the log-sum-exp, over the told targets."""
    logits, labels, _, _ = problem(3)
    sums = measure(logits, labels, True).facts().sums[TokenSet(1)]
    kept, wide = labels[:, 1:] != -100, logits[:, :-1].double()
    assert sums.uniform == pytest.approx(-wide.log_softmax(-1).mean(-1)[kept].sum().item(), rel=1e-6)
    assert sums.lse_squared == pytest.approx((wide.logsumexp(-1)[kept] ** 2).sum().item(), rel=1e-6)


def test_measuring_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read by the host but the values, which may be copied and read a step later."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)  # so that torch finds the argmax, as on a device
    logits, labels, ids, mask = problem(2)
    for more in ({}, {"input_ids": ids}, {"attention_mask": mask}, {"input_ids": ids, "attention_mask": mask}):
        watch = watched(lambda more=more: measure(logits, labels, True, **more))  # type: ignore[misc]
        assert not watch.waits, watch.waits
    digests = watched(lambda: row_digests(ids))
    assert not digests.waits
    measured = measure(logits, labels, True, ids, mask)
    assert measured.facts(measured.values.tolist()) == measured.facts()


def test_no_logits_are_kept() -> None:
    """When the caller lets go of them, they are gone, and what is left does not grow with the vocabulary."""
    sizes = []
    for vocab in (50, 5000):
        logits = torch.randn(ROWS, LENGTH, vocab)
        storage = StorageWeakRef(logits.untyped_storage())
        measured = measure(logits, torch.randint(50, (ROWS, LENGTH)), True)
        del logits
        gc.collect()
        assert storage.expired()
        held = [*vars(measured.tokens).values(), *(x for s in measured.stats.values() for x in vars(s).values())]
        sizes.append(sum(x.untyped_storage().nbytes() for x in held if isinstance(x, Tensor)))
        assert measured.values.numel() < 600
    assert sizes[0] == sizes[1]


def seen(logits: Tensor, labels: Tensor, loss: Any, shift: bool = False, **more: Any) -> Observation:
    run = more.pop("run", Run())
    measured = measure(logits, labels, shift, **more)
    return Observation(measured.facts(), Loss.of(loss), run, measured)


def shifted(logits: Tensor, labels: Tensor, by: int, **kwargs: Any) -> Tensor:
    length = LENGTH - by
    return F.cross_entropy(logits[:, :length].flatten(0, 1), labels[:, by:].flatten(), **kwargs)


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("scale", [0.05, 3.0], ids=["fresh", "trained"])
@pytest.mark.parametrize("by", [0, 1, 2])
def test_the_one_set_that_equals_the_loss_is_taken(by: int, scale: float, told: bool) -> None:
    """Whatever was told; in one batch, and in three."""
    batches = []
    for seed in range(3):
        logits, labels, _, _ = problem(seed)
        logits = logits * scale
        batches.append(seen(logits, labels, shifted(logits, labels, by), told))
    for number in (1, 3):
        assert decide({"model": batches[:number]}) == ("model", TokenSet(by))


def test_where_several_fit_nothing_is_decided() -> None:
    """A head at zero, whose every shift costs ln V; and a loss that is none of them."""
    logits, labels, _, _ = problem(0)
    assert decide({"model": [seen(0 * logits, labels, shifted(0 * logits, labels, 1), True)]}) is None
    assert decide({"model": [seen(logits, labels, shifted(logits, labels, 1) + 0.01, True)]}) is None
    assert decide({"model": [seen(logits, labels, math.nan, True)]}) is None
    assert decide({"model": []}) is None
    assert decide({"model": [seen(logits, labels, shifted(logits, labels, 1), True)]}) is not None


def test_a_batch_that_does_not_fit_undoes_the_decision() -> None:
    """It holds in each batch, or not at all."""
    batches = []
    for seed, by in ((0, 1), (1, 1), (2, 0)):
        logits, labels, _, _ = problem(seed)
        batches.append(seen(logits, labels, shifted(logits, labels, by)))
    assert decide({"model": batches[:2]}) == ("model", TokenSet(1))
    assert decide({"model": batches}) is None


def test_the_model_whose_loss_it_is_is_found() -> None:
    """A teacher and a student see the same batch; only one of them gives the loss. Two copies of it decide nothing."""
    teacher, student = [], []
    for seed in range(2):
        logits, labels, _, _ = problem(seed)
        other = problem(seed + 50)[0]
        loss = shifted(logits, labels, 1)
        student.append(seen(logits, labels, loss, True))
        teacher.append(seen(other, labels, loss, True))
    sources = {"self.teacher": teacher, "self.student": student}
    assert decide(sources) == ("self.student", TokenSet(1))
    assert decide({"a": student, "b": student}) is None


def test_a_loss_in_bf16_decides_where_it_can() -> None:
    """A trained model's shifts are far apart, a fresh one's are within the rounding."""
    logits, labels, ids, _ = problem(4)
    sure = logits + 9 * F.one_hot(ids.roll(-1, 1), VOCAB)
    loss = shifted(sure.bfloat16(), labels, 1)
    assert loss.dtype == torch.bfloat16
    decided = decide({"model": [seen(sure.bfloat16(), labels, loss)]})
    assert decided is not None and decided[1].shift == 1
    fresh = logits.bfloat16() * 0.01
    assert decide({"model": [seen(fresh, labels, shifted(fresh, labels, 1))]}) is None


def test_the_trainer_s_denominators_are_known() -> None:
    """num_items_in_batch, and accumulated batches that the step divides by itself."""
    logits, labels, _, _ = problem(0)
    total = shifted(logits, labels, 1, reduction="sum")
    assert decide({"m": [seen(logits, labels, total / 333, run=Run(items=333.0))]}) == ("m", TokenSet(1))
    mean = shifted(logits, labels, 1) / 8
    assert decide({"m": [seen(logits, labels, mean, run=Run(accumulation=8, divided=True))]}) == ("m", TokenSet(1))
    assert decide({"m": [seen(logits, labels, mean)]}) is None


def test_padding_that_is_not_there_makes_no_second_candidate() -> None:
    """Sets of the same tokens under several names are one, and go by the told one's."""
    logits, _, ids, _ = problem(0)
    full = ids.clamp_min(1)
    batch = seen(logits, full, shifted(logits, full, 1), input_ids=full, attention_mask=torch.ones_like(full))
    assert len({h.tokens for h in fitting([batch]) if h.factor == ""}) > 1
    assert decide({"model": [batch]}) == ("model", TokenSet(1))


@pytest.mark.parametrize("shift", SHIFTS)
def test_ids_tell_where_the_targets_stand(shift: int) -> None:
    """Where nearly all targets are inputs that far ahead, and few are under another shift; not where one in twenty is noise."""
    _, _, ids, _ = problem(0)
    ids = torch.randint(VOCAB, (8, 40), generator=torch.Generator().manual_seed(0))
    targets = ids.roll(-shift, 1)
    targets[:, : max(-shift, 0)] = -100
    targets[:, 40 - max(shift, 0) :] = -100
    logits = torch.randn(8, 40, VOCAB)
    assert alignment([measure(logits, targets, False, ids).facts()]) == shift
    noisy = torch.where(torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.05, 3, ids)
    assert alignment([measure(logits, targets, False, noisy).facts()]) is None
    assert alignment([measure(logits, targets, False).facts()]) is None
    in_turn = torch.randint(VOCAB, (8, 2)).repeat(1, 20)
    assert alignment([measure(logits, in_turn, False, in_turn).facts()]) is None  # two shifts fit


def test_more_batches_take_back_what_one_said_by_chance() -> None:
    """A cause is told where it holds in every batch."""
    batches = []
    for seed in range(2):
        logits, labels, _, _ = problem(seed)
        rows = (labels[:, 1:] != -100).sum(1).clamp_min(1)
        each = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
        loss = (each.sum(1) / rows).mean() if seed == 0 else shifted(logits, labels, 1) + 0.2
        batches.append(seen(logits, labels, loss, True))
    assert [f.kind for f in judge(batches[:1])] == ["per_sequence_mean"]
    assert "per_sequence_mean" not in [f.kind for f in judge(batches)]


@pytest.mark.parametrize(
    ("value", "dtype", "precision"),
    [
        (4.1234567, torch.float32, torch.float32),
        (4.125, torch.float32, torch.bfloat16),  # a bf16 loss that was cast
        (4.12890625, torch.float64, torch.float16),
        (4.1234567, torch.bfloat16, torch.bfloat16),
        (0.0, torch.float32, torch.float32),
        (math.inf, torch.float32, torch.float32),
    ],
)
def test_the_precision_of_a_loss_is_that_of_its_value(value: float, dtype: torch.dtype, precision: torch.dtype) -> None:
    """A value that bf16 or fp16 can hold was rounded to it, whatever its tensor is."""
    assert Loss(value, dtype).precision == precision


def test_torch_s_own_cross_entropy_of_low_precision_is_within_the_tolerance() -> None:
    """A hundred sums in bf16 and fp16, some of few tokens and some of thousands."""
    for seed in range(100):
        made = torch.Generator().manual_seed(seed)
        tokens, dtype = (7, 50, 400, 3000)[seed % 4], (torch.bfloat16, torch.float16)[seed // 4 % 2]
        logits = (torch.randn(tokens, 64, generator=made) * (0.1, 1, 5)[seed % 3]).to(dtype)
        targets = torch.randint(64, (tokens,), generator=made)
        loss, exact = F.cross_entropy(logits, targets), F.cross_entropy(logits.double(), targets).item()
        assert abs(loss.item() - exact) <= Loss.of(loss).tolerance(exact, 0.0)


def test_the_order_of_rows_is_not_in_their_sum() -> None:
    """The same rows in another order are the same; one row of eight makes a difference."""
    rows = torch.randint(1000, (8, 20), generator=torch.Generator().manual_seed(0))
    one, turned, other = (row_digests(x).sum() for x in (rows, rows.flip(0), torch.cat([rows[:7], rows[7:] + 1])))
    assert one == turned and one != other


def test_digests_tell_rows_apart() -> None:
    """Neither order nor padding nor small ids make two different rows one."""
    ids = torch.cartesian_prod(*[torch.arange(6)] * 5)
    assert len(set(row_digests(ids).tolist())) == 6**5
    assert torch.equal(row_digests(ids[:7].int()), row_digests(ids[:7]))
