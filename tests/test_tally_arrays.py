"""Counting over numpy and over torch's operators gives the same integers, and changes the states where they are."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import pplmon
from pplmon import TokenStats, TokenTally
from pplmon.tally.count.numpy_or_torch import OnNumpy, OnTorch
from pplmon.tally.records import State
from tests.test_laws import stats

ROWS = 7


def states(tally: TokenTally) -> dict[str, list[Any]]:
    """All integers of a tally."""
    return {name: getattr(tally, name).tolist() for name in State._fields}


def counted(batches: list[tuple[TokenStats, dict[str, Any]]], steps: list[int], **how: Any) -> dict[str, list[Any]]:
    """The states after some batches, with settings that keep few rows, so that merging has to choose."""
    tally = TokenTally(top_k=3, context=2, min_sequence_tokens=2, **how)
    for (batch, data), step in zip(batches, steps):
        tally.update(batch, step=step, **data)
    return states(tally)


@settings(
    max_examples=settings.default.max_examples * 3 // 2, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_numpy_and_torch_count_alike(monkeypatch: pytest.MonkeyPatch, data: st.DataObject) -> None:
    """For any stats, packed or not, shifted or not, whatever is missing of them, over some updates in any order of steps."""
    shift, parts = data.draw(st.booleans(), "shift"), []
    for _ in range(data.draw(st.integers(1, 3), "updates")):
        batch, documents = data.draw(stats(ROWS))
        lacking = data.draw(
            st.sets(st.sampled_from(["correct", "top_probability", "predicted", "vocab_size"])), "lacking"
        )
        fields = {**batch.__dict__, **dict.fromkeys(lacking), "shift": shift}
        if shift:  # the last logits of a row have no target
            last = torch.arange(batch.nll.numel()) % batch.batch_shape[1] == batch.batch_shape[1] - 1
            fields |= {"nll": batch.nll.masked_fill(last, 0.0), "scored": batch.scored & ~last}
        elif data.draw(st.booleans(), "flat"):
            fields["batch_shape"] = (batch.nll.numel(),)
            documents = documents.flatten()
        given_too = {"document_ids": documents} if data.draw(st.booleans(), "packed") else {}
        if data.draw(st.booleans(), "placed"):  # against the order of the tokens, which decides between equal losses
            given_too["position_ids"] = torch.arange(batch.nll.numel()).flip(0).view(fields["batch_shape"])
        parts.append((TokenStats(**fields), given_too))
    steps = data.draw(st.permutations(range(len(parts))), "steps")
    table = data.draw(st.sampled_from([None, torch.tensor([1, 2, 0, 7])]), "bytes")
    with monkeypatch.context() as patch:
        patch.setattr(pplmon.tally.count.by_arrays, "arrays_on", OnTorch)
        on_torch = counted(parts, steps, token_bytes=table)
    assert counted(parts, steps, token_bytes=table) == on_torch


@pytest.mark.parametrize("xp", [OnTorch(torch.device("cpu")), OnNumpy()], ids=["torch", "numpy"])
def test_the_operations_that_are_spelled_differently(xp: OnTorch | OnNumpy) -> None:
    """Each gives what its docstring says, in int64, with ties as they stand."""

    def of(*values: int) -> Any:
        return xp.of(torch.tensor(values))

    assert xp.vector([3, xp.count(xp.of(torch.tensor([True, False, True])))]).tolist() == [3, 2]
    assert str(xp.full((2,), 7).dtype).endswith("int64") and xp.full((2,), 7).tolist() == [7, 7]
    assert xp.sums_by(of(0, 3, 3, 1), of(5, 2, 4, 1)).tolist() == [5, 1, 0, 6]
    assert xp.running_maximum(of(1, 0, 3, 2)).tolist() == [1, 1, 3, 3]
    losses = of(4, 9, -1, 9, 4, 7)
    in_turn = xp.worst(losses, 4, 32, lambda index: (index * 0, index))
    assert in_turn.tolist() == [1, 3, 5, 0] and losses[in_turn].tolist() == [9, 9, 7, 4]
    lowest = -(2**63)  # nothing may overflow where −x would
    assert xp.order(of(2, 5, 5, 5, lowest), of(0, 1, 0, 0, 0), of(0, 0, 9, 3, 0)).tolist() == [3, 2, 1, 0, 4]
    counts, limited = of(1, 1, 1), of(3, 8)
    xp.add_counts(counts, of(2, 2, 0), xp.of(torch.tensor([True, True, False])))
    xp.limit(limited, 5)
    assert counts.tolist() == [1, 1, 3] and limited.tolist() == [3, 5]
    assert isinstance(xp.tensor(limited), Tensor)


def test_numpy_counts_cpu_tensors_in_their_own_memory() -> None:
    """No copy is made on the way, so states change in place."""
    tensor = torch.zeros(3)
    OnNumpy().of(tensor)[1] = 5
    assert tensor.tolist() == [0, 5, 0] and isinstance(OnNumpy().of(tensor), np.ndarray)


def test_states_stay_where_they_are() -> None:
    """Updates, reset, clear, sync, loading and adding keep every address: a captured graph counts on."""
    tally = TokenTally()
    before = {name: getattr(tally, name).data_ptr() for name in State._fields if getattr(tally, name).numel()}
    logits, targets = torch.randn(2, 20, 11), torch.randint(11, (2, 20))
    tally.update(logits, targets)
    saved = tally.totals()
    tally.reset()
    tally.add_totals(saved)
    tally.signal("leaving")
    tally.add_duplicates(1)
    tally.clear()
    assert states(tally) == states(TokenTally())
    assert {name: getattr(tally, name).data_ptr() for name in before} == before
    other = TokenTally()
    other.update(logits, targets)
    tally.load_state_dict(other.state_dict())
    tally.sync(distributed_available=lambda: True)
    tally.sync(should_sync=False)  # torchmetrics does nothing here, and so do we
    assert states(tally) == states(other)
    tally.unsync()
    assert {name: getattr(tally, name).data_ptr() for name in before} == before
    tally.update(logits, targets)
    assert tally.report().tokens == 80


def test_a_read_out_keeps_what_it_was_started_with() -> None:
    """What is counted while a read-out is under way belongs to the next."""
    tally = TokenTally()
    logits, targets = torch.randn(2, 20, 11), torch.randint(11, (2, 20))
    tally.update(logits, targets)
    under_way = tally.read_out()
    expected = tally.local_totals()
    tally.clear()
    tally.update(logits * 9, targets)
    assert under_way.totals() == under_way.local() == expected


def test_loading_leaves_what_was_loaded_alone() -> None:
    """The dictionary that a tally was loaded from does not change when the tally counts on."""
    tally, saved = TokenTally(), TokenTally().state_dict()
    kept = {key: value.clone() for key, value in saved.items()}
    tally.load_state_dict(saved)
    tally.update(torch.randn(2, 20, 11), torch.randint(11, (2, 20)))
    assert all(torch.equal(saved[key], kept[key]) for key in kept)


def test_states_made_in_inference_mode_count_on_outside() -> None:
    """Validation may move or reset a tally under inference_mode, where torch makes tensors that cannot change later."""
    with torch.inference_mode():
        tally = TokenTally()
        tally.update(torch.randn(2, 20, 11), torch.randint(11, (2, 20)))
        assert tally.sums.is_inference()
    tally.update(torch.randn(2, 20, 11), torch.randint(11, (2, 20)))
    assert tally.report().tokens == 80
    tally.reset()
    assert tally.report().tokens == 0
