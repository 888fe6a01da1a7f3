"""What ranks do in the tests of ranks that are lost, late or disagree."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import pplmon
from pplmon.monitor import next_writer, patience
from pplmon.sinks import Journal, Sink
from pplmon.tally import ranks as groups
from pplmon.trainers.settings import Settings
from tests.apart import TOKENS, At
from tests.fault_script import stats


class Shown(Sink):
    """Keeps the log keys that it was given, the texts of alerts, and how often a run began."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.alerts: list[str] = []
        self.runs = 0

    def start(self, run: Any) -> None:
        self.runs += 1

    def alert(self, alert: pplmon.Alert) -> None:
        self.alerts.append(alert.text)

    def report(self, report: pplmon.Report, scalars: Any) -> None:
        self.keys |= set(scalars)


def monitor_of(at: At, **settings: Any) -> pplmon.Monitor:
    """A monitor with windows of four steps and a journal."""
    return pplmon.Monitor(**{"every_n_steps": 4, "sinks": [Journal(at.where)], "alerts": [], **settings})


def train(at: At, monitor: pplmon.Monitor, steps: int, together: bool = False, worst: float = 3.0) -> list[Any]:
    """Train so many steps; with ``together`` each has a collective of the training's own. Returns the windows."""
    windows = []
    for _ in range(steps):
        monitor.observe(stats(TOKENS[at.rank], worst))
        if together:
            dist.all_reduce(torch.ones(3))
        with at.timed():
            report = monitor.step()
        if report is not None:
            windows.append([report.step, report.tokens, report.ranks_missing])
    return windows


def close(at: At, monitor: pplmon.Monitor) -> Any:
    """Close, and return the last report's step, tokens and missing ranks."""
    with at.timed():
        last = monitor.close()
    return last and [last.step, last.tokens, last.ranks_missing]


def validate(at: At, monitor: pplmon.Monitor, local: bool = False) -> list[int]:
    """A pass of a thousandfold of a step's tokens; returns its tokens and missing ranks."""
    with at.timed(), monitor.stage("val", local=local) as val:
        monitor.observe(stats(1000 * TOKENS[at.rank], 3.0))
    assert val.report is not None and val.report.tokens is not None
    return [val.report.tokens, val.report.ranks_missing]


def caught(at: At, call: Any, *args: Any) -> str:
    """Return the error that a call raises, "" for none."""
    try:
        with at.timed():
            call(*args)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def die() -> None:
    """As after a fault of the hardware."""
    os.kill(os.getpid(), signal.SIGKILL)


# 1. The user's timeout.


def one_stops_stepping(at: At, seconds: float | None = None) -> Any:
    """Rank 1 trains two steps and then does something else for long; with ``seconds`` the tally is over a group of its own."""
    at.init()
    group = None if seconds is None else dist.new_group([0, 1], timeout=timedelta(seconds=seconds))
    monitor = monitor_of(at, tally=pplmon.TokenTally(process_group=group))
    train(at, monitor, 2)
    if at.rank == 1:
        time.sleep(6)
        return None
    train(at, monitor, 4)
    return close(at, monitor)


def one_is_late(at: At) -> Any:
    """Rank 1 is late by more than torch's default, which is made short here, and not by the user's timeout."""
    dist.distributed_c10d.default_pg_timeout = timedelta(seconds=1)
    at.init()
    monitor = monitor_of(at)
    train(at, monitor, 2)
    if at.rank == 1:
        time.sleep(2.5)
    train(at, monitor, 2)
    return close(at, monitor)


# 2. Lost, and alone from there on.


