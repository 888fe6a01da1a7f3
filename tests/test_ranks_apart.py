"""Ranks that are lost, late or disagree: nobody hangs, and no half number is shown as a whole one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pplmon.sinks import read_journal
from tests.apart import TOKENS, busy, run

pytestmark = pytest.mark.ranks
ONE, TWO = TOKENS[:2]
BOTH = ONE + TWO


def on_disk(where: Path, stage: str = "train") -> int:
    """The tokens of a stage in the journal and in the ranks' own; a merged window counts where the journal lacks it."""
    tokens: Counter[int] = Counter()
    merged = {}
    for path in where.glob("pplmon*.jsonl"):
        for row in read_journal(path):
            if row.get("stage") == stage and row["kind"] in ("report", "local"):
                tokens[row["step"] if row["kind"] == "report" else -1] += row["numbers"]["tokens"]
            elif row.get("stage") == stage and row["kind"] == "merged":
                merged[row["step"]] = row["numbers"]["tokens"]
    return sum(tokens.values()) + sum(count for step, count in merged.items() if step not in tokens)


def rows(where: Path, rank: int) -> list[tuple[str, int, int, int]]:
    """Kind, step, tokens and missing ranks of what is in a rank's own journal."""
    path = where / f"pplmon.rank{rank}.jsonl"
    found = read_journal(path) if path.exists() else []
    return [(r["kind"], r["step"], r["numbers"]["tokens"], r.get("ranks_missing", 0)) for r in found if "numbers" in r]


# 1.


@pytest.mark.parametrize(("world", "own"), [(3, None), (30, 3)], ids=["of the world", "of a subgroup"])
def test_a_collective_of_ours_takes_no_longer_than_the_users_timeout(
    tmp_path: Path, world: float, own: float | None
) -> None:
    """A group that waits 3 s for a rank: so do we, and the rank that is left trains on."""
    first, _ = run("one_stops_stepping", tmp_path, own, timeout=world)
    assert first.error == "" and 2 < first.seconds < 5 * busy()
    assert "a collective failed" in first.warnings[0] and on_disk(tmp_path) == 2 * BOTH + 4 * ONE


def test_a_rank_within_the_users_timeout_is_waited_for(tmp_path: Path) -> None:
    """Later than torch's default, and earlier than the user's timeout: nothing is lost."""
    for outcome in run("one_is_late", tmp_path, timeout=20):
        assert outcome.answer == [3, 4 * BOTH, 0] and outcome.warnings == [] and outcome.seconds < 6 * busy()
    assert on_disk(tmp_path) == 4 * BOTH


# 5.


@pytest.mark.parametrize(("who", "more"), [(0, False), (1, False), (0, True)])
def test_a_pass_on_one_rank_only_is_an_error_on_all(tmp_path: Path, who: int, more: bool) -> None:
    """Also where passes have ``more`` integers. It says which rank did what, at once; every token is on disk."""
    outcomes = run("one_validates", tmp_path, who, False, False, more)
    ((first,), _, _), ((second,), _, _) = (outcome.answer for outcome in outcomes)
    assert first == second and first.startswith("UnlikeRanks: ranks of one group do unlike things at one time")
    assert f"ends val pass 1, at step 5 on rank {who}" in first and f"optimizer step 6 on rank {1 - who}" in first
    assert 'stage("val", local=True)' in first
    assert all(outcome.seconds < 3 * busy() and outcome.error == "" for outcome in outcomes)
    assert on_disk(tmp_path) == 12 * BOTH and on_disk(tmp_path, "val") == 1000 * TOKENS[who]


def test_a_pass_on_one_rank_only_beside_training_ends_with_the_users_timeout(tmp_path: Path) -> None:
    """The others wait in the training's own collective, and cannot answer: whoever validates is told what to write."""
    first, second = run("one_validates", tmp_path, 0, False, True, timeout=4)
    assert max(first.seconds, second.seconds) < 6 * busy()
    assert "a collective failed" in first.warnings[1] and 'alone is stage("val", local=True)' in first.warnings[0]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("who", [0, 1])
