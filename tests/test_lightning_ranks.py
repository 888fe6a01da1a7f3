"""The callback under DDP: two real processes give the numbers that one would give."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest

from pplmon.sinks import read_journal
from tests.launch import run_script

pytest.importorskip("pytorch_lightning")
pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One DDP run; returns its directory and what each rank saw."""
    where = tmp_path_factory.mktemp("ddp")
    done = run_script("tests.ddp_script", where)
    assert done.returncode == 0, done.stderr[-3000:]
    return where, [json.loads((where / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_both_ranks_publish_the_same_numbers(run: Any) -> None:
    """Callbacks that decide on our keys decide alike."""
    _, (first, second) = run
    assert first["metrics"] == second["metrics"]


def test_a_window_is_the_token_weighted_mean_over_ranks(run: Any) -> None:
    """Each logged row equals a float64 recomputation from both ranks' tokens."""
    where, ranks = run
    with open(where / "csv" / "version_0" / "metrics.csv") as file:
        lines = [line for line in csv.DictReader(file) if line["train/cross_entropy"]]
    assert [int(line["step"]) for line in lines] == [1, 3, 5]
    for index, line in enumerate(lines):
        losses = [x for rank in ranks for step in rank["losses"][2 * index : 2 * index + 2] for x in step]
        assert float(line["train/cross_entropy"]) == pytest.approx(sum(losses) / len(losses), abs=1e-6)
        assert float(line["train/max_token_loss"]) == pytest.approx(max(losses), abs=1e-5)


def test_an_alert_names_the_rank_and_is_raised_once(run: Any) -> None:
    """The bad token was on rank 1; rank 0 writes, with the evidence of rank 1."""
    where, (first, second) = run
    assert first["alerts"] == [[3, 1, 0, 15, 13]]
    assert second["alerts"] == []
    (path,) = where.rglob("pplmon.jsonl")
    assert [line["step"] for line in read_journal(path) if line["kind"] == "alert"] == [3]


def test_a_row_that_the_sampler_repeats_is_left_out_by_its_sample_id(run: Any) -> None:
    """Five validation rows on two ranks: the sampler gives one twice, it is counted once."""
    _, (first, _) = run
    assert first["metrics"]["val/duplicate_sequences"] == 0
    assert first["metrics"]["val/sequences"] == 5