def one_is_lost(at: At, victim: int, steps: int = 16, ends: bool = True) -> Any:
    """A rank dies after five steps; the others meet NaN and a wish to stop."""
    at.init()
    heard: list[int | None] = []
    monitor = monitor_of(at, alerts=[pplmon.Above("max_token_loss", 40.0)], on_alert=lambda a: heard.append(a.step))
    windows = train(at, monitor, 5)
    monitor.collect()
    dist.barrier()
    if at.rank == victim:
        die()
    windows += train(at, monitor, 3)
    windows += train(at, monitor, 1, worst=50.0)
    windows += train(at, monitor, steps - 9)
    monitor.request_stop()
    windows += train(at, monitor, 2)
    if not ends:
        die()
    return [windows, heard, monitor.should_stop, close(at, monitor)]


def lost_before_the_choice(at: At, victim: int) -> Any:
    """A rank is lost while rank 0 holds tokens back until its losses tell their shift; rank 1 has no losses."""
    at.init()
    monitor = monitor_of(at, every_n_steps=2)
    for step in range(9):
        torch.manual_seed(10 * step + at.rank)
        rows = 10**at.rank
        logits, targets = torch.randn(rows, 8, 50), torch.randint(50, (rows, 8))
        shifted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        monitor.observe(logits, targets, loss=shifted if at.rank == 0 else None)
        if step == 2:
            monitor.collect()
            assert len(monitor._shifts._waiting) == 2
            dist.barrier()
            if at.rank == victim:
                die()
        with at.timed():
            monitor.step()
    return close(at, monitor)


# 3. The rank that writes is lost.


def writer_is_lost(at: At, victims: list[int], late: float = 0.0) -> Any:
    """Ranks die after five steps, within a window of fifty; a rank that is late notices after the others have decided."""
    next_writer.WAIT_S = 0.3
    at.init()
    shown = Shown()
    settings = {"every_n_steps": 50, "alerts": [pplmon.Above("max_token_loss", 40.0)]}
    monitor = monitor_of(at, sinks=[Journal(at.where), shown], **settings)
    train(at, monitor, 5)
    monitor.collect()
    dist.barrier()
    before = set(shown.keys)
    if at.rank in victims:
        die()
    if at.rank == 0:
        time.sleep(late)
    train(at, monitor, 3)
    time.sleep(0.4)
    train(at, monitor, 1, worst=50.0)
    train(at, monitor, 43)
    last = close(at, monitor)
    return [last, sorted({key.rsplit("/", 1)[0] for key in shown.keys - before}), shown.runs, shown.alerts]


# 4. A pass that lacks ranks.


def lost_before_a_pass(at: At, victim: int) -> Any:
    """A rank dies, the others validate twice, and a sink sees what keys the numbers get."""
    at.init()
    shown = Shown()
    monitor = monitor_of(at, sinks=[Journal(at.where), shown])
    train(at, monitor, 4)
    monitor.collect()
    dist.barrier()
    before = set(shown.keys)
    if at.rank == victim:
        die()
    passes = [validate(at, monitor), validate(at, monitor)]
    return [passes, sorted(shown.keys - before), close(at, monitor)]


def lost_in_a_pass(at: At, victim: int) -> Any:
    """A rank dies in the middle of the pass."""
    at.init()
    monitor = monitor_of(at)
    train(at, monitor, 4)
    monitor.collect()
    dist.barrier()
    with at.timed(), monitor.stage("val") as val:
        for batch in range(3):
            if at.rank == victim and batch == 1:
                die()
            monitor.observe(stats(TOKENS[at.rank], 3.0))
    assert val.report is not None
    return [val.report.tokens, val.report.ranks_missing, close(at, monitor)]


# 5. A pass on one rank only.


def measure_more_in_passes(monitor: pplmon.Monitor) -> None:
    """Count passes with more integers than training, as every trainer does without ``tally=``."""
    more = Settings().pass_pattern(monitor.tally)
    assert more is not None
    monitor.also_measure_in_passes(more)


