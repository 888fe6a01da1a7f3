"""Ranks whose loops call ``Monitor.observe`` with a loss agree on the shift before anything is shown, in real processes."""

from __future__ import annotations

from typing import Any

import pytest

from pplmon.testing import run_on_ranks
from tests.observe_tasks import PLAIN, SHIFTED, play

pytestmark = pytest.mark.ranks
ONCE = {"every_n_steps": 1}
# The kinds of the two ranks, a monitor's settings; then tokens of the windows and the pass, and what is said.
CASES: dict[str, tuple[tuple[tuple[str, str], dict[str, int]], list[int], int, str]] = {
    "both": ((("shifted", "shifted"), ONCE), [2 * SHIFTED] * 5, 2 * SHIFTED, "train counts with shift=True"),
    "one has no tokens": ((("shifted", "empty"), ONCE), [SHIFTED] * 5, SHIFTED, "equals the loss"),
    "the first has none": ((("empty", "shifted"), ONCE), [SHIFTED] * 5, SHIFTED, "the losses of other ranks show it"),
    "one's loss tells nothing": ((("shifted", "other"), ONCE), [2 * SHIFTED] * 5, 2 * SHIFTED, "shift=True"),
    "one has nothing to score": ((("ignored", "shifted"), ONCE), [SHIFTED] * 5, SHIFTED, "shift=True"),
    "one comes late": (
        (("shifted", "late"), ONCE),
        [SHIFTED, SHIFTED, *[2 * SHIFTED] * 3],
        2 * SHIFTED,
        "equals the loss",
    ),
    "both come late": (
        (("late", "late"), ONCE),
        [0, 0, *[2 * SHIFTED] * 3],
        2 * SHIFTED,
        "equals the loss",
    ),
    "plain": ((("plain", "plain"), ONCE), [2 * PLAIN] * 5, 2 * PLAIN, ""),
    "without a loss": ((("none", "none"), ONCE), [2 * PLAIN] * 5, 2 * PLAIN, ""),
    "they disagree": ((("shifted", "plain"), ONCE), [2 * PLAIN] * 5, 2 * PLAIN, "the ranks do not agree"),
    "one has tokens and no loss": ((("shifted", "none"), ONCE), [2 * PLAIN] * 5, 2 * PLAIN, "the ranks do not agree"),
    "it saves": ((("shifted", "empty"), ONCE), [SHIFTED] * 5, SHIFTED, "equals the loss"),
    "windows of two": (
        (("shifted", "shifted"), {"every_n_steps": 2}),
        [4 * SHIFTED, 4 * SHIFTED, 2 * SHIFTED],
        2 * SHIFTED,
        "shift=True",
    ),
    "rare read-outs": (
        (("shifted", "shifted"), {"every_n_steps": 4, "judge_every_n_steps": 4}),
        [8 * SHIFTED, 2 * SHIFTED],
        2 * SHIFTED,
        "shift=True",
    ),
}


@pytest.fixture(scope="module")
def played() -> list[dict[str, Any]]:
    """What two ranks show and say in each case: one group plays them all."""
    return run_on_ranks(play, 2, {name: case[0] for name, case in CASES.items()}, timeout_s=240)


@pytest.mark.parametrize("case", CASES)
def test_ranks_count_alike(played: list[dict[str, Any]], case: str) -> None:
    """A rank without tokens or whose loss tells nothing follows; where they disagree, the default holds with one warning."""
    _, windows, of_pass, words = CASES[case]
    shown, steps, lines = played[0][case]
    assert shown == {"train": windows, "val": [of_pass]}
    assert steps == sorted(set(steps))
    assert (words and any(words in line for line in lines)) or (not words and not lines), lines
    assert sum(" counts " in line and "train" in line for line in lines) == bool(words)
    assert not played[1][case][2]  # the first rank speaks
