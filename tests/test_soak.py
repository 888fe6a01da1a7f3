"""A short run of the benchmark with everything on: nothing leaks; and one of the other, so that it keeps running."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from benchmarks import collectives, soak


def test_no_thread_or_file_is_left_over(tmp_path: Path) -> None:
    """Three hundred steps with alerts, validation, a checkpoint and failing loggers."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(soak, "SAVED", 60)
        patch.setattr(soak, "VALIDATED", 100)
        patch.setattr(soak, "LOGGED", 20)
        seen = soak.soak(300, tmp_path)
    figures = seen.summary()
    assert figures["logged windows"] == 14 and figures["alerts"] >= 3  # the last window comes with close()
    assert figures["checkpoints"] == 5 and seen.states[-1] < 1.5 * seen.states[0]
    assert figures["threads at the end"] <= figures["threads after a tenth"]
    assert figures["open files at the end"] <= figures["open files after a tenth"]
    assert any("AlwaysFails" in str(w.message) and "left out" in str(w.message) for w in caught)


@pytest.mark.ranks
def test_torchmetrics_takes_eleven_times_as_many_collectives(tmp_path: Path) -> None:
    """22 for the four nearest metrics, 2 for all of ours; 8 for the same four as keys of ``self.log``."""
    collectives.main(["--ranks", "2", "--repeats", "3", "--out", str(tmp_path / "result.json")])
    found = json.loads((tmp_path / "result.json").read_text())["results"]["2"]
    assert {name: row["collectives"] for name, row in found.items()} == {
        "pplmon": 2,
        "torchmetrics": 22,
        "self.log(sync_dist=True)": 8,
    }
    assert found["pplmon"]["bytes"] < 20 * 1024