def one_validates(at: At, who: int, local: bool, together: bool, more: bool = False) -> Any:
    """After six steps one rank validates, and all go on for six more."""
    patience.LONG_S = 2.0
    at.init()
    monitor = monitor_of(at)
    if more:
        measure_more_in_passes(monitor)
    train(at, monitor, 6, together)
    errors, found = [], None
    if at.rank == who:
        if local:
            found = validate(at, monitor, local=True)
        else:
            errors.append(caught(at, validate, at, monitor))
    for _ in range(6):
        errors.append(caught(at, train, at, monitor, 1, together))
    return [[error for error in errors if error], found, close(at, monitor)]


def unlike_stages(at: At) -> Any:
    """One rank ends a pass over val, the other one over test."""
    at.init()
    monitor = monitor_of(at)
    train(at, monitor, 2)

    def run() -> None:
        with monitor.stage(("val", "test")[at.rank]):
            monitor.observe(stats(1000 * TOKENS[at.rank], 3.0))

    return [[caught(at, run)], None, close(at, monitor)]


def one_chooses(at: At) -> Any:
    """One rank adds integers up over ranks, as a session that chooses which logits to count; the other goes on training."""
    at.init()
    monitor = monitor_of(at)
    train(at, monitor, 2)
    run = (lambda: monitor.sum_over_ranks([1, 2])) if at.rank == 0 else (lambda: train(at, monitor, 2))
    return [[caught(at, run)], None, close(at, monitor)]


def both_choose(at: At) -> Any:
    """Both ranks add integers up; nothing of it is counted."""
    at.init()
    monitor = monitor_of(at)
    train(at, monitor, 2)
    return [monitor.sum_over_ranks([at.rank + 1, 2**40]), close(at, monitor)]


def one_fails_in_a_pass(at: At) -> Any:
    """A rank leaves its pass by an exception, which the loop catches."""
    at.init()
    monitor = monitor_of(at)
    train(at, monitor, 2)

    def run() -> None:
        with monitor.stage("val"):
            monitor.observe(stats(1000 * TOKENS[at.rank], 3.0))
            if at.rank == 1:
                raise KeyError("planned")

    errors = []
    try:
        errors.append(caught(at, run))
    except KeyError:
        errors.append(caught(at, train, at, monitor, 2))
    return [errors, None, close(at, monitor)]


def one_probes(at: At) -> Any:
    """One rank runs a probe in a pass of both."""
    at.init()
    monitor = monitor_of(at)
    train(at, monitor, 2)
    probe = pplmon.FreeRunningProbe([torch.arange(8)], horizon=4)

    def run() -> None:
        with monitor.stage("val"):
            monitor.observe(stats(1000 * TOKENS[at.rank], 3.0))
            if at.rank == 0:
                monitor.probe(probe, torch.nn.Sequential(torch.nn.Embedding(10, 10)))

    return [[caught(at, run)], None, close(at, monitor)]


def one_saves(at: At) -> Any:
    """One rank saves the monitor's state, which takes all of them."""
    at.init()
    monitor = monitor_of(at)
    train(at, monitor, 2)
    errors = [caught(at, monitor.state_dict)] if at.rank == 0 else []
    for _ in range(3):
        errors.append(caught(at, train, at, monitor, 1))
    return [[error for error in errors if error], None, close(at, monitor)]


# 7. Unlike settings, and a step that was skipped.

TALLIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "extras": ({"extras": [pplmon.Entropy()]}, {}),
    "top_k": ({"top_k": 4}, {}),
    "context": ({"context": 2}, {}),
    "ignore_index": ({"ignore_index": -1}, {}),
    "token_bytes": ({"token_bytes": [1] * 100}, {}),
}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "every_n_steps": ({"every_n_steps": 2}, {}),
    "judge_every_n_steps": ({"judge_every_n_steps": 3}, {}),
    "numbers": ({"numbers": "all"}, {}),
    "prefix": ({"prefix": "a/"}, {}),
    "alerts": ({"alerts": [pplmon.Above("max_token_loss", 40.0)]}, {}),
}