def test_a_pass_of_one_rank_sends_nothing(tmp_path: Path, who: int, together: bool) -> None:
    """``local=True`` is not waited for and costs the others nothing."""
    outcomes = run("one_validates", tmp_path, who, True, together)
    assert all(o.error == "" and o.warnings == [] and o.answer[0] == [] and o.seconds < 3 * busy() for o in outcomes)
    assert outcomes[who].answer[1] == [1000 * TOKENS[who], 0]
    assert on_disk(tmp_path) == 12 * BOTH and on_disk(tmp_path, "val") == 1000 * TOKENS[who]
    assert rows(tmp_path, 1) == ([("local", 5, 1000 * TWO, 0)] if who == 1 else [])


@pytest.mark.parametrize("case", ["unlike_stages", "one_chooses", "one_fails_in_a_pass", "one_probes", "one_saves"])
def test_ranks_that_do_unlike_things_are_told(tmp_path: Path, case: str) -> None:
    """Another stage, a choice of logits by one rank, a pass that one rank left, a probe that one rank runs, a state that one rank saved."""
    outcomes = run(case, tmp_path)
    ((first,), _, _), ((second,), _, _) = (outcome.answer for outcome in outcomes)
    assert first == second and "do unlike things at one time" in first
    assert all(outcome.seconds < 3 * busy() and outcome.error == "" for outcome in outcomes)
    two = 2 * BOTH
    counted = {
        "unlike_stages": two,
        "one_probes": two,
        "one_chooses": two + 2 * TWO,
        "one_fails_in_a_pass": two + 2 * TWO,
    }
    assert on_disk(tmp_path) == counted.get(case, 5 * BOTH)


def test_integers_of_a_choice_add_up_and_are_not_counted(tmp_path: Path) -> None:
    """They travel in a read-out of their own."""
    outcomes = run("both_choose", tmp_path)
    assert all(outcome.answer[0] == [3, 2**41] and outcome.warnings == [] for outcome in outcomes)
    assert on_disk(tmp_path) == 2 * BOTH


# 7.


@pytest.mark.parametrize("together", [False, True], ids=["alone", "beside training"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("every_n_steps", "differ in every_n_steps (4 on ranks 0, 1; 2 on rank 2)"),
        ("judge_every_n_steps", "differ in judge_every_n_steps (1 on ranks 0, 1; 3 on rank 2)"),
        ("numbers", "differ in numbers (core on ranks 0, 1; all on rank 2)"),
        ("prefix", "differ in prefix ( on ranks 0, 1; a/ on rank 2)"),
        ("alerts", "differ in alerts ([] on ranks 0, 1; [Above("),
        ("extras", "differ in extras (none on ranks 0, 1; "),
        ("top_k", "differ in top_k (8 on ranks 0, 1; 4 on rank 2)"),
        ("context", "context (8 on ranks 0, 1; 2 on rank 2)"),
        ("ignore_index", "differ in ignore_index (-100 on ranks 0, 1; -1 on rank 2)"),
        ("token_bytes", "differ in token_bytes (none on ranks 0, 1; "),
        ("passes", "in extras of passes (none on ranks 0, 1; "),
    ],
)
def test_unlike_settings_are_the_same_error_on_every_rank(tmp_path: Path, name: str, text: str, together: bool) -> None:
    """At the first step, naming the setting and the ranks; who goes on counts for itself, and loses nothing."""
    outcomes = run("unlike_settings", tmp_path, name, together, size=3)
    errors = [outcome.answer[0] for outcome in outcomes]
    assert errors[0] == errors[1] == errors[2] and text in errors[0][0] and errors[0][1:] == [""] * 5
    assert all(outcome.seconds < 3 * busy() for outcome in outcomes)
    assert on_disk(tmp_path) == 6 * sum(TOKENS)


@pytest.mark.parametrize("together", [False, True])
def test_a_rank_that_skipped_an_optimizer_step_is_told(tmp_path: Path, together: bool) -> None:
    """On every rank, once, at the first read-out that shows it; from there on each counts for itself, and nobody waits."""
    for rank, outcome in enumerate(run("one_skips", tmp_path, together)):
        (text,) = outcome.warnings
        told = f"a rank skipped an optimizer step: the group's are at 5 to 6 at one time, rank {rank} is at {5 + rank}"
        assert told in text and outcome.seconds < 3 * busy()
    assert on_disk(tmp_path) == 12 * BOTH


