"""The kernels that count on a GPU add the integers that the array operations add.

They run where Triton programs can: on a GPU, else in Triton's interpreter (see ``tests.interpreter``).
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from pplmon import TokenStats, TokenTally
from pplmon.tally.count import choose as batch
from pplmon.tally.records import Given, Settings, State
from tests import counting_tasks
from tests.counting_tasks import counted, placed
from tests.interpreter import run, run_afresh
from tests.test_laws import LENGTH, stats

pytest.importorskip("triton", reason="Triton is not installed: it has no build for this platform")


def alike(parts: list[tuple[TokenStats, dict[str, Any]]], **how: Any) -> None:
    """Kernels and array operations find the same integers, and the same mean p(target) up to the rounding of exp."""
    by_kernels, by_arrays = run(counted, parts, kernels=True, **how), counted(parts, kernels=False, **how)
    for name in by_arrays:
        if name == "mean_target_probability":
            assert by_kernels[name] == pytest.approx(by_arrays[name], rel=1e-6, nan_ok=True)
        else:
            assert by_kernels[name] == by_arrays[name], name


@settings(max_examples=settings.default.max_examples // 4)
@given(data=st.data())
def test_the_kernels_count_what_the_arrays_count(data: st.DataObject) -> None:
    """For any stats, packed or not, shifted or not, whatever is missing of them, over two updates."""
    shift, parts, rows = data.draw(st.booleans(), "shift"), [], data.draw(st.integers(1, 3), "rows")
    for _ in range(2):
        batch, documents = data.draw(stats(rows))
        lacking = data.draw(
            st.sets(st.sampled_from(["correct", "top_probability", "predicted", "vocab_size"])), "lacking"
        )
        fields = {**batch.__dict__, **dict.fromkeys(lacking), "shift": shift}
        given_too = {}
        if data.draw(st.booleans(), "flat"):
            fields["batch_shape"] = (batch.nll.numel(),)
            documents = documents.flatten()
        else:
            given_too["sample_ids"] = torch.arange(rows) * 7
        if data.draw(st.booleans(), "packed"):
            given_too["document_ids"] = documents
        if data.draw(st.booleans(), "placed"):
            given_too["position_ids"] = torch.arange(rows * LENGTH).flip(0).view(fields["batch_shape"]) * 3
        parts.append((TokenStats(**fields), given_too))
    how = {
        "token_bytes": data.draw(st.sampled_from([None, torch.tensor([1, 2, 0, 7])]), "bytes"),
        "context_parallel": not shift and data.draw(st.booleans(), "context parallel"),
        "top_k": data.draw(st.sampled_from([1, 3, 8]), "top_k"),
    }
    alike(parts, **how)


# 1: one token. 1023, 1024, 1025: around two programs' tokens. 300 rows of 7: many rows in a program, and rows in two of them.
# 2 of 1500: a program in two rows. 1100 rows: two programs close the sequences, as they do the documents of 1025 tokens.
SHAPES = [(1, 1), (1, 511), (1, 513), (1, 1023), (2, 1024), (1, 1025), (150, 7), (2, 1500)]


@pytest.mark.parametrize(
    ("shape", "packed"), [((1100, 2), False), *((s, p) for s in SHAPES for p in (False, True))], ids=str
)
def test_batches_of_several_programs(shape: tuple[int, int], packed: bool) -> None:
    """What programs find is put together, and a document may lie in two of them."""
    nll = torch.rand(shape) * 8
    nll[torch.rand(shape) < 0.01] = 7.5  # ties between programs
    targets = torch.randint(50, shape)
    stats_ = TokenStats.from_losses(nll, targets, targets < 9, torch.rand(shape), torch.randint(50, shape), 50)
    documents = {"document_ids": (torch.rand(shape) < 0.01).cumsum(1)} if packed else {}
    parts = [(stats_, documents)] * 2
    alike(parts, top_k=8)


@pytest.mark.parametrize("packed", [False, True])
def test_columns_with_gaps(packed: bool) -> None:
    """As a column of a table or a slice of a batch has them: what lies between the values is not counted."""
    shape = (3, 40)
    top, ids = torch.rand(shape), torch.randint(50, shape)
    stats_ = TokenStats.from_losses(torch.rand(shape) * 8, torch.randint(50, shape), ids < 25, top, ids, 50)
    data = {"sample_ids": torch.arange(3), "position_ids": torch.arange(120).view(shape)}
    if packed:
        data["document_ids"] = (torch.rand(shape) < 0.1).cumsum(1)
    how = {"token_bytes": placed(torch.arange(50), gaps=True), "gaps": True}
    alike([(stats_, data)] * 2, **how)


def test_kernels_know_the_places_of_cells_from_their_lists() -> None:
    """Cells in another order, and more of them: the kernels follow, as the array operations do."""
    by_kernels, by_arrays = run_afresh(counting_tasks.in_another_order)
    assert by_kernels.pop("mean_target_probability") == pytest.approx(by_arrays.pop("mean_target_probability"))
    assert by_kernels == by_arrays and sum(by_arrays["sums"]) > 0 and by_arrays["sums"][-1] == 0


def test_sums_stay_at_the_ceiling() -> None:
    """As the array operations do, the kernels let no sum wrap."""
    assert run(counting_tasks.saturated)


def test_extras_learn_which_tokens_count() -> None:
    """An extra is given the same mask by the kernels as by the array operations."""
    assert run(counting_tasks.mask_of_an_extra, kernels=True) == counting_tasks.mask_of_an_extra(kernels=False)
    assert counting_tasks.mask_of_an_extra(kernels=False) == [True, False, False, True]


def test_what_does_not_fit_is_counted_otherwise() -> None:
    """Beyond their limits the kernels are not asked."""
    fits = {"8 rows": True, "65 rows": False, "64 wide rows": False, "more than 2^20 tokens": False}
    assert run(counting_tasks.what_fits) == fits


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """What runs in the interpreter need not compile: it does for the H100's and the A100's architectures, without one."""
    script = Path(__file__).with_name("compile_counting.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.split()) == sorted(2 * ["cut", "count", "close_sequences", "finish"])


def test_a_batch_of_another_size_compiles_nothing() -> None:
    """Triton specializes in nothing that a batch changes: not in alignments, not in a step that outgrows int32 by its shift."""
    from pplmon.tally.count.triton.launch import close_sequences, count, cut, finish

    for kernel in (cut, count, close_sequences, finish):
        special = [p.name for p in kernel.params if not p.is_constexpr and not p.do_not_specialize]
        assert special == [], kernel.__name__


@pytest.mark.parametrize("kind", counting_tasks.KINDS)
def test_kernels_that_prove_right_are_taken(kind: str) -> None:
    """For every kind of batch."""
    assert run(counting_tasks.proved, kind) == (True, [])


def test_on_a_cpu_there_is_nothing_to_prove(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays count there."""
    monkeypatch.setattr(batch, "_prove", lambda kind: pytest.fail("proved"))
    TokenTally().update(torch.randn(2, 20, 7), torch.randint(7, (2, 20)))