def unlike_settings(at: At, name: str, together: bool) -> Any:
    """One setting of the last rank is another; six steps."""
    at.init()
    odd = int(at.rank != at.size - 1)
    if name in TALLIES:
        monitor = monitor_of(at, tally=pplmon.TokenTally(**TALLIES[name][odd]))
    else:
        monitor = monitor_of(at, **SETTINGS.get(name, ({}, {}))[odd])
    if name == "passes" and not odd:
        measure_more_in_passes(monitor)
    errors = [caught(at, train, at, monitor, 1, together) for _ in range(6)]
    return [errors, close(at, monitor)]


def one_skips(at: At, together: bool) -> Any:
    """Rank 1 skips the sixth of twelve optimizer steps, which both count by themselves."""
    at.init()
    monitor = monitor_of(at)
    for step in range(12):
        monitor.observe(stats(TOKENS[at.rank], 3.0))
        if together:
            dist.all_reduce(torch.ones(3))
        if at.rank == 1 and step == 5:
            continue
        with at.timed():
            monitor.step_to(step)
    return close(at, monitor)


def unlike_orders(at: At, made: bool) -> Any:
    """Two monitors of equal settings are made, or called, in another order on rank 1."""
    at.init()
    if made and at.rank == 1:
        second, first = monitor_of(at, sinks=[]), monitor_of(at)
    else:
        first, second = monitor_of(at), monitor_of(at, sinks=[])
    errors = []
    for _ in range(4):
        for monitor in (second, first) if at.rank == 1 and not made else (first, second):
            errors.append(caught(at, train, at, monitor, 1))
    return [errors, close(at, first), close(at, second)]


# 6. Groups that end early, or begin late.


def ended_before_close(at: At, judge_every: int) -> Any:
    """The group is destroyed, and then the monitor is closed."""
    at.init()
    monitor = monitor_of(at, every_n_steps=8, judge_every_n_steps=judge_every)
    train(at, monitor, 10)
    dist.barrier()
    dist.destroy_process_group()
    time.sleep(0.2 * at.rank)
    return [close(at, monitor), monitor.rank, monitor.writes]


def another_group(at: At) -> Any:
    """The group is destroyed, and training goes on in another one, with the same monitor."""
    at.init()
    monitor = monitor_of(at)
    train(at, monitor, 6)
    dist.barrier()
    dist.destroy_process_group()
    at.init("another")
    windows = train(at, monitor, 4)
    return [windows, close(at, monitor)]


def survivors_join(at: At) -> Any:
    """After a loss a new group and a new monitor are whole again."""
    at.init()
    monitor = monitor_of(at)
    train(at, monitor, 4)
    dist.barrier()
    dist.destroy_process_group()
    close(at, monitor)
    at.init("another")
    monitor = monitor_of(at, prefix="again/")
    train(at, monitor, 4)
    return close(at, monitor)


def made_before(at: At, steps: int) -> Any:
    """A monitor is made, and perhaps used, before the group is."""
    monitor = monitor_of(at, sinks=[Journal(at.where / f"own{at.rank}")])
    train(at, monitor, steps)
    at.init()
    windows = train(at, monitor, 6)
    return [windows, close(at, monitor), monitor.rank, monitor.writes]


# 9. Threads, forks, and a rank that leaves and lives on.


def one_abandons(at: At) -> Any:
    """Rank 1 leaves the run by ``abandon``, and its process lives on."""
    at.init()
    monitor = monitor_of(at)
    train(at, monitor, 5)
    monitor.collect()
    if at.rank == 1:
        with at.timed():
            monitor.abandon()
        time.sleep(4)
        return None
    time.sleep(0.5)
    train(at, monitor, 7)
    return close(at, monitor)


