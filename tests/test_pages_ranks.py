"""The loops of the pages run as they stand there, on one rank and on two: each held-out row counts once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pplmon.sinks import read_journal
from tests.launch import run_script
from tests.pages_script import PAGES

for needed in ("accelerate", "lightning", "transformers"):
    pytest.importorskip(needed)

pytestmark = pytest.mark.ranks

JOURNALS = {"plain-loop": "loop", "fabric": "fabric", "accelerate": "accelerate"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all pages, run in one group of two."""
    where = tmp_path_factory.mktemp("pages")
    done = run_script("tests.pages_script", where, 2)
    assert "[0, 0]" in done.stdout, done.stderr
    assert "pplmon: " not in done.stderr
    return where


@pytest.mark.parametrize("page", PAGES)
def test_two_ranks_count_each_row_once(page: str, ran: Path) -> None:
    """Unlike numbers of batches, and rows that are repeated to fill them."""
    found = [json.loads((ran / f"{page}.{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    (cross_entropy, tokens), (true, rows) = found[0]["val"], found[0]["true"]
    assert tokens == rows
    assert cross_entropy == pytest.approx(true, abs=1e-6)
    assert not found[0]["duplicates"]
    assert found[0]["goes_on"] in (None, True)


@pytest.mark.parametrize("page", PAGES)
def test_training_has_all_micro_batches_of_both_ranks(page: str, ran: Path) -> None:
    """And the journal has the windows of two steps."""
    (journal,) = ran.rglob(f"runs/{JOURNALS[page]}/pplmon.jsonl")
    windows = [row for row in read_journal(journal) if row["kind"] == "report" and row["stage"] == "train"]
    whole = {"plain-loop": 64 * 4 * 32, "fabric": 64 * 23, "accelerate": 64 * 23}[page]
    assert sum(row["numbers"]["tokens"] for row in windows) == whole
    assert windows[0]["step"] == 1
