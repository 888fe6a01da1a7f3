"""What each rank does in the tests of how ranks agree on what to count."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import nn

import pplmon
from pplmon.trainers.session import Session
from pplmon.trainers.settings import Settings


def vote(rank: int, kinds: tuple[str, ...]) -> tuple[list[float], list[str]]:
    """Train four steps and validate; ``kinds`` says of each rank whose loss its step returns. Return what is shown and said."""
    torch.manual_seed(rank)
    head = nn.Linear(8, 23)
    session = Session(Settings(every_n_steps=1, alerts=[]), head)
    kind = kinds[rank]

    def batch() -> None:
        logits, targets = head(torch.randn(3, 9, 8)), torch.randint(23, (3, 9))
        session.begin_batch({})
        if kind == "empty":
            targets = torch.full_like(targets, -100)
        pplmon.observe(head, logits, targets)
        shifted = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        losses = {
            "shifted": shifted,
            "plain": F.cross_entropy(logits.flatten(0, 1), targets.flatten()),
            "other": shifted + 1,
        }
        session.end_batch(losses.get(kind))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reports = []
        for _ in range(4):
            batch()
            reports.append(session.step_to())
        session.begin_pass("val")
        batch()
        reports.append(session.end_pass())
        reports.append(session.close())
    shown = [float(report.tokens) for report in reports if report is not None]
    return shown, [str(w.message) for w in caught if str(w.message).startswith("pplmon")]
