"""What each rank does in the tests of how ranks agree on what to count."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import pplmon
from pplmon.trainers.session import Session
from pplmon.trainers.settings import Settings

VOCAB, PAD = 23, 0
Shown = tuple[list[float], list[str]]  # the tokens of each report, and what pplmon said


class PreTrainedModel(nn.Module):
    """A model of an unknown class, told by the name of its base as those of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Embedding(VOCAB, VOCAB)

    def forward(self, ids: Tensor, labels: Tensor, num_items_in_batch: int) -> Any:
        """Return logits alone."""
        return SimpleNamespace(logits=self.body(ids) * 3)


def play(rank: int, cases: list[tuple[str, ...]]) -> list[Shown]:
    """Run one case after the other in one group; return what each showed."""
    return [vote(rank, kinds) for kinds in cases]


def vote(rank: int, kinds: tuple[str, ...]) -> Shown:
    """Train four steps and validate; ``kinds`` says of each rank whose loss its step returns."""
    kind = kinds[rank]
    torch.manual_seed(0 if kind.startswith("same") else rank)
    head = nn.Linear(8, VOCAB)
    model, count = PreTrainedModel(), 0
    session = Session(Settings(every_n_steps=1, alerts=[]), nn.ModuleDict({"head": head, "model": model}))

    def batch() -> None:
        nonlocal count
        count += 1
        if kind == "late":  # every shift costs ln V at first
            head.weight.data.normal_(0, 2).mul_(count > 2)
            head.bias.data.mul_(0)
        rows = torch.arange(3) if kind != "same, in another order" else torch.arange(3).flip(0)
        logits, targets = head(torch.randn(3, 9, 8))[rows], torch.randint(1, VOCAB, (3, 9))[rows]
        session.begin_batch({})
        if kind == "items":
            session.end_batch(of_items(model, targets))
            return
        if kind == "empty":
            targets = torch.full_like(targets, -100)
        if kind == "padded":
            targets[:2, 6:] = PAD
        pplmon.observe(head, logits, targets)
        ignored = PAD if kind == "padded" else -100
        shifted = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=ignored)
        plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        losses = {
            "shifted": shifted,
            "padded": shifted,
            "late": shifted,
            "plain": plain,
            "same": plain,
            "other": shifted + 1,
        }
        session.end_batch(losses.get(kind.partition(",")[0]))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reports = []
        for _ in range(4 if kind != "late" else 14):
            batch()
            reports.append(session.step_to())
        session.begin_pass("val")
        batch()
        reports.append(session.end_pass())
        reports.append(session.close())
    shown = [float(report.tokens) for report in reports if report is not None]
    return shown, [str(w.message) for w in caught if str(w.message).startswith("pplmon")]


def sharded(rank: int, states: list[str]) -> list[Shown]:
    """Train on logits whose vocabulary is cut over both ranks, which are one replica; ``states`` say what is stated."""
    alone = [dist.new_group([r]) for r in range(2)][rank]
    found = []
    for stated in states:
        head = nn.Linear(8, 24)
        shift = {"open": None, "on": True}[stated]
        session = Session(
            Settings(every_n_steps=1, alerts=[], shift=shift, tally=pplmon.TokenTally(process_group=alone)), head
        )
        torch.manual_seed(0)
        shown = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(5):
                logits, targets = torch.randn(3, 9, 24) * 3, torch.randint(24, (3, 9))
                shard = pplmon.VocabShard(dist.group.WORLD, rank * 12, rank * 12 + 12, 24)
                session.begin_batch({})
                pplmon.observe(head, logits[..., rank * 12 : rank * 12 + 12], targets, vocab_shard=shard)
                session.end_batch(F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten()))
                shown.append(session.step_to())
            shown.append(session.close())
        told = [str(w.message) for w in caught if str(w.message).startswith("pplmon")]
        found.append(([float(report.tokens) for report in shown if report is not None], told))
    return found


def of_items(model: nn.Module, ids: Tensor) -> Tensor:
    """Return a loss as the Trainer makes it: a sum over the tokens of all ranks, times the ranks, whose mean DDP takes."""
    items = 2 * 3 * 8 + 7  # another micro-batch of the step has some, too
    logits = model(ids, labels=ids, num_items_in_batch=items).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum") / items * 2