@pytest.mark.parametrize("made", [False, True])
def test_two_equal_monitors_in_unlike_orders_are_an_error_on_every_rank(tmp_path: Path, made: bool) -> None:
    """In place of numbers of which nobody knows what they are of."""
    outcomes = run("unlike_orders", tmp_path, made)
    errors = [outcome.answer[0] for outcome in outcomes]
    assert errors[0] == errors[1] and "give each monitor a prefix of its own" in errors[0][0]
    assert all(outcome.seconds < 3 * busy() for outcome in outcomes) and on_disk(tmp_path) == 4 * BOTH


# 2.


@pytest.mark.parametrize("victim", [0, 1])
def test_who_lost_the_others_goes_on_watching(tmp_path: Path, victim: int) -> None:
    """It judges, shows its windows as its own, writes them at its own cadence and honours its own wish to stop."""
    outcome = run("one_is_lost", tmp_path, victim)[1 - victim]
    step = TOKENS[1 - victim]
    windows, heard, stops, last = outcome.answer
    assert windows == [[3, 4 * BOTH, 0], [7, 3 * step, 1], [11, 4 * step, 1], [15, 4 * step, 1]]
    assert heard == [8] and stops and last == [17, 2 * step, 1] and outcome.seconds < 3 * busy()
    local = [row for row in rows(tmp_path, 1 - victim) if row[0] == "local"]
    assert local == [
        ("local", 7, 3 * step, 1),
        ("local", 11, 4 * step, 1),
        ("local", 15, 4 * step, 1),
        ("local", 17, 2 * step, 1),
    ]
    assert on_disk(tmp_path) == 5 * BOTH + 13 * step


def test_who_lost_the_others_and_is_killed_too_leaves_its_windows(tmp_path: Path) -> None:
    """Its counts do not wait for ``close``."""
    run("one_is_lost", tmp_path, 1, 16, False)
    assert on_disk(tmp_path) == 5 * BOTH + 11 * ONE


def test_the_larger_part_goes_on_too(tmp_path: Path) -> None:
    """Of three ranks one is lost: each of the two others counts for itself, and none twice."""
    outcomes = run("one_is_lost", tmp_path, 2, size=3)
    assert all(outcome.answer[1:3] == [[8], True] and outcome.seconds < 3 * busy() for outcome in outcomes[:2])
    assert on_disk(tmp_path) == 5 * sum(TOKENS) + 13 * BOTH


def test_who_holds_tokens_back_when_a_rank_is_lost_counts_each_once(tmp_path: Path) -> None:
    """What was merged of ranks that had chosen is merged; what a rank held back, for its losses to tell the shift, is its own."""
    outcomes = run("lost_before_the_choice", tmp_path, 2, size=3)
    assert [outcome.answer[1:] for outcome in outcomes[:2]] == [[7, 2], [80, 2]]
    assert all(outcome.seconds < 3 * busy() and outcome.error == "" for outcome in outcomes[:2])
    assert on_disk(tmp_path) == 9 * 7 + 9 * 80 + 2 * 800


# 3.


@pytest.mark.parametrize("victims", [[0], [0, 1], [1]])
def test_the_lowest_survivor_shows_numbers_in_place_of_a_lost_writer(tmp_path: Path, victims: list[int]) -> None:
    """In loggers under keys that say whose they are, after the last whole window; what was merged is on disk, and all else."""
    outcomes = run("writer_is_lost", tmp_path, victims, size=3)
    left = [rank for rank in range(3) if rank not in victims]
    for rank in left:
        last, keys, runs, alerts = outcomes[rank].answer
        first = rank == left[0]
        assert last == [51, 2 * TOKENS[rank], 2] and outcomes[rank].seconds < 3 * busy() and outcomes[rank].error == ""
        assert keys == (sorted(["train", f"rank{rank}/train"]) if first else []) and runs == int(first or rank == 0)
        assert len(alerts) == int(first) and all(
            f"rank {rank} alone, 2 of its group missing" in text for text in alerts
        )
        assert (rank == 0) == (("merged", 4, 5 * sum(TOKENS), 0) not in rows(tmp_path, rank))
    assert on_disk(tmp_path) == 5 * sum(TOKENS) + 47 * sum(TOKENS[rank] for rank in left)


def test_a_writer_that_notices_late_stays_one(tmp_path: Path) -> None:
    """Another has taken its place by then: both show what is theirs, under unlike keys, and nothing is lost."""
    outcomes = run("writer_is_lost", tmp_path, [2], 1.0, size=3)
    assert [outcome.answer[1] for outcome in outcomes[:2]] == [["rank0/train", "train"], ["rank1/train", "train"]]
    assert on_disk(tmp_path) == 5 * sum(TOKENS) + 47 * BOTH and all(
        outcome.seconds < 3 * busy() for outcome in outcomes[:2]
    )


