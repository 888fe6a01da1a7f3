"""Under Lightning's DDP nothing of ours waits for a rank that does not come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pplmon.sinks import read_journal
from tests.launch import run_script

pytest.importorskip("pytorch_lightning")
pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases of the script, run at one time."""
    where = tmp_path_factory.mktemp("uneven")
    run_script("tests.uneven_script", where)
    return where


def rank(where: Path, number: int) -> dict[str, Any]:
    """What a rank saw."""
    found: dict[str, Any] = json.loads((where / f"rank{number}.json").read_text())
    return found


def on_disk(where: Path) -> int:
    """The tokens of training in all journals."""
    rows = [row for path in where.rglob("pplmon*.jsonl") for row in read_journal(path)]
    return sum(r["numbers"]["tokens"] for r in rows if r["kind"] in ("report", "local") and r["stage"] == "train")


def seen(where: Path) -> int:
    """The tokens that the ranks measured."""
    return sum(path.stat().st_size for path in where.glob("seen*"))


@pytest.mark.parametrize(("case", "shorter"), [("second", 1), ("first", 0), ("without validation", 1)])
def test_uneven_training_loaders_do_not_hang_in_an_epochs_end(runs: Path, case: str, shorter: int) -> None:
    """The rank with fewer batches waits for nobody, says why, and hangs up; the run ends as it would without us."""
    text, *_ = rank(runs / case, shorter)["warnings"]
    assert "the loaders of the ranks are of unlike lengths" in text
    assert max(rank(runs / case, number)["waited"] for number in (0, 1)) < 3
    assert on_disk(runs / case) == seen(runs / case)


def test_uneven_loaders_of_unknown_lengths_are_waited_for_a_while(runs: Path) -> None:
    """Nobody can tell whether the other rank comes."""
    where = runs / "unknown"
    assert "no answer within 3 s at the end of an epoch" in rank(where, 1)["warnings"][0]
    assert max(rank(where, number)["waited"] for number in (0, 1)) < 6
    assert on_disk(where) == seen(where)


def test_even_loaders_part_nowhere(runs: Path) -> None:
    """The same run with as many batches on each rank."""
    assert all(rank(runs / "alike", number)["warnings"] == [] for number in (0, 1))
    assert on_disk(runs / "alike") == seen(runs / "alike") and not list((runs / "alike").rglob("pplmon.rank*"))


def test_callbacks_find_nan_where_a_pass_lacks_a_rank(runs: Path) -> None:
    """Never the numbers of one rank under the key of all."""
    first = rank(runs / "lost", 0)
    assert first["metrics"]["val/perplexity"] != first["metrics"]["val/perplexity"] and first["waited"] < 3
    assert any("val/… lacks 1 lost rank" in text for text in first["warnings"])
