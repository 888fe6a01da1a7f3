"""Any number of ranks, leaving, stopping, dying: the same numbers, no hang, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import pytest

import pplmon
from pplmon.tally import TokenTally
from pplmon.testing import assert_split_invariant, run_on_ranks
from tests import rank_tasks as tasks

pytestmark = pytest.mark.ranks
SEEDS = list(range(60))


def whole(seed: int) -> dict[str, Any]:
    """The numbers of one tally that saw everything at once."""
    tally = TokenTally()
    tally.update(tasks.random_stats(seed))
    return tasks.facts(tally.totals())


@pytest.mark.parametrize(
    "ranks", [1, 2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_any_split_over_ranks_steps_and_checkpoints_gives_identical_bits(ranks: int) -> None:
    """60 random cuts a rank count, each with a save and load in the middle; some ranks have no tokens at all."""
    for answer in run_on_ranks(tasks.split_cases, ranks, SEEDS, ranks):
        for seed, found in zip(SEEDS, answer):
            assert found == whole(seed), f"seed {seed}"


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_state_saved_on_two_ranks_loads_on_any_number(ranks: int) -> None:
    """Nothing is lost or multiplied: windows, what was not read out, the rules' memory."""
    states = run_on_ranks(tasks.save_states, 2, 7)
    assert states[0] == states[1]
    json.dumps(states[0])  # plain values only
    for found in run_on_ranks(tasks.load_states, ranks, states[0]):
        expected = whole(7)
        assert {name: found[name] for name in expected} == expected
        assert found["tokens_seen"] == int(expected["tokens"])
        assert found["fired"]


@pytest.mark.parametrize("judge_every", [1, 3])
def test_a_rank_whose_data_ends_early_does_not_hang_the_others(judge_every: int) -> None:
    """The rank that closed takes part until all have; every token is counted."""
    steps = [3, 9]
    answers = run_on_ranks(tasks.leave_early, 2, steps, judge_every)
    stats = tasks.random_stats(5)
    tally = TokenTally()
    for count in steps:
        tally.update(stats.rows(0, count))
    assert {tokens for tokens, _ in answers} == {tally.report().tokens}
    assert sum(tokens for _, tokens in answers[0][1]) == tally.report().tokens  # windows: each token once
    assert answers[1][1] == []  # only the first rank writes


def test_the_wish_of_any_rank_stops_all_at_the_same_step() -> None:
    """Rank 1 votes at step 3; all learn of it at step 4."""
    assert run_on_ranks(tasks.vote, 3, 1, 3) == [4, 4, 4]


def test_a_rule_that_stops_the_run_stops_every_rank_at_the_same_step() -> None:
    """The evidence is delivered on the writing rank before."""
    assert run_on_ranks(tasks.stop_on_alert, 2) == [(5, 1), (5, 0)]


def test_a_read_out_is_two_collectives_of_a_constant_size() -> None:
    """Whatever the number of ranks; rows are gathered once for a logged window, and layouts compared once for the run."""
    by_ranks = {ranks: run_on_ranks(tasks.count_collectives, ranks, 6)[0] for ranks in (2, 3)}
    assert by_ranks[2] == by_ranks[3]
    calls = by_ranks[2]
    assert calls["all_reduce"] == 1 + 2 * 6
    assert calls["all_gather"] == 1
    assert calls["bytes"] / 6 < 20 * 1024


def test_a_rank_without_news_does_not_hang_compute_and_a_synced_state_loads_once() -> None:
    """The traps of torchmetrics' cache, and of a state that is loaded on all ranks."""
    tokens = [TokenTally(), TokenTally()]
    tokens[0].update(tasks.random_stats(1))
    tokens[1].update(tasks.random_stats(2))
    one, two = (tally.report().tokens for tally in tokens)
    for found in run_on_ranks(tasks.tally_counts, 2):
        rest = {"as after one sync": True, "rows": 8}
        assert found == {"first": one, "second": one + two, "loaded": one + two, **rest}


def test_the_kit_asserts_the_law_and_can_fail() -> None:
    """``assert_split_invariant`` passes for our tally and fails for one that takes a mean of means."""
    assert_split_invariant(tasks.random_stats(3))

    class FirstBatchOnly(TokenTally):
        def update(self, stats: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
            if not self.sums.any():
                super().update(stats)

    with pytest.raises(AssertionError, match="tokens is"):
        assert_split_invariant(tasks.random_stats(3), FirstBatchOnly)


def hangs(rank: int) -> None:
    """Rank 0 waits for a collective that rank 1 never joins."""
    import torch
    import torch.distributed as dist

    if rank == 0:
        dist.all_reduce(torch.ones(1))
    else:
        time.sleep(60)


def raises(rank: int) -> None:
    """Rank 1 fails."""
    if rank == 1:
        raise KeyError("planned")


def dies(rank: int) -> None:
    """Rank 1 is killed, while rank 0 waits for it."""
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@pytest.mark.slow
def test_the_kit_ends_hangs_and_shows_failures() -> None:
    """A hang is a TimeoutError that names the ranks and the place; a failure carries its traceback, a death its exit code."""
    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\] gave no answer(.|\n)*in hangs"):
        run_on_ranks(hangs, 2, timeout_s=8.0)
    with pytest.raises(RuntimeError, match="rank 1 failed(.|\n)*died with exit code -9"):
        run_on_ranks(dies, 2)
    with pytest.raises(RuntimeError, match="rank 1 failed(.|\n)*planned"):
        run_on_ranks(raises, 2)


def test_alerts_of_any_monitor_are_caught() -> None:
    """What a user's own test looks at."""
    with pplmon.testing.capture_alerts() as alerts:
        monitor = pplmon.Monitor(alerts=[pplmon.NonFinite()])
        monitor.observe(tasks.random_stats(3))
        monitor.close()
    assert [alert.rule for alert in alerts] == ["NonFinite"]
