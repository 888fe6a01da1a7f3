"""Runs for the tests of the page: a real monitor and a real journal, over losses that are made up."""

from __future__ import annotations

import json
import random as numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import pplmon

WORDS = ["the", " cat", " sat", " on", " a", " mat", ".", "\n", " and", " dog"]
PLANTED = len(WORDS)
ROWS, COLUMNS = 4, 32
DATASET_ROW = 7_003  # of the planted sequence, at step 70
RULE = ("max_sequence_loss", 6.0)


def write_run(
    directory: Path,
    steps: int = 100,
    spike: int | None = 70,
    planted: str = " PLANTED",
    level: float = 2.0,
    prefix: str = "",
    on_alert: Any = (),
    more_alerts: Sequence[pplmon.Rule] = (),
    close: bool = True,
) -> Path:
    """Write a run's journal: exponential losses, at step ``spike`` one row of ``planted`` with 12 nats a token."""
    words = [*WORDS, planted]
    journal = pplmon.sinks.Journal(directory, prefix=prefix)
    monitor = pplmon.Monitor(
        every_n_steps=10,
        sinks=[journal],
        tally=pplmon.TokenTally(top_k=4, context=3),
        alerts=[pplmon.Above(*RULE), *more_alerts],
        on_alert=on_alert,
        decode=lambda ids: "".join(words[i] for i in ids),
        prefix=prefix,
    )
    random = torch.Generator().manual_seed(0)
    for step in range(steps):
        monitor.observe(*batch(random, level * 3 / (1 + step / 30), step == spike), sample_ids=sample_ids(step))
        monitor.step()
        if step % 50 == 49:
            with monitor.stage("val"):
                monitor.observe(*batch(random, level, False))
    if close:
        monitor.close()
    else:
        journal.flush()  # else it would be written whenever the monitor is collected
    return directory / "pplmon.jsonl"


def batch(random: torch.Generator, level: float, corrupted: bool) -> tuple[pplmon.TokenStats]:
    """Return one batch's tokens, as ``observe`` takes them; the last column is not scored."""
    nll = torch.empty(ROWS, COLUMNS).exponential_(1 / level, generator=random).clamp(max=8)
    targets = torch.randint(len(WORDS), (ROWS, COLUMNS), generator=random)
    if corrupted:
        nll[3], targets[3] = 12 + torch.arange(COLUMNS) / COLUMNS, PLANTED
    targets[:, -1] = -100
    guesses = torch.where(nll < 1, targets.clamp(min=0), 0)
    stats = pplmon.TokenStats.from_losses(
        nll,
        targets,
        correct=nll < 1,
        top_probability=torch.full_like(nll, 0.6),
        predicted=guesses,
        vocab_size=len(WORDS) + 1,
    )
    return (stats,)


def sample_ids(step: int) -> torch.Tensor:
    """Return the dataset's rows of a step: ten thousand a hundred steps, four of each hundred."""
    return step * 100 + torch.arange(ROWS)


def write_long_run(directory: Path, steps: int, spikes: int) -> list[int]:
    """Write a journal of many steps by multiplying a short one's rows; return the steps of its spikes."""
    rows = pplmon.sinks.read_journal(write_run(directory / "short"))
    judged = next(row for row in rows if row["kind"] == "judged" and row["stage"] == "train")
    window = next(row for row in rows if row["kind"] == "report" and row["stage"] == "train")
    alert = next(row for row in rows if row["kind"] == "alert")
    (directory / "short" / "pplmon.jsonl").unlink()
    chance = numbers.Random(0)
    spiked = sorted(chance.sample(range(steps), spikes))
    with open(directory / "pplmon.jsonl", "w", encoding="utf-8") as file:
        for step in range(steps):
            more = 10.0 if step in spiked else 0.0
            seen = {
                "tokens_seen": 128 * (step + 1),
                "max_sequence_loss": 2 + chance.random() + more,
                "max_token_loss": 9 + 3 * chance.random(),
            }
            file.write(json.dumps({**judged, "step": step, "numbers": {**judged["numbers"], **seen}}) + "\n")
            if more:
                file.write(json.dumps({**alert, "step": step}) + "\n")
            if step % 50 == 49:
                file.write(json.dumps({**window, "step": step}) + "\n")
    return spiked
