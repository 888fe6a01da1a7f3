"""The kernels that count on a GPU add the integers that the array operations add: run natively there, else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import pplmon
from pplmon import TokenStats, TokenTally, cells
from tests.test_laws import LENGTH, stats
from tests.test_tally_arrays import states

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
pytest.importorskip("triton", reason="Triton is not installed: it has no build for this platform")
from pplmon.tally import batch, fused  # noqa: E402
from pplmon.tally.given import State  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"
INEXACT = ("probability_whole", "probability_fraction")  # exp is the device's own


def moved(batch: TokenStats) -> TokenStats:
    """The same stats on the device under test."""
    return TokenStats(**{k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in batch.__dict__.items()})


def counted(batches: list[tuple[TokenStats, dict[str, Any]]], kernels: Any, monkeypatch: Any, **how: Any) -> Any:
    """The states after some batches, and the mean p(target)."""
    with monkeypatch.context() as patch:
        patch.setattr(pplmon.tally.batch, "kernels_on", lambda device: kernels)
        tally = TokenTally(**{"top_k": 3, "context": 2, "min_sequence_tokens": 2, **how}).to(DEVICE)
        for number, (batch, data) in enumerate(batches):
            data = {k: v.to(DEVICE) for k, v in data.items()}
            tally.update(moved(batch), step=3 - number, micro_batch=number, **data)
    found = states(tally)
    for name in INEXACT:
        found["sums"][cells.SUMS.index(name)] = 0
    return found, tally.totals().numbers()["mean_target_probability"]


def same(one: Any, two: Any) -> None:
    """All integers alike, and p(target) up to the rounding of exp."""
    for name in one[0]:
        assert one[0][name] == two[0][name], name
    assert one[1] == pytest.approx(two[1], rel=1e-6, nan_ok=True)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_kernels_count_what_the_arrays_count(monkeypatch: pytest.MonkeyPatch, data: st.DataObject) -> None:
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
            given_too["position_ids"] = torch.arange(rows * LENGTH).view(fields["batch_shape"]) * 3
        parts.append((TokenStats(**fields), given_too))
    how = {
        "token_bytes": data.draw(st.sampled_from([None, torch.tensor([1, 2, 0, 7])]), "bytes"),
        "context_parallel": not shift and data.draw(st.booleans(), "context parallel"),
        "top_k": data.draw(st.sampled_from([1, 3, 8]), "top_k"),
    }
    same(counted(parts, fused, monkeypatch, **how), counted(parts, None, monkeypatch, **how))


# 1: one token. 1023, 1024, 1025: around a program's tokens. 300 rows of 7: many rows in a program, and rows in two of them.
# 2 of 1500: a program in two rows. 1100 rows: two programs close the sequences, as they do the documents of 1025 tokens.
SHAPES = [(1, 1), (1, 1023), (2, 1024), (1, 1025), (150, 7), (2, 1500)]


@pytest.mark.parametrize(
    ("shape", "packed"), [((1100, 2), False), *((s, p) for s in SHAPES for p in (False, True))], ids=str
)
def test_batches_of_several_programs(shape: tuple[int, int], packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What programs find is put together, and a document may lie in two of them."""
    nll = torch.rand(shape) * 8
    nll[torch.rand(shape) < 0.01] = 7.5  # ties between programs
    targets = torch.randint(50, shape)
    batch = TokenStats.from_losses(nll, targets, targets < 9, torch.rand(shape), torch.randint(50, shape), 50)
    documents = {"document_ids": (torch.rand(shape) < 0.01).cumsum(1)} if packed else {}
    parts = [(batch, documents)] * 2
    same(counted(parts, fused, monkeypatch, top_k=8), counted(parts, None, monkeypatch, top_k=8))