def one_abandons_beside_a_read_out(at: At) -> Any:
    """Rank 1 abandons while a read-out waits for rank 0, which is late; then rank 0 ends its group."""
    at.init()
    monitor = monitor_of(at)
    train(at, monitor, 5)
    monitor.collect()
    dist.barrier()
    if at.rank == 1:
        train(at, monitor, 1)
        with at.timed():
            monitor.abandon(seconds=0.1)
        time.sleep(4)
        return None
    time.sleep(0.5)
    train(at, monitor, 7)
    last = close(at, monitor)
    del monitor
    groups._own.clear()
    with at.timed():
        dist.destroy_process_group()
        gc.collect()  # as at the end of a process
    return last


def one_abandons_before_a_pass(at: At) -> Any:
    """Rank 0 is at the end of a pass, where rank 1 does not come, with a read-out of its own under way."""
    at.init()
    monitor = monitor_of(at)
    train(at, monitor, 5)
    monitor.collect()
    if at.rank == 1:
        train(at, monitor, 1)
        monitor.abandon(seconds=0.1)
        time.sleep(4)
        return None
    time.sleep(0.5)
    train(at, monitor, 1)
    passed = validate(at, monitor)
    return [passed, close(at, monitor)]


def one_abandons_before_ranks_agree(at: At, who: int, settings: dict[str, Any]) -> Any:
    """A rank abandons once the first read-out has arrived, after which ranks agree on names or on an earlier run."""
    at.init()
    monitor = monitor_of(at, **settings)
    monitor.log("optim/lr", 0.5 + at.rank)
    train(at, monitor, 1)
    assert monitor._link.arrives(5)
    dist.barrier()
    if at.rank == who:
        with at.timed():
            monitor.abandon()
        time.sleep(4)
        return None
    time.sleep(2.5)
    train(at, monitor, 7)
    return close(at, monitor)


def begins_anew_after(at: At, ends: list[str]) -> Any:
    """Runs in one group, each ended by an exception on some ranks, or in the middle of a read-out; then one that is whole."""
    at.init()
    runs = []
    for number, how in enumerate(ends):
        monitor = monitor_of(at, sinks=[])
        train(at, monitor, 5)
        if how == "taken in" or (how == "taken in by one" and at.rank):
            monitor.collect()
        if how == "on one rank" and at.rank:
            train(at, monitor, 3)
            close(at, monitor)
        else:
            with at.timed():
                monitor.abandon()
        monitor = monitor_of(at, prefix=f"{number}/")
        train(at, monitor, 4)
        runs.append(close(at, monitor))
    return runs


def one_of_two_monitors_is_abandoned(at: At) -> Any:
    """Rank 1 abandons one of two monitors, and goes on with the other one."""
    at.init()
    first, second = monitor_of(at), monitor_of(at, prefix="b/", sinks=[])
    for step in range(8):
        train(at, second, 1)
        if step == 2 and at.rank == 1:
            first.abandon()
        train(at, first, 1)
    return [close(at, first), close(at, second)]


def forked(at: At) -> Any:
    """A forked child trains on and closes the monitor that it inherited, as the parent does."""
    at.init()
    monitor = monitor_of(at)
    train(at, monitor, 6)
    child = os.fork()
    if child == 0:
        monitor.close()
        os._exit(0)
    os.waitpid(child, 0)
    train(at, monitor, 4)
    return close(at, monitor)


def saved_and_killed(at: At) -> Any:
    """A state is saved, and the process killed after it."""
    monitor = monitor_of(at, every_n_steps=50)
    train(at, monitor, 10)
    monitor.state_dict()
    die()


def two_threads(at: At) -> Any:
    """One thread observes while another one closes steps."""
    monitor = monitor_of(at, every_n_steps=50)
    errors: list[str] = []
    until = time.monotonic() + 5

    def repeat(call: Any, *args: Any) -> None:
        try:
            while not errors and time.monotonic() < until:
                call(*args)
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=repeat, args=(monitor.observe, stats(10, 3.0)))
    thread.start()
    repeat(monitor.step)
    thread.join()
    return errors
