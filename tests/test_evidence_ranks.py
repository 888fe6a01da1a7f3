"""Ranks agree on what to count before anything is shown, in real processes."""

from __future__ import annotations

from typing import Any

import pytest

from pplmon.testing import run_on_ranks
from tests.evidence_tasks import play, sharded

pytestmark = pytest.mark.ranks
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
    return run_on_ranks(play, 2, [*CASES, ("late", "late")], timeout_s=240)


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


def test_what_a_loss_tells_too_late_is_told_and_not_switched(played: Any) -> None:
    """A head that begins at zero: ranks would have to switch at one step. The pass after it is decided anew."""
    for of_rank in played:
        shown, _ = of_rank[-1]
        assert set(shown[:-2]) == {2 * PLAIN} and shown[-2] == 2 * SHIFTED
    told = played[0][-1][1]
    assert "train: shift: the loss is" in told[0] and "Pass shift=True" in told[0]
    assert "val counts what pplmon.observe shows, with shift=True" in told[-1]


def test_logits_that_are_cut_over_ranks_keep_the_default_and_are_told() -> None:
    """A departure would have to come on both ranks at once, or they would wait for each other; stated, all agrees."""
    for of_rank in run_on_ranks(sharded, 2, ["open", "on"], timeout_s=120):
        (left_open, told), (stated, none) = of_rank
        assert set(left_open) == {PLAIN} and set(stated) == {SHIFTED}
        assert "with shift=False: the loss scores" in told[0] and "Pass shift=True" in told[0]
        assert not none