# One batch and what makes it another kind: a program of its own is compiled, and proved.
OTHERS = {
    "shift": {"shift": True},
    "flat": {"batch_shape": (40,)},
    "no vocabulary": {"vocab_size": None},
    "no hits": {"correct": None},
}


@pytest.mark.parametrize("other", OTHERS)
def test_kinds_are_told_apart(other: str) -> None:
    """Batches of other sizes are of one kind; what makes a program another is not."""
    tally = TokenTally()

    def kind(rows: int, **changed: Any) -> batch.Kind:
        stats = TokenStats.from_losses(
            torch.rand(rows, 20), torch.zeros(rows, 20).long(), torch.ones(rows, 20), vocab_size=3
        )
        settings = Settings(2, 8, whole_sequences=True, token_bytes=None, wants_valid=False)
        return batch.kind_of(tally._state(), replace(stats, **changed), Given(0, 0, 0, None, None, None), settings)

    assert kind(2) == kind(5) and kind(2) != kind(2, **OTHERS[other])


@pytest.mark.parametrize("state", [name for name in State._fields if not name.startswith("extra_")])
def test_kernels_that_count_wrongly_are_not_taken(state: str) -> None:
    """One integer that is off in any state is found, and said."""
    taken, (warning,) = run(counting_tasks.proved, off_by_one=state)
    assert not taken
    assert f"counted {state} wrongly" in warning and "counted by PyTorch's operators instead" in warning


def test_kernels_that_cannot_be_run_are_not_taken() -> None:
    """As where Triton finds no C compiler for its launcher."""
    taken, (warning,) = run(counting_tasks.proved, broken="Failed to find C compiler")
    assert not taken and "could not be run: RuntimeError: Failed to find C compiler" in warning


def test_the_proof_is_made_once_and_not_within_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph under capture cannot wait; the next batch outside it can. After a failure no other kind is tried."""
    asked: list[batch.Kind] = []
    full = counting_tasks.FULL._replace(device=torch.device("cuda", 7))
    stats = SimpleNamespace(nll=SimpleNamespace(device=full.device))
    monkeypatch.setattr(batch, "_proved", {})
    monkeypatch.setattr(batch, "_given_up", set())
    monkeypatch.setattr(batch, "kind_of", lambda *given: full)
    monkeypatch.setattr(batch, "_prove", lambda kind: asked.append(kind) or "kernels")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert batch.kernels_for(None, stats, None, None) is None
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert [batch.kernels_for(None, stats, None, None) for _ in range(2)] == ["kernels"] * 2
    assert asked == [full]
    batch._given_up.add(full.device)
    assert batch.kernels_for(None, stats, None, None) is None
