"""Faults around a run: killed ranks, a full disk, loggers and handlers that fail or hang. Each is injected for real."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

import pplmon
from pplmon.monitor import delivery, failures
from pplmon.sinks import Journal, Sink, read_journal
from tests.fault_script import TOKENS, stats
from tests.launch import run_script, start_script


def wait_for(condition: Any, seconds: float = 60.0) -> Any:
    """Wait until a condition gives something, and return it."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)
    return found


def told(where: Path) -> set[tuple[str, int]]:
    """What a sink behind the journal was told."""
    path = where / "told.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return {(line.split()[0], int(line.split()[1])) for line in lines}


def journalled(where: Path) -> set[tuple[str, int]]:
    """What the journal holds of it."""
    return {(row["kind"], row["step"]) for row in read_journal(where) if row["kind"] in ("report", "alert")}


def own_windows(where: Path) -> set[tuple[str, int]]:
    """The windows in the writer's own journal, which bear that ranks are missing."""
    path = where / "pplmon.rank0.jsonl"
    return {("report", row["step"]) for row in read_journal(path)} if path.exists() else set()


def run_monitor(steps: int, **settings: Any) -> tuple[pplmon.Report | None, list[str]]:
    """A plain loop with an alert every other step; returns the last report and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = pplmon.Monitor(every_n_steps=1, alerts=[pplmon.Above("max_token_loss", 40.0)], **settings)
        for step in range(steps):
            monitor.observe(stats(10, 50.0 if step % 2 else 3.0))
            monitor.step()
        last = monitor.close()
    return last, [str(w.message) for w in caught]


class Keeps(Sink):
    """A sink that works."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.alerts: list[int | None] = []
        self.closed = False

    def report(self, report: pplmon.Report, scalars: Any) -> None:
        self.steps.append(report.step)

    def alert(self, alert: pplmon.Alert) -> None:
        self.alerts.append(alert.step)

    def close(self) -> None:
        self.closed = True


# Killed.


@pytest.mark.ranks
@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)], ids=["the writer", "another rank", "all"])
def test_kill_of_ranks(tmp_path: Path, victims: tuple[int, ...]) -> None:
    """SIGKILL: what was told of is on disk; who survives goes on alone, warned, and loses none of its own tokens."""
    run = start_script("tests.fault_script", "plain", tmp_path, "120", out=tmp_path)
    wait_for(lambda: ("alert", 13) in told(tmp_path))
    for rank in victims:
        os.kill(int((tmp_path / f"pid{rank}").read_text()), signal.SIGKILL)
    run.join(60)
    text = (tmp_path / "stderr").read_text()
    assert told(tmp_path) and told(tmp_path) <= journalled(tmp_path) | own_windows(tmp_path)
    counted = sum(row["numbers"]["tokens"] for row in read_journal(tmp_path) if row["kind"] == "report")
    for rank in {0, 1} - set(victims):
        assert (tmp_path / f"done{rank}").exists()  # training went on to its end
        assert "a collective failed" in text and "Training goes on" in text
        own = [row for row in read_journal(tmp_path / f"pplmon.rank{rank}.jsonl") if row["kind"] == "local"]
        assert own and all((row["rank"], row["ranks_missing"]) == (rank, 1) for row in own)
        if rank == 0:  # the writer's tokens are those of all steps, in the journal or in its own
            assert (counted + sum(row["numbers"]["tokens"] for row in own)) % TOKENS[1] // TOKENS[0] == 120 * TOKENS[
                0
            ] % TOKENS[1] // TOKENS[0]


