"""The Hugging Face ``Trainer`` on two ranks, by DDP and FSDP2 over gloo: numbers equal float64 over the rows, each once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tests.hf_kit import Sums, build, collate, mean, rows
from tests.hf_script import CASES, EVAL_ROWS
from tests.launch import run_script

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all cases, run in one group."""
    where = tmp_path_factory.mktemp("ranks")
    done = run_script("tests.hf_script", where)
    assert "[0, 0]" in done.stdout, done.stderr
    return where


def found(where: Path, case: str) -> Any:
    """What a case gave: the same on both ranks, and nothing was warned of."""
    results = [json.loads((where / f"{case}.{rank}.json").read_text()) for rank in range(2)]
    assert [told for _, told in results] == [[], []]
    shown = [_without_times(result) for result, _ in results]
    assert shown[0] == shown[1]
    return shown[0]


def _without_times(history: Any) -> Any:
    if not isinstance(history, list):
        return history
    timed = ("runtime", "per_second")
    return [{k: v for k, v in row.items() if not any(word in k for word in timed)} for row in history]


def expected(data: list[torch.Tensor]) -> Sums:
    """Σ nll and tokens of rows, each by itself, of the model as it was built, in float64."""
    model = build().double().eval()
    with torch.no_grad():
        parts = [Sums.of(model(row[None]).logits, collate([row])["labels"]) for row in data]
    return Sums(sum(part.nll for part in parts), sum(part.tokens for part in parts))


@pytest.mark.parametrize("case", ["evaluates", "sharded"])
def test_history_has_the_rows_each_once(case: str, ran: Path) -> None:
    """Uneven padded batches, 4 micro-batches a step, and a last batch of evaluation with rows that were there."""
    history = found(ran, case)
    windows = [row for row in history if "cross_entropy" in row]
    for row, data in zip(windows, (rows(64)[:32], rows(64)[32:])):
        assert row["cross_entropy"] == pytest.approx(mean([expected(data)]), abs=1e-6)
        assert row["perplexity"] == pytest.approx(math.exp(mean([expected(data)])), rel=1e-6)
    assert [row["tokens_seen"] for row in windows] == [expected(rows(64)[:32]).tokens, expected(rows(64)).tokens]
    passes = [row for row in history if "eval_cross_entropy" in row]
    wanted = mean([expected(rows(EVAL_ROWS, seed=2))])
    assert [row["eval_cross_entropy"] for row in passes] == [pytest.approx(wanted, abs=1e-6)] * 2
    # The trainer's own: the same windows, but a mean of means, and in evaluation of losses that were multiplied by ranks.
    assert all(abs(row["loss"] - row["cross_entropy"]) < 0.01 for row in windows)
    assert all(abs(row["eval_loss"] - wanted) > 0.1 for row in passes)


def test_a_run_after_an_exception_has_all_ranks(ran: Path) -> None:
    """In the same processes and their group."""
    rows_logged = [row for row in found(ran, "trains_again") if "cross_entropy" in row]
    expect = [expected(rows(64)[:32]), expected(rows(64)[32:])]
    assert [row["cross_entropy"] for row in rows_logged] == [pytest.approx(mean([part]), abs=1e-6) for part in expect]
    assert rows_logged[-1]["tokens_seen"] == sum(part.tokens for part in expect)


def test_the_event_file_of_the_trainer_has_them(ran: Path) -> None:
    """Once, at the steps of its history."""
    files = list((ran / "evaluates").rglob("events.out.tfevents*"))
    assert len(files) == 1
    events = EventAccumulator(str(files[0]), size_guidance={"scalars": 0})
    events.Reload()
    history = found(ran, "evaluates")
    for key, tag in (("perplexity", "train/perplexity"), ("eval_perplexity", "eval/perplexity")):
        wanted = [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in history if key in row]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == wanted != []


@pytest.mark.parametrize("case", ["resumed", "resumed_apart"])
def test_ranks_resume_in_the_middle_of_a_window(case: str, ran: Path) -> None:
    """All ranks load the one file, also from the one disk that has it; the rest of the window counts once.

    The trainer's own loss lost its first half.
    """
    straight, resumed = found(ran, "straight")[1], found(ran, case)[1]
    assert straight["step"] == resumed["step"] == 4
    ours = ("cross_entropy", "perplexity", "tokens_seen", "max_token_loss", "token_loss_p99", "token_accuracy")
    assert [resumed[name] for name in ours] == [straight[name] for name in ours]
    assert resumed["loss"] != straight["loss"]


def test_ranks_stop_at_the_same_step(ran: Path) -> None:
    """The alert of the first step is known after the second."""
    assert found(ran, "stops") == 2


def test_every_case_is_looked_at() -> None:
    """A case that is added and not tested says nothing."""
    assert {case.__name__ for case in CASES} == {
        "evaluates",
        "straight",
        "resumed",
        "resumed_apart",
        "stops",
        "trains_again",
        "sharded",
    }
