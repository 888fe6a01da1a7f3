"""The price of the evidence once it is decided: no operator, no wait for the device, and no forward of the model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pplmon
from pplmon.trainers.session import Session
from pplmon.trainers.settings import Settings
from tests.test_launches import Operators

VOCAB, ROWS, LENGTH, STEPS = 32, 3, 10, 9
WAITS = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero")  # the host reads what the device has
REST = (
    3,
    5,
    6,
    7,
)  # windows of one step that are not compared: only 1, 2, 4, 8, … are. The first one ends a step later


class Model(nn.Module):
    """Counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.Sequential(nn.Embedding(VOCAB, 8), nn.Linear(8, VOCAB))
        self.calls = 0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        logits: torch.Tensor = self.parts(ids)
        return logits


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and targets that are shifted already."""
    ids = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(step))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def of_the_callback(with_loss: bool) -> tuple[list[Counter[str]], int]:
    """Return what each step of a session dispatches beside the model's forward, and the forwards."""
    model, seen = Model(), []
    session = Session(Settings(alerts=[]), model, every_n_steps=1)
    for step in range(STEPS):
        ids, targets = batch(step)
        session.begin_batch({"input_ids": ids})
        logits = model(ids).detach()
        given: dict[str, Any] = {"logits": logits, "labels": targets}
        if with_loss:
            given["loss"] = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        with Operators() as counted:
            session.end_batch(given)
        seen.append(counted.count)
        session.step_to()
    session.close()
    return seen, model.calls


def of_observe(with_loss: bool) -> tuple[list[Counter[str]], int]:
    """Return the same of a plain loop."""
    model, seen = Model(), []
    monitor = pplmon.Monitor(every_n_steps=1, alerts=[])
    for step in range(STEPS):
        ids, targets = batch(step)
        logits = model(ids).detach()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten()) if with_loss else None
        with Operators() as counted:
            monitor.observe(logits, targets, loss=loss)
        seen.append(counted.count)
        monitor.step()
    monitor.close()
    return seen, model.calls


@pytest.mark.parametrize("way", [of_the_callback, of_observe])
def test_after_the_first_batches_the_evidence_costs_nothing(way: Any) -> None:
    """Operators are those of a run without a loss, and none of them waits; in the first batch there are more."""
    (plain, _), (compared, calls) = way(False), way(True)
    assert calls == STEPS
    for window in REST:
        assert compared[window] == plain[window] and plain[window]
    assert sum(compared[0].values()) > sum(plain[0].values()) or way is of_the_callback
    assert not [name for counted in compared[1:] for name in WAITS if counted[name]]


def test_a_wait_would_be_seen() -> None:
    """A number that is read on the host is among what is counted."""
    with Operators() as counted:
        torch.ones(2).sum().item()
    assert counted.count["_local_scalar_dense"] == 1