# 4.


@pytest.mark.parametrize("victim", [0, 1])
def test_a_pass_after_a_loss_bears_the_missing_ranks(tmp_path: Path, victim: int) -> None:
    """Under keys that say whose it is, and on disk, whoever is left."""
    outcome = run("lost_before_a_pass", tmp_path, victim)[1 - victim]
    step = 1000 * TOKENS[1 - victim]
    passes, keys, _ = outcome.answer
    assert passes == [[step, 1], [step, 1]] and outcome.seconds < 3 * busy()
    assert all(key.startswith("rank0/val/") for key in keys) and bool(keys) == (victim == 1)
    assert on_disk(tmp_path, "val") == 2 * step and on_disk(tmp_path) == 4 * BOTH


@pytest.mark.parametrize("victim", [0, 1])
def test_a_pass_in_which_a_rank_is_lost_bears_it(tmp_path: Path, victim: int) -> None:
    """It has the survivor's tokens, and says so."""
    outcome = run("lost_in_a_pass", tmp_path, victim)[1 - victim]
    assert outcome.answer[:2] == [3 * TOKENS[1 - victim], 1] and outcome.seconds < 3 * busy()
    assert on_disk(tmp_path, "val") == 3 * TOKENS[1 - victim] and on_disk(tmp_path) == 4 * BOTH


# 6.


@pytest.mark.parametrize("judge_every", [1, 4])
def test_a_group_that_ends_before_the_monitor_is_a_severed_link(tmp_path: Path, judge_every: int) -> None:
    """Told once; one rank writes, and every token is on disk once."""
    outcomes = run("ended_before_close", tmp_path, judge_every)
    for rank, outcome in enumerate(outcomes):
        assert outcome.error == "" and outcome.answer[1:] == [rank, rank == 0] and outcome.seconds < 3 * busy()
        (text,) = outcome.warnings
        assert "the process group was ended before monitor.close()" in text
    assert on_disk(tmp_path) == 10 * BOTH


def test_another_group_is_not_joined_by_the_same_monitor(tmp_path: Path) -> None:
    """It goes on for each rank alone, told once."""
    outcomes = run("another_group", tmp_path)
    assert all(
        outcome.error == "" and len(outcome.warnings) == 1 and outcome.seconds < 3 * busy() for outcome in outcomes
    )
    assert on_disk(tmp_path) == 10 * BOTH


def test_survivors_join_again_with_a_new_group_and_a_new_monitor(tmp_path: Path) -> None:
    """Whole numbers again."""
    for outcome in run("survivors_join", tmp_path):
        assert outcome.answer == [3, 4 * BOTH, 0] and outcome.error == ""


def test_a_monitor_made_before_the_group_joins_it(tmp_path: Path) -> None:
    """Where nothing was counted yet."""
    for rank, outcome in enumerate(run("made_before", tmp_path, 0)):
        assert outcome.answer == [[[3, 4 * BOTH, 0]], [5, 2 * BOTH, 0], rank, rank == 0] and outcome.warnings == []
        assert outcome.seconds < 3 * busy()
    assert on_disk(tmp_path / "own0") == 6 * BOTH


def test_a_monitor_used_before_the_group_says_that_it_does_not_join(tmp_path: Path) -> None:
    """Its rank is the group's from there on, and its windows are marked."""
    for rank, outcome in enumerate(run("made_before", tmp_path, 2)):
        (text,) = outcome.warnings
        assert "so it does not join the group: make the monitor after init_process_group" in text
        assert outcome.answer[2:] == [rank, rank == 0] and outcome.answer[1] == [7, 4 * TOKENS[rank], 1]
        assert on_disk(tmp_path / f"own{rank}") == 8 * TOKENS[rank] and outcome.seconds < 3 * busy()


# 9.


def test_a_rank_that_abandons_and_lives_on_leaves_nobody_waiting(tmp_path: Path) -> None:
    """The others see their next collective fail, long before the user's timeout."""
    first, second = run("one_abandons", tmp_path, timeout=60)
    assert first.error == second.error == "" and first.seconds < 3 * busy() and second.seconds < 3 * busy()
    assert "a collective failed" in first.warnings[0]
    assert on_disk(tmp_path) == 5 * BOTH + 7 * ONE


