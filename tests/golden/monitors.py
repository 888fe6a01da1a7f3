"""A long run of a monitor that is given fixed losses, its replay, and the log keys that each choice of numbers sends."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

import pplmon
from pplmon import TokenStats, TokenTally
from tests.golden.tallies import VOCAB, batch, floats, ids

STEPS, SAVED, CRASHED = 100, 50, 53
# Of the journal's first row: versions, the form in which rules remember, and what is another in every run.
FORGOTTEN = {"torch", "python", "memory", "run", "files"}


class Recorder(pplmon.sinks.Sink):
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def report(self, report: pplmon.Report, scalars: Any) -> None:
        """Keep the log keys with their values."""
        self.seen.append(["report", report.step, report.stage, dict(scalars)])

    def alert(self, alert: pplmon.Alert) -> None:
        """Keep the alert's name; all of it stands in the journal."""
        self.seen.append(["alert", alert.step, alert.rule])

    def finished(self, report: pplmon.Report) -> None:
        """Keep that the run ended."""
        self.seen.append(["finished", report.step, report.stage])


def rules() -> list[pplmon.Rule]:
    """Return the default rules, and some that fire, wait and come back within the run."""
    return [
        *pplmon.default_alerts(),
        pplmon.Above("max_token_loss", 20.0),
        pplmon.Above("perplexity", 9.0, stage="val"),
        pplmon.Below("token_accuracy", 0.58, after_step=12, hysteresis=0.05),
        pplmon.Spike("cross_entropy", window=8, gap=2, limit=4.0, quiet_steps=6, recovery_steps=8),
    ]


def micro_batch(step: int, index: int) -> tuple[TokenStats, dict[str, Tensor]]:
    """Return one micro-batch: losses of 2 to 4 nats, and what went wrong at a few steps."""
    seed = 1000 * step + index
    chance = Random(seed)
    nll = floats(chance, 3, 20, low=1, octaves=1)
    if step in (30, 95):
        nll[1] = floats(chance, 20, low=4, octaves=1)  # one sequence of 16 to 32 nats a token
    if step == 51:
        nll[2, 4] = 36.0
    if step in (60, 61):
        nll[0, 3 + index] = torch.nan
    targets = ids(chance, 3, 20)
    if step == 70:
        targets[2, 1] = VOCAB
    stats = batch(seed, 3, 20, nll=nll, targets=targets, entropy=floats(chance, 3, 20, low=-2, octaves=3))
    return stats, {"sample_ids": ids(chance, 3, below=1000), "document_ids": torch.arange(20).expand(3, 20) // 17}


def train(monitor: pplmon.Monitor, steps: range, told: list[Any]) -> None:
    """Train over some steps, each of one to three micro-batches, with a pass over validation data now and then."""
    for step in steps:
        for index in range(1 + step % 3):
            stats, data = micro_batch(step, index)
            monitor.observe(stats, **data)
        report = monitor.step()
        told.append(None if report is None else [step, report.step])
        if step % 40 == 19:
            with monitor.stage("val") as val:
                for index in range(2):
                    monitor.observe(batch(7000 + 10 * step + index, 2, 30, low=0, octaves=3))
            told.append(val.report.tokens)


def new_monitor(where: Path, recorder: Recorder, alerts: list[Any]) -> pplmon.Monitor:
    """Return a monitor of the long run."""
    return pplmon.Monitor(
        every_n_steps=10,
        numbers="all",
        tally=TokenTally(top_k=2, context=1, extras=[pplmon.Entropy()]),
        sinks=[pplmon.sinks.Journal(where), recorder],
        alerts=rules(),
        on_alert=alerts.append,
        decode=lambda context: " ".join(map(str, context)),
    )


def long_run(where: Path) -> dict[str, Any]:
    """Return all that a monitor gave in a run that was saved within a step, ended later, and went on from where it was saved."""
    recorder, alerts, told = Recorder(), [], []
    monitor = new_monitor(where, recorder, alerts)
    train(monitor, range(SAVED), told)
    stats, data = micro_batch(SAVED, 0)
    monitor.observe(stats, **data)
    saved = json.loads(json.dumps(monitor.state_dict()))
    monitor.step()
    train(monitor, range(SAVED + 1, CRASHED), told)
    last = [monitor.close()]
    monitor = new_monitor(where, recorder, alerts)
    monitor.load_state_dict(saved)
    monitor.step()
    train(monitor, range(SAVED + 1, STEPS), told)
    last.append(monitor.close())
    return {
        "journal": journal(where),
        "read back": [[row["kind"], row.get("stage"), row.get("step")] for row in pplmon.sinks.read_journal(where)],
        "sink": recorder.seen,
        "alerts": [[alert.rule, alert.metric, alert.step, alert.stage, str(alert)] for alert in alerts],
        "told": told,
        "last": last,
    }


def journal(where: Path) -> list[dict[str, Any]]:
    """Return the rows of a journal as they stand in the file, without what differs between machines."""
    lines = (where / "pplmon.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in FORGOTTEN} for line in lines]


def replayed(where: Path, *options: str) -> Any:
    """Return what ``pplmon replay --json`` prints."""
    from pplmon import cli

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.main(["replay", str(where), "--json", *options]) == 0
    found = json.loads(printed.getvalue())
    return {name: value for name, value in found.items() if name != "path"}


def replays(where: Path) -> dict[str, Any]:
    """Return a replay of the run's own rules, of the default ones, and of one that is scored and tuned."""
    rule = 'Spike("max_sequence_loss", window=16, gap=2, limit=6.0)'
    scored = ("--rule", rule, "--incident", "95", "--incident", "28-33", "--wanted-rate", "50")
    choices = {"as it was": (), "default": ("--rule", "default"), "scored": scored}
    return {name: replayed(where, *options) for name, options in choices.items()}


def log_keys() -> dict[str, Any]:
    """Return the log keys that are sent for each choice of numbers."""
    entropy = floats(Random(3), 2, 20, low=-2, octaves=3)
    choices: dict[str, dict[str, Any]] = {
        "core": {},
        "all": {"numbers": "all"},
        "some": {"numbers": ["perplexity", "tokens"], "prefix": "a/"},
        "an extra": {"tally": TokenTally(extras=[pplmon.Entropy()])},
        "an extra by name": {"tally": TokenTally(extras=[pplmon.Entropy()]), "numbers": ["mean_entropy"]},
        "bytes": {"tally": TokenTally(token_bytes=[2] * VOCAB), "numbers": "all"},
    }
    found = {}
    for name, settings in choices.items():
        recorder = Recorder()
        monitor = pplmon.Monitor(every_n_steps=1, sinks=[recorder], **settings)
        monitor.observe(batch(1, 2, 20, entropy=entropy))
        monitor.step()
        with monitor.stage("test"):
            monitor.observe(batch(2, 2, 20, entropy=entropy))
        monitor.close()
        found[name] = [[what[2], *what[3]] for what in recorder.seen if what[0] == "report"]
    return found
