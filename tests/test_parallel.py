"""FSDP2, tensor parallel and both: every rank the same numbers, each token counted once, one writer."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pplmon.sinks import read_journal
from tests.launch import run_script

pytest.importorskip("pytorch_lightning")
pytestmark = pytest.mark.ranks
LAYOUTS = ["2x1", "1x2", "2x2", "1x2 sharded", "2x2 sharded"]  # sharded: logits cut over the vocabulary


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the runs."""
    where = tmp_path_factory.mktemp("parallel")
    done = run_script("tests.parallel_script", where)
    assert done.returncode == 0, done.stderr[-3000:]
    return where


def ranks_of(where: Path) -> list[dict[str, Any]]:
    """What each rank of a run saw."""
    return [json.loads(path.read_text()) for path in sorted(where.glob("rank*.json"))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_token_counts_once_on_every_rank(runs: Path, layout: str) -> None:
    """The replicas of a batch on tensor-parallel ranks are one batch; all ranks publish the same."""
    ranks = ranks_of(runs / layout)
    assert len(ranks) == int(layout[0]) * int(layout[2])
    assert len({json.dumps(rank["metrics"], sort_keys=True) for rank in ranks}) == 1
    losses = [loss for rank in ranks if rank["tensor_rank"] == 0 for loss in rank["losses"]]
    metrics = ranks[0]["metrics"]
    assert metrics["train/cross_entropy_epoch"] == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert metrics["train/max_token_loss_epoch"] == pytest.approx(max(losses), abs=1e-6)
    assert metrics["train/tokens_seen"] == len(losses)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_rank_writes(runs: Path, layout: str) -> None:
    """The journal and the logger have each window once, whatever shares the work."""
    where = runs / layout
    (path,) = where.rglob("pplmon*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert max(Counter((row["kind"], row.get("stage"), row.get("step")) for row in lines).values()) == 1
    steps = 16 // 2 // int(layout[0])
    windows = [row for row in read_journal(path) if row["kind"] == "report" and row["stage"] == "train"]
    assert [row["step"] for row in windows] == list(range(1, steps, 2))
    with open(where / "csv" / "version_0" / "metrics.csv") as file:
        logged = [line for line in csv.DictReader(file) if line["train/cross_entropy"]]
    assert [int(line["step"]) for line in logged] == list(range(1, steps, 2))
    assert sum(row["numbers"]["tokens"] for row in windows) == ranks_of(where)[0]["metrics"]["train/tokens_seen"]


def test_the_layout_does_not_change_the_numbers(runs: Path) -> None:
    """The same model and the same rows: the same epoch, to rounding in the logits."""
    epochs = [ranks_of(runs / layout)[0]["metrics"]["train/perplexity_epoch"] for layout in LAYOUTS]
    assert epochs == pytest.approx([epochs[0]] * len(LAYOUTS), rel=1e-6)
