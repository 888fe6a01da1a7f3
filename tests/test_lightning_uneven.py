"""Under Lightning's DDP nothing of ours waits for a rank that does not come."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.launch import run_script

pytest.importorskip("pytorch_lightning")
pytestmark = pytest.mark.ranks


def seconds(where: Path, rank: int) -> float:
    """How long a rank was in ``fit``."""
    found = re.search(r"seconds ([\d.]+)", (where / f"rank{rank}.txt").read_text())
    assert found is not None
    return float(found[1])


def test_uneven_training_loaders_do_not_hang_in_an_epochs_end(tmp_path: Path) -> None:
    """The rank with fewer batches waits for a while, says why, and hangs up; the run ends as it would without us."""
    run_script("uneven_script", tmp_path, "uneven")
    assert max(seconds(tmp_path, rank) for rank in (0, 1)) < 60
    assert "(no answer within 3 s). Training goes on" in (tmp_path / "rank1.txt").read_text()


def test_callbacks_find_nan_where_a_pass_lacks_a_rank(tmp_path: Path) -> None:
    """Never the numbers of one rank under the key of all."""
    run_script("uneven_script", tmp_path, "lost")
    text = (tmp_path / "rank0.txt").read_text()
    assert "'val/perplexity': nan" in text and "val/… lacks 1 lost rank" in text and seconds(tmp_path, 0) < 40