def test_who_abandons_beside_a_read_out_leaves_nobody_waiting(tmp_path: Path) -> None:
    """The others hear of it within seconds, and can end, although what waits for the rank goes on waiting."""
    first, second = run("one_abandons_beside_a_read_out", tmp_path, timeout=60)
    assert first.error == second.error == "" and first.seconds < 3 * busy() and second.seconds < 3 * busy()
    assert "another rank has left the run" in first.warnings[0]
    twice = TWO  # of the read-out that rank 1 no longer waited for, and rank 0 took in
    assert on_disk(tmp_path) == 6 * BOTH + 6 * ONE + twice


def test_who_abandons_is_not_waited_for_at_the_end_of_a_pass(tmp_path: Path) -> None:
    """It bears the missing rank."""
    first, _ = run("one_abandons_before_a_pass", tmp_path, timeout=60)
    assert first.answer[0] == [1000 * ONE, 1] and first.error == "" and first.seconds < 3 * busy()


def test_who_abandons_before_ranks_agree_waits_for_nobody_and_is_not_waited_for(tmp_path: Path) -> None:
    """Ranks agree on the names of the user's own numbers, and on an earlier run, after a read-out; what was merged stays so."""
    for who, settings in [(1, {}), (0, {"reference": "nowhere"})]:
        where = tmp_path / str(who)
        where.mkdir()
        outcomes = run("one_abandons_before_ranks_agree", where, who, settings, timeout=60)
        left = outcomes[1 - who]
        assert outcomes[who].seconds < busy() and left.seconds < 3 * busy() and [o.error for o in outcomes] == ["", ""]
        assert left.answer == [7, 4 * TOKENS[1 - who], 1] and on_disk(where) == BOTH + 7 * TOKENS[1 - who]
        values = [
            row.get("numbers", {}).get("optim/lr") for path in where.glob("*.jsonl") for row in read_journal(path)
        ]
        assert {0.5, 1.5} & set(values)  # each rank's own, where they did not agree


def test_a_new_monitor_after_an_exception_is_whole_again(tmp_path: Path) -> None:
    """In the same group, whatever read-out was under way on which rank, and whichever rank had the exception."""
    ends = ["under way", "taken in", "taken in by one", "on one rank", "under way"]
    for rank, outcome in enumerate(run("begins_anew_after", tmp_path, ends, timeout=60)):
        assert outcome.answer == [[3, 4 * BOTH, 0]] * len(ends) and outcome.error == "" and outcome.seconds < 3 * busy()
        assert len(outcome.warnings) == rank  # of the one that lost the other


def test_monitors_that_share_a_communicator_leave_it_together(tmp_path: Path) -> None:
    """What one sends would not meet what the other ranks send: they would wait for the user's timeout."""
    first, second = run("one_of_two_monitors_is_abandoned", tmp_path, timeout=60)
    assert first.error == second.error == "" and first.seconds < 3 * busy() and second.seconds < 3 * busy()
    (told,) = second.warnings
    assert "another monitor has left the communicator that monitors of the same ranks share" in told
    assert on_disk(tmp_path) == 2 * BOTH + 6 * ONE


def test_a_forked_child_writes_nothing_that_it_inherited(tmp_path: Path) -> None:
    """Neither the parent's buffered rows nor a window of its own."""
    (outcome,) = run("forked", tmp_path, size=1)
    lines = (tmp_path / "pplmon.jsonl").read_text().splitlines()
    assert outcome.answer == [9, 2 * ONE, 0] and len(lines) == len(set(lines)) and on_disk(tmp_path) == 10 * ONE
    assert outcome.seconds < 3 * busy()


def test_a_saved_state_is_never_ahead_of_the_journal(tmp_path: Path) -> None:
    """What the rules saw before it is on the disk."""
    run("saved_and_killed", tmp_path, size=1)
    assert [row["step"] for row in read_journal(tmp_path) if row["kind"] == "judged"] == list(range(10))


def test_two_threads_at_once_are_an_error(tmp_path: Path) -> None:
    """In place of tokens that are lost in silence."""
    (outcome,) = run("two_threads", tmp_path, size=1)
    assert outcome.answer and "one thread" in outcome.answer[0]