def test_sums_stay_at_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the array operations do, the kernels let no sum wrap."""
    monkeypatch.setattr(pplmon.tally.batch, "kernels_on", lambda device: fused)
    tally = TokenTally().to(DEVICE)
    tally.sums.fill_(cells.CEILING)
    tally.histogram.fill_(cells.CEILING)
    tally.update(moved(TokenStats.from_losses(torch.rand(2, 20), torch.zeros(2, 20, dtype=torch.int64))))
    fraction = [cells.SUMS.index(name) for name in ("nll_fraction", "probability_fraction")]
    assert all(v == cells.CEILING for i, v in enumerate(tally.sums.tolist()) if i not in fraction)
    assert set(tally.histogram.tolist()) == {cells.CEILING}


def test_extras_learn_which_tokens_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra is given the same mask by the kernels as by the array operations."""
    seen = []

    class Ask:
        size = 1

        def update(self, stats: TokenStats, valid: Any, logits: Any, **data: Any) -> Any:
            seen.append(valid.tolist())
            return valid.sum().reshape(1)

        def numbers(self, sums: Any) -> dict[str, int]:
            return {"asked/tokens": sums[0]}

    nll = torch.tensor([[1.0, torch.nan, 2.0, 3.0]])
    batch = TokenStats.from_losses(nll, torch.tensor([[1, 2, -100, 3]]))
    documents = {"document_ids": torch.tensor([[0, 0, 0, 1]])}
    for kernels in (fused, None):
        counted([(batch, documents)], kernels, monkeypatch, extras=[Ask()])
    assert seen == [[True, False, False, True]] * 2


def test_what_does_not_fit_is_counted_otherwise() -> None:
    """Beyond their limits the kernels are not asked."""
    few, many = TokenTally(top_k=8), TokenTally(top_k=65)
    batch = TokenStats.from_losses(torch.rand(2, 20), torch.zeros(2, 20, dtype=torch.int64))
    large = TokenStats.from_losses(torch.rand(2**20 + 1), torch.zeros(2**20 + 1, dtype=torch.int64))
    assert fused.fits(few._state(), batch) and not fused.fits(many._state(), batch)
    assert not fused.fits(few._state(), large)


def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """What runs in the interpreter need not compile: it does for the H100's and the A100's architectures, without one."""
    script = Path(__file__).with_name("compile_fused.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.split()) == sorted(2 * ["cut", "count", "close_sequences", "finish"])


def prove(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a device that was never seen is given."""
    monkeypatch.setattr(batch, "_proved", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return batch._prove(torch.device(DEVICE))


def test_kernels_that_prove_right_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """And others are not: on a CPU there is nothing to prove."""
    assert prove(monkeypatch) is fused
    assert batch.kernels_on(torch.device("cpu")) is None


@pytest.mark.parametrize("state", [name for name in State._fields if name != "extra_sums"])
def test_kernels_that_count_wrongly_are_not_taken(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One integer that is off in any state is found, and said."""
    right = fused.add

    def wrong(own: State, *rest: Any) -> Any:
        valid = right(own, *rest)
        getattr(own, state).view(-1)[3] += 1
        return valid

    monkeypatch.setattr(fused, "add", wrong)
    with pytest.warns(RuntimeWarning, match=f"counted {state} wrongly .* counted by PyTorch's operators instead"):
        assert prove(monkeypatch) is None


def test_kernels_that_cannot_be_run_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Triton finds no C compiler for its launcher."""

    def broken(*args: Any) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(fused, "add", broken)
    with pytest.warns(RuntimeWarning, match="could not be run: RuntimeError: Failed to find C compiler"):
        assert prove(monkeypatch) is None


def test_the_proof_is_made_once_and_not_within_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph under capture cannot wait; the next batch outside it can."""
    asked: list[Any] = []
    device = torch.device("cuda", 7)
    monkeypatch.setattr(batch, "_proved", {})
    monkeypatch.setattr(batch, "_prove", lambda device: asked.append(device) or fused)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert batch.kernels_on(device) is None
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert batch.kernels_on(device) is batch.kernels_on(device) is fused
    assert asked == [device]
