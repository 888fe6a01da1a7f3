"""The benchmarks of extras run, and what they measure is there: a row for each extra, and an interval that holds the truth."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks import coverage
from benchmarks import extras as cost
from pplmon import extras


def test_each_extra_has_a_row_of_what_it_costs(tmp_path: Path) -> None:
    """Each waits for nothing and holds, for a moment, a tenth of the logits at most; all together are their sum."""
    threads = torch.get_num_threads()
    out = tmp_path / "cost.json"
    small = ["--rows", "8", "--length", "1024", "--vocab", "2000", "--device", "cpu", "--threads", "1", "--rounds", "1"]
    cost.main([*small, "--markdown", "--out", str(out)])
    torch.set_num_threads(threads)
    rows = {row["extra"]: row for row in json.loads(out.read_text())["results"]}
    assert set(rows) == {"none", *extras.ALL, "all"}
    assert all(row["syncs"] == 0 and row["operators"] > 5 for row in rows.values())
    assert all(row["bytes_a_token"] < 0.1 * 2 * 2000 for name, row in rows.items() if name != "none")
    assert rows["all"]["operators"] == sum(rows[name]["operators"] for name in extras.ALL)


def test_documents_cover_the_truth_and_tokens_do_not(tmp_path: Path) -> None:
    """Of real documents, in few samples: most intervals by documents hold it, few by tokens."""
    out = tmp_path / "coverage.json"
    coverage.main(["--documents", "30", "--samples", "60", "--out", str(out)])
    found = json.loads(out.read_text())
    ways = found["coverage"]["30"]
    assert found["population"] > 100
    assert ways["documents"]["coverage"] > 0.75 and ways["tokens"]["coverage"] < ways["rows"]["coverage"] < 0.5
