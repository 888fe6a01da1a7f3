"""Rows that accelerate, and the Hugging Face Trainer by it, give a second time to fill the last batches: each counts once."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import pplmon
from pplmon.testing import run_on_ranks
from pplmon.trainers.session import Session
from pplmon.trainers.settings import Settings
from tests.models import LENGTH, VOCAB, reference, rows

accelerate = pytest.importorskip("accelerate")

RANKS = 2


class Net(nn.Module):
    """A table of logits, which shows what it predicts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(VOCAB, VOCAB)

    def forward(self, batch: dict[str, Tensor], **data: Tensor) -> Tensor:
        logits: Tensor = self.table(batch["x"])
        pplmon.observe(self, logits, batch["labels"], **data)
        return logits


def start(rank: int) -> None:
    """Start accelerate on this rank, in the process group that is there."""
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # neither is used: the group is there
    accelerate.Accelerator(cpu=True)


def prepared(count: int, batch_size: int, shuffle: bool = False, **how: Any) -> Any:
    """A loader as ``Accelerator.prepare`` makes it."""
    loader: Any = DataLoader(without_ids(count), batch_size=batch_size, shuffle=shuffle)  # type: ignore[arg-type]
    return accelerate.data_loader.prepare_data_loader(loader, put_on_device=True, use_seedable_sampler=True, **how)


def without_ids(count: int) -> list[dict[str, Tensor]]:
    """Rows that nothing but their place tells apart."""
    return [{"x": row["x"], "labels": row["labels"]} for row in rows(count)]


def known(count: int) -> tuple[float, int]:
    """The cross-entropy and the tokens of so many rows, each once."""
    net = Net()
    with torch.no_grad():
        found = reference([(net.table(row["x"][None]).double(), row["labels"][None]) for row in rows(count)])
    return found["cross_entropy"], int(found["tokens"])


CASES: list[tuple[int, int, dict[str, Any]]] = [
    (9, 2, {}),  # rank 0 repeats one row, rank 1 both
    (13, 4, {}),  # a last round that is not full on rank 1 only
    (3, 4, {}),  # fewer rows than ranks take in a round
    (16, 4, {}),  # nothing to fill
    (9, 4, {"split_batches": True}),
    (9, 2, {"even_batches": False}),
    (9, 2, {"dispatch_batches": True}),
    (13, 4, {"dispatch_batches": True, "split_batches": True}),
]


def by_monitor(net: Net, batches: Any, **named: Any) -> tuple[Any, int]:
    """A plain loop; returns the report, and how many rows this rank was dealt."""
    monitor, dealt = pplmon.Monitor(alerts=[]), 0
    with monitor.stage("val", **named) as val:
        for batch in batches:
            dealt += len(batch["x"])
            monitor.observe(net.table(batch["x"]), batch["labels"])
    monitor.close()
    return val.report, dealt


def by_session(net: Net, loader: Any) -> tuple[Any, int]:
    """A trainer that does not know its loader."""
    session, dealt = Session(Settings(alerts=[]), net), 0
    session.begin_pass("val")
    for batch in loader:
        dealt += len(batch["x"])
        session.begin_batch(batch)
        session.end_batch(net(batch).sum())
    report = session.end_pass()
    session.close()
    return report, dealt


def evaluated(rank: int) -> list[list[tuple[dict[str, Any], int]]]:
    """One pass for each case, watched in each way."""
    start(rank)
    torch.manual_seed(5)
    found = []
    for count, batch_size, how in CASES:
        watched = [by_monitor(Net(), prepared(count, batch_size, shuffle=True, **how))]
        watched.append(by_session(Net(), prepared(count, batch_size, shuffle=True, **how)))
        if "dispatch_batches" not in how:
            loader = prepared(count, batch_size, shuffle=True, **how)
            watched.append(by_monitor(Net(), loader, loader=loader))
        found.append([(report.as_dict(), dealt) for report, dealt in watched])
    return found


@pytest.mark.ranks
def test_each_row_of_an_accelerate_loader_counts_once() -> None:
    """Shuffled, and without ids: the places that ``gather_for_metrics`` cuts off are left out, and nothing else."""
    ranks = run_on_ranks(evaluated, RANKS)
    filled = []
    for (count, batch_size, how), *answers in zip(CASES, *ranks):
        cross_entropy, tokens = known(count)
        for numbers, _ in [one for answer in answers for one in answer]:
            case = f"{count} rows, {batch_size} a batch, {how}"
            assert (numbers["tokens"], numbers["sequences"]) == (tokens, count), case
            assert numbers["cross_entropy"] == pytest.approx(cross_entropy, rel=1e-6), case
            assert numbers["duplicate_sequences"] == 0, case
        filled.append(sum(answer[0][1] for answer in answers) - count)
    assert filled == [3, 3, 5, 0, 3, 0, 1, 1]  # without this nothing would be tested


def seen(rank: int) -> list[dict[str, Any]]:
    """What cannot be told apart, and what has nothing to do with the loader."""
    start(rank)
    outer = prepared(9, 2)
    monitor, net, found = pplmon.Monitor(alerts=[]), Net(), []
    with monitor.stage("val") as flat:
        for batch in outer:
            monitor.observe(net.table(batch["x"]).flatten(0, 1), batch["labels"].flatten())
    found.append(flat.report)
    for batch in outer:  # a pass inside of a loop, at the end of which the loader repeats rows
        with monitor.stage("val") as inner:
            monitor.observe(net.table(batch["x"]), batch["labels"])
    found.append(inner.report)
    with monitor.stage("test") as cut:
        for batch in outer:
            monitor.observe(net.table(batch["x"]), batch["labels"])
            break
    found.append(cut.report)
    monitor.close()
    return [report.as_dict() for report in found if report is not None]


@pytest.mark.ranks
def test_rows_that_cannot_be_told_apart_are_counted_and_told() -> None:
    """Flat logits have no rows. A loader around the pass is not the pass's own, and one that is cut short repeats nothing."""
    for flat, inner, cut in run_on_ranks(seen, RANKS):
        assert flat["duplicate_sequences"] == 3
        assert flat["tokens"] > known(9)[1]
        assert "duplicate_sequences" not in inner
        assert inner["sequences"] == 4
        assert cut["duplicate_sequences"] == 0
        assert cut["sequences"] == 4


def trained(rank: int) -> dict[str, Any]:
    """Rows that are repeated in training are trained on."""
    start(rank)
    loader = prepared(9, 2)
    monitor, net = pplmon.Monitor(every_n_steps=100, alerts=[]), Net()
    for batch in loader:
        monitor.observe(net.table(batch["x"]), batch["labels"])
        monitor.step()
    report = monitor.close()
    assert report is not None
    return report.as_dict()


@pytest.mark.ranks
def test_rows_that_are_repeated_in_training_count() -> None:
    """The model learns from them twice."""
    for found in run_on_ranks(trained, RANKS):
        assert found["sequences"] == 12
        assert found["tokens"] > known(9)[1]
        assert found["tokens"] <= 12 * LENGTH