def test_a_torn_last_line_is_read_past(tmp_path: Path) -> None:
    """Wherever a kill cut the last line, all others are read, and the next run's rows are not lost with it."""
    run_monitor(4, sinks=[Journal(tmp_path)])
    whole = (tmp_path / "pplmon.jsonl").read_bytes()
    before = len(read_journal(tmp_path))
    last = len(whole.splitlines()[-1])
    for cut in (1, 2, last // 2, last - 1, last):
        torn = tmp_path / f"torn{cut}"
        torn.mkdir()
        (torn / "pplmon.jsonl").write_bytes(whole[:-cut])
        assert len(read_journal(torn)) == (before if cut == 1 else before - 1)
        journal = Journal(torn)
        journal.report(pplmon.Report(99), {})
        journal.close()
        assert read_journal(torn)[-1]["step"] == 99


# Places that fail.


class Fails(Keeps):
    """A logger that fails at every report and alert."""

    def report(self, report: pplmon.Report, scalars: Any) -> None:
        raise ConnectionError("no route to host")

    def alert(self, alert: pplmon.Alert) -> None:
        raise ConnectionError("no route to host")


def test_a_logger_that_raises_is_left_out_after_three_failures() -> None:
    """It is told what is lost, for reports and for alerts; the others get everything, the run its numbers, and it is closed."""
    bad, good = Fails(), Keeps()
    last, texts = run_monitor(8, sinks=[bad, good])
    plain, _ = run_monitor(8, sinks=[Keeps()])
    assert last == plain and good.steps == list(range(8)) and good.alerts == [1, 3, 5, 7]
    assert len(texts) == 3 and "failed at 'report': ConnectionError: no route to host" in texts[0]
    assert sorted(text.split(": Con")[0] for text in texts if "is left out" in text) == [
        "pplmon: Fails failed at 'alert'",
        "pplmon: Fails failed at 'report'",
    ]
    assert bad.closed


class Flaky(Keeps):
    """A logger whose host fails at some of its calls."""

    def __init__(self, *fails: int) -> None:
        super().__init__()
        self.calls, self._fails = 0, fails

    def report(self, report: pplmon.Report, scalars: Any) -> None:
        self.calls += 1
        if self.calls in self._fails:
            raise ConnectionError("502")
        super().report(report, scalars)


def test_failures_far_apart_silence_no_logger() -> None:
    """Three in 400 windows cost three windows, and one warning says so."""
    flaky = Flaky(5, 100, 200)
    _, texts = run_monitor(400, sinks=[flaky])
    assert flaky.steps == [step for step in range(400) if step + 1 not in (5, 100, 200)]
    assert len(texts) == 1 and "Flaky failed at 'report': ConnectionError: 502" in texts[0]


def test_a_logger_that_was_left_out_is_tried_again() -> None:
    """Its host is back after ten calls: the later it is found the more is lost, which is told, and it gets the rest."""
    flaky = Flaky(*range(3, 7))
    _, texts = run_monitor(40, sinks=[flaky])
    # Calls 3 to 5 fail, two are left out, the sixth fails, four are left out, and the next one works.
    assert flaky.steps == [0, 1, *range(12, 40)]
    assert len(texts) == 3 and "left out" in texts[1] and "Flaky works again at 'report'; it lacks 10 calls" in texts[2]


def test_a_logger_that_takes_no_alerts_still_gets_reports() -> None:
    """Kinds of call are counted apart."""

    class NoAlerts(Keeps):
        def alert(self, alert: pplmon.Alert) -> None:
            raise TypeError("must be real number, not list")

    sink = NoAlerts()
    _, texts = run_monitor(12, sinks=[sink])
    assert sink.steps == list(range(12)) and len(texts) == 2 and all("'alert'" in text for text in texts)


def test_a_slow_logger_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that holds the step up is named, once, with its time."""
    monkeypatch.setattr(failures, "SLOW_S", 0.02)

    class Slow(Keeps):
        def report(self, report: pplmon.Report, scalars: Any) -> None:
            time.sleep(0.03)

    _, texts = run_monitor(4, sinks=[Slow(), Keeps()])
    assert len(texts) == 1 and re.search(r"Slow took \d+\.\d s at .report.; the training step waited", texts[0])


def test_a_full_disk_costs_the_journal_only(tmp_path: Path) -> None:
    """ENOSPC from the first byte: the run, the other sinks and the alerts go on."""
    (tmp_path / "pplmon.jsonl").symlink_to("/dev/full")
    good = Keeps()
    last, texts = run_monitor(8, sinks=[good, Journal(tmp_path)])
    assert last is not None and good.steps == list(range(8)) and good.alerts == [1, 3, 5, 7]
    assert "No space left on device" in texts[0] and all("is left out" in text for text in texts[1:])


def test_a_disk_that_fills_up_keeps_what_was_written(tmp_path: Path) -> None:
    """A limit in the middle of the run: training ends as it should, and what was journalled before is readable."""
    done = run_script("tests.fault_script", "full_disk", tmp_path)
    assert done.returncode == 0 and "trained to the end" in done.stdout
    assert "Journal failed" in done.stderr and "is left out" in done.stderr
    kept = sorted(step for _, step in journalled(tmp_path))
    assert kept == list(range(len(kept))) and 5 < len(kept) < 60
    assert len(told(tmp_path)) == 60


def test_an_alert_handler_that_raises() -> None:
    """It is told of and left out; the others hear every alert."""
    heard: list[pplmon.Alert] = []

    def raises(alert: pplmon.Alert) -> None:
        raise TimeoutError("mail server")

    _, texts = run_monitor(8, on_alert=[raises, heard.append])
    assert len(heard) == 4 and len(texts) == 2 and "raises failed at 'alert'" in texts[0] and "is left out" in texts[1]


def test_an_alert_handler_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for, not for ever, and left out after three times; the others hear every alert."""
    monkeypatch.setattr(delivery, "HANG_S", 0.05)
    heard: list[pplmon.Alert] = []
    release = threading.Event()
    begun = time.monotonic()
    _, texts = run_monitor(10, on_alert=[lambda alert: release.wait(30), heard.append])
    release.set()
    assert time.monotonic() - begun < 5 and len(heard) == 5
    assert "no answer within 0.05 s" in texts[0] and "is left out" in texts[1] and len(texts) == 2


def test_a_rule_that_raises() -> None:
    """A rule of the user's is left out; ours go on."""

    def rule(report: pplmon.Report) -> pplmon.Alert | None:
        raise ZeroDivisionError

    good = Keeps()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = pplmon.Monitor(alerts=[rule, pplmon.Above("max_token_loss", 40.0)], sinks=[good])
        for step in range(8):
            monitor.observe(stats(10, 50.0 if step % 2 else 3.0))
            monitor.step()
        monitor.close()
    assert good.alerts == [1, 3, 5, 7] and len(caught) == 2


def test_abandoned_in_a_pass_writes_each_stage_by_itself(tmp_path: Path) -> None:
    """What was counted of a validation pass is not mixed with training."""
    monitor = pplmon.Monitor(sinks=[Journal(tmp_path)], alerts=[])
    monitor.observe(stats(10, 3.0))
    with pytest.raises(KeyError), monitor.stage("val"):
        monitor.observe(stats(30, 3.0))
        monitor.abandon()
        raise KeyError
    own = [json.loads(line) for line in (tmp_path / "pplmon.rank0.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["numbers"]["tokens"]) for row in own] == [("train", 10), ("val", 30)]


@pytest.mark.slow  # each imports its logger in a process of its own
@pytest.mark.parametrize("disk", ["full", "read-only"])
@pytest.mark.parametrize("sink", ["Journal", "TensorBoard", "WandB"])
def test_no_sink_minds_a_disk_that_takes_nothing(tmp_path: Path, sink: str, disk: str) -> None:
    """Training goes on to its end, and every alert is heard; a warning names the sink, unless its library found a way."""
    where, limit = (tmp_path, 512) if disk == "full" else (Path("/sys/pplmon"), 10**9)  # no user may write there
    done = run_script(
        "tests.fault_script",
        "bad_disk",
        where,
        sink,
        limit,
        afresh=True,  # whose standard error is a pipe: a file of it would not grow beyond the limit either
        TMPDIR=str(tmp_path),
        WANDB_MODE="offline",
        WANDB_SILENT="true",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trained to step 59, alerts at [3, 23, 43]" in done.stdout
    # W&B writes to a temporary folder instead, and of a full disk it tells by itself.
    assert sink == "WandB" or f"pplmon: {sink} failed" in done.stderr
