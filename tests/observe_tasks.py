"""What each rank does in the tests of how monitors that are given a loss agree on the shift."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

import pplmon
from pplmon.sinks.base import Sink

ROWS, LENGTH, VOCAB = 3, 9, 23
SHIFTED, PLAIN = ROWS * (LENGTH - 1), ROWS * LENGTH  # tokens of a micro-batch
Told = list[str]


class Keep(Sink):
    """Keeps the windows and passes that were shown."""

    def __init__(self) -> None:
        self.shown: list[pplmon.Report] = []

    def report(self, report: pplmon.Report, scalars: object) -> None:
        self.shown.append(report)


def mean(logits: Tensor, targets: Tensor, shift: int) -> Tensor:
    """The loss of a step."""
    left = logits.shape[1] - shift
    return F.cross_entropy(logits[:, :left].flatten(0, 1), targets[:, shift:].flatten())


def made(seed: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits and targets of a micro-batch."""
    made = torch.Generator().manual_seed(seed)
    logits = torch.randn(ROWS, LENGTH, VOCAB, generator=made) * scale
    return logits, torch.randint(VOCAB, (ROWS, LENGTH), generator=made)


@contextmanager
def told() -> Iterator[Told]:
    """What pplmon says meanwhile."""
    lines: Told = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lines
    lines += [str(w.message) for w in caught if str(w.message).startswith("pplmon")]


def observe(monitor: pplmon.Monitor, kind: str, seed: int) -> None:
    """One micro-batch: ``kind`` says whose loss comes with it; "empty" has none at all, "late" none at its first two steps."""
    if kind == "empty" or (kind == "late" and monitor.current_step < 2):
        return
    logits, targets = made(seed)
    losses = {
        "shifted": mean(logits, targets, 1),
        "late": mean(logits, targets, 1),
        "plain": mean(logits, targets, 0),
        "other": mean(logits, targets, 1) + 1,
        "ignored": torch.tensor(float("nan")),
    }
    if kind == "ignored":
        targets = torch.full_like(targets, -100)
    monitor.observe(logits, targets, loss=losses.get(kind))


def play(rank: int, cases: dict[str, tuple[tuple[str, ...], dict[str, int]]]) -> dict[str, object]:
    """Play each case in the same group: five steps, a checkpoint after the first, a pass, the end. Return what is shown and said."""
    found: dict[str, object] = {}
    for name, (kinds, settings) in cases.items():
        keep = Keep()
        monitor = pplmon.Monitor(**{"every_n_steps": 1, **settings}, alerts=[], sinks=[keep])  # type: ignore[arg-type]
        with told() as lines:
            for step in range(5):
                observe(monitor, kinds[rank], 100 * step + rank)
                monitor.step()
                if step == 0 and "saves" in name:
                    monitor.state_dict()
            with monitor.stage("val"):
                observe(monitor, kinds[rank], 1000 + rank)
            monitor.close()
        shown = {stage: [int(r.tokens or 0) for r in keep.shown if r.stage == stage] for stage in ("train", "val")}
        steps = [r.step for r in keep.shown if r.stage == "train"]
        found[name] = (shown, steps, lines)
    return found
