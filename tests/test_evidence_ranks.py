"""Ranks agree on what to count before anything is shown, in real processes."""

from __future__ import annotations

from typing import Any

import pytest

from pplmon.testing import run_on_ranks
from tests.evidence_tasks import play

SHIFTED, PLAIN, PADDED = 24.0, 27.0, 18.0  # tokens of a rank's batch
CASES = {
    ("shifted", "shifted"): (2 * SHIFTED, "with shift=True"),
    ("shifted", "empty"): (SHIFTED, "with shift=True"),
    ("empty", "shifted"): (SHIFTED, "with shift=True"),
    ("shifted", "other"): (2 * SHIFTED, "with shift=True"),
    ("plain", "plain"): (2 * PLAIN, ""),
    ("shifted", "plain"): (2 * PLAIN, "do not agree"),
    ("padded", "padded"): (2 * PADDED, "with shift=True, without the padding, id 0"),
    ("padded", "empty"): (PADDED, "with shift=True, without the padding, id 0"),
    ("padded", "shifted"): (2 * PLAIN, "do not agree"),
    ("items", "items"): (2 * SHIFTED, "with shift=True"),
    ("same", "same"): (2 * PLAIN, "repeated_rows: the first batches of 2 ranks are the same rows"),
    ("same", "same, in another order"): (2 * PLAIN, "repeated_rows: the first batches of 2 ranks are the same rows"),
    ("same", "empty"): (PLAIN, ""),
}


@pytest.fixture(scope="module")
def played() -> Any:
    """All cases, one after the other, by two processes."""
    return run_on_ranks(play, 2, list(CASES), timeout_s=240)


@pytest.mark.parametrize("case", range(len(CASES)), ids=map("-".join, CASES))
def test_ranks_count_alike(case: int, played: Any) -> None:
    """A rank without tokens or without a loss of its own follows; where losses disagree, the default holds with a warning."""
    tokens, words = list(CASES.values())[case]
    for of_rank in played:
        shown, _ = of_rank[case]
        assert shown and set(shown) == {tokens}
    told = played[0][case][1]  # the first rank speaks
    assert any(words in line for line in told) if words else not told
    assert any("repeated_rows" in line for line in told) == ("repeated_rows" in words)
