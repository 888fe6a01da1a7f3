"""A long run of a tiny model with everything on: does anything grow, and what does a step cost?

    python -m benchmarks.soak [--steps 10000] [--out result.json]

Alerts, validation, checkpoints (``Monitor.state_dict`` through ``torch.save``), a journal, TensorBoard, a logger that always
fails and one that fails now and then. Beside it the same training with a monitor that does nothing.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import statistics
import tempfile
import time
import warnings
from array import array
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import pplmon
from benchmarks.machine import machine
from pplmon.sinks import Journal, Sink, TensorBoard

VOCAB, WIDTH, ROWS, LENGTH = 256, 32, 4, 32
JUDGED, LOGGED, VALIDATED, SAVED, SPIKED = 1, 50, 250, 500, 97  # every so many steps
SPIKE = 60.0  # the logits of such a step, times this, cost hundreds of nats
SAMPLED = 50  # steps between two looks at the process
PAGE = os.sysconf("SC_PAGE_SIZE")


class AlwaysFails(Sink):
    """A logger whose server is gone."""

    def report(self, report: pplmon.Report, scalars: Any) -> None:
        raise ConnectionError("no route to host")


class SometimesFails(Sink):
    """A logger that loses two rows of the run, and so is never left out."""

    def __init__(self) -> None:
        self.rows = self.tries = 0

    def report(self, report: pplmon.Report, scalars: Any) -> None:
        self.tries += 1
        if self.tries in (2, 5):
            raise TimeoutError("busy")
        self.rows += 1


class Counts:
    """An alert handler that keeps nothing."""

    def __init__(self) -> None:
        self.alerts = 0

    def __call__(self, alert: pplmon.Alert) -> None:
        self.alerts += 1


class Soak:
    """What a run was like. Its own memory is taken at the start, so that it is not mistaken for growth."""

    def __init__(self, steps: int) -> None:
        self.steps, self.alerts, self.reports = steps, 0, 0
        self.monitor_s, self.step_s = array("d", bytes(8 * steps)), array("d", bytes(8 * steps))
        looks = steps // SAMPLED + 2
        self.looked_at, self.resident, self.threads, self.files = (array("q", bytes(8 * looks)) for _ in range(4))
        self.looks = 0
        self.states: list[int] = []  # bytes of each checkpoint

    def look(self, step: int) -> None:
        """Note what the process holds."""
        gc.collect()
        with open("/proc/self/statm") as file:
            self.resident[self.looks] = int(file.read().split()[1]) * PAGE
        self.looked_at[self.looks] = step
        self.threads[self.looks] = len(list(Path("/proc/self/task").iterdir()))
        self.files[self.looks] = len(list(Path("/proc/self/fd").iterdir()))
        self.looks += 1

    def slope(self) -> float:
        """Bytes of resident memory per 1000 steps, by least squares over all but the first tenth."""
        span = slice(self.looks // 10, self.looks)
        return 1000 * statistics.linear_regression(self.looked_at[span], self.resident[span]).slope

    def summary(self) -> dict[str, float]:
        """The figures of the table."""
        warm, last = self.looks // 10, self.looks - 1
        return {
            "steps": self.steps,
            "logged windows": self.reports,
            "alerts": self.alerts,
            "checkpoints": len(self.states),
            "resident after a tenth, MiB": self.resident[warm] / 2**20,
            "resident at the end, MiB": self.resident[last] / 2**20,
            "slope, KiB per 1000 steps": self.slope() / 1024,
            "threads after a tenth": self.threads[warm],
            "threads at the end": self.threads[last],
            "open files after a tenth": self.files[warm],
            "open files at the end": self.files[last],
            "first checkpoint, KiB": self.states[0] / 1024 if self.states else 0,
            "last checkpoint, KiB": self.states[-1] / 1024 if self.states else 0,
            "observe and step of the monitor, median µs": 1e6 * statistics.median(self.monitor_s),
            "whole step, median µs": 1e6 * statistics.median(self.step_s),
        }


def soak(steps: int, where: Path, monitored: bool = True) -> Soak:
    """Train for so many steps, with everything on or with nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    ids = torch.randint(0, VOCAB, (64, ROWS, LENGTH + 1))
    seen, counts = Soak(steps), Counts()
    monitor = _monitor(where, counts) if monitored else None
    for step in range(steps):
        batch = ids[step % len(ids)]
        begun = time.perf_counter()
        logits = model(batch[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        measured = logits.detach() * (SPIKE if step % SPIKED == SPIKED - 1 else 1)
        optimizer.step()
        optimizer.zero_grad()
        trained = time.perf_counter()
        if monitor is not None:
            monitor.observe(measured, batch[:, 1:])
            seen.reports += monitor.step() is not None
        seen.monitor_s[step], seen.step_s[step] = time.perf_counter() - trained, time.perf_counter() - begun
        if monitor is not None:
            _besides(step, monitor, model, ids, seen)
        if step % SAMPLED == 0:
            seen.look(step)
    if monitor is not None:
        monitor.close()
    seen.alerts = counts.alerts
    seen.look(steps)
    return seen


def _besides(step: int, monitor: pplmon.Monitor, model: nn.Module, ids: Tensor, seen: Soak) -> None:
    """Validation and checkpoints."""
    if step % VALIDATED == VALIDATED - 1:
        with monitor.stage("val"), torch.no_grad():
            for batch in ids[:4]:
                monitor.observe(model(batch[:, :-1]), batch[:, 1:])
    if step % SAVED == SAVED - 1:
        file = io.BytesIO()
        torch.save(monitor.state_dict(), file)
        seen.states.append(file.tell())


def _monitor(where: Path, counts: Counts) -> pplmon.Monitor:
    sinks = [Journal(where), TensorBoard(where), AlwaysFails(), SometimesFails()]
    rules = [pplmon.Above("max_token_loss", 40.0), *pplmon.default_alerts()]
    return pplmon.Monitor(LOGGED, JUDGED, "all", sinks=sinks, alerts=rules, on_alert=counts)


def main(arguments: list[str] | None = None) -> None:
    """Run with and without, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as where:
        alone = soak(options.steps, Path(where), monitored=False).summary()
        both = {"with pplmon": soak(options.steps, Path(where)).summary(), "without": alone}
    shown = Table("", *both, title=f"{options.steps} optimizer steps")
    for name in both["without"]:
        shown.add_row(name, *(f"{figures[name]:,.1f}".removesuffix(".0") for figures in both.values()))
    Console().print(shown)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine(), "results": both}, indent=1) + "\n")


if __name__ == "__main__":
    main()
