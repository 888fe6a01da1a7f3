"""A journal that is kept within a size: what is left is replayed exactly, and two processes in one file are told."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import pplmon
from pplmon import Monitor
from pplmon.alerts import Alert
from pplmon.page.runs import read_runs
from pplmon.report.report import Report
from pplmon.sinks import Journal, journal_bound, read_journal
from tests.launch import start_server
from tests.test_replay import BATCH, STEP, Life, live_alerts, replayed, stats, told

SMALL = 0.008  # megabytes: a mark every thousand bytes, and a cut every few


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, every one."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a bound be a few kilobytes, which real runs need not try."""
    monkeypatch.setattr(journal_bound, "LEAST", 0.0)


@settings(max_examples=5, phases=[Phase.explicit, Phase.generate])
@given(script=st.lists(st.tuples(STEP, BATCH), min_size=40, max_size=80))
def test_what_is_left_is_replayed_exactly(tmp_path_factory: pytest.TempPathFactory, script: list[Any]) -> None:
    """With crashes, resumed and fresh starts, the alerts after the last cut come out, bit-identical."""
    path = tmp_path_factory.mktemp("run") / "pplmon.jsonl"
    life = Life(path.parent, SMALL, every_n_steps=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rules that lack a number, targets
        for what, (losses, invalid) in [("step", ([1.0], 0)), *script]:
            life.live(what, losses, invalid)
        for _ in range(12):  # so that the last run has rows after a cut
            life.live("step", [1.0], 0)
        life.live("end", [], 0)
    lines = rows(path)
    assert any(row["kind"] == "cut" for row in lines)
    last = max(i for i, row in enumerate(lines) if row["kind"] in ("cut", "run") and row.get("resumed_at") is None)
    result = replayed(path)
    here = [told(f.alert) for f in result.fired]
    assert here == live_alerts(path)[len(live_alerts(path)) - len(here) :]
    assert result.differs == (0, 0)
    assert sum(row["kind"] == "alert" for row in lines[last:]) == len(here)


def test_a_cut_takes_judged_rows_only_and_is_told(tmp_path: Path) -> None:
    """Reports, alerts and the run's row stay; the file stays within its bound, and a replay says where it begins."""
    path = tmp_path / "pplmon.jsonl"
    monitor = Monitor(
        every_n_steps=100, sinks=[Journal(tmp_path, max_megabytes=0.06)], alerts=[pplmon.Above("max_token_loss", 9.0)]
    )
    sizes = []
    for step in range(300):
        monitor.observe(stats([20.0 if step in (40, 290) else 1.0]))
        monitor.step()
        sizes.append(path.stat().st_size if path.exists() else 0)
    monitor.close()
    assert max(sizes) < 75_000 and any(b < a for a, b in zip(sizes, sizes[1:]))
    kept = rows(path)
    assert [row["step"] for row in kept if row["kind"] == "report"] == [99, 199, 299]
    assert [row["step"] for row in kept if row["kind"] == "alert"] == [40, 290]
    (cut,) = [row for row in kept if row["kind"] == "cut"]
    first = min(row["step"] for row in kept if row["kind"] == "judged")
    assert cut["step"] == first - 1 > 40
    result = replayed(path)
    assert [f.alert.step for f in result.fired] == [290] and result.differs == (0, 0)
    assert f"rows judged up to step {cut['step']} are gone" in result.notes[0]
    (run,) = read_runs([path])
    assert [step for step, _ in run.tables["train"].points("cross_entropy")][:2] == [99, first] or first < 99
    assert [alert.step for alert in run.alerts] == [40, 290]


def test_two_monitors_in_one_file_lose_nothing_of_each_other(tmp_path: Path) -> None:
    """A cut is of the rows of one monitor; the other goes on in the new file."""
    bounded = Journal(tmp_path, prefix="a/", max_megabytes=0.005)
    other = Journal(tmp_path, prefix="b/")
    for step in range(60):
        for journal in (bounded, other):
            journal.judged(Report(step, numbers={"cross_entropy": 2.0, "perplexity": 7.4, "tokens": 12}))
        bounded.remember(step, lambda: {"rules": []})
    bounded.close(), other.close()
    kept = [row for row in rows(tmp_path / "pplmon.jsonl") if row["kind"] == "judged"]
    assert [row["step"] for row in kept if row["prefix"] == "b/"] == list(range(60))
    mine = [row["step"] for row in kept if row["prefix"] == "a/"]
    assert mine == list(range(mine[0], 60)) and mine[0] > 10


def test_a_bound_that_is_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What rules remember needs room; the text says what was expected."""
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"max_megabytes has to be at least 1, got 0.5; None keeps every row"):
        Journal(tmp_path, max_megabytes=0.5)
    with pytest.raises(ValueError, match="got nan"):
        Journal(tmp_path, max_megabytes=float("nan"))


def write_until(directory: Path, writing: Any, over: Any) -> None:
    """Write a journal, as another process, from ``writing`` until ``over``."""
    journal = Journal(directory)
    journal.start({})
    writing.set()
    over.wait()
    journal.close()


@pytest.mark.skipif(sys.platform == "win32", reason="files have no such marks on Windows")
def test_two_processes_that_write_one_journal_are_told(tmp_path: Path) -> None:
    """While both write: once, with the path and what to do. One that is over is no other process."""
    context = start_server()
    writing, over = context.Event(), context.Event()
    other = context.Process(target=write_until, args=(tmp_path, writing, over))
    other.start()
    assert writing.wait(60)
    journal = Journal(tmp_path)
    with pytest.warns(RuntimeWarning, match=r"another process is writing .*pplmon.jsonl at this moment.*of its own"):
        journal.start({})
    journal.alert(Alert("Spike", "up"))
    over.set()
    other.join(60)
    journal.close()
    journal.alert(Alert("Spike", "up again"))
    journal.close()
    assert [row["kind"] for row in read_journal(tmp_path)] == ["run", "run", "alert"]
