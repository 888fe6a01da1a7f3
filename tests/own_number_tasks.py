"""Functions that ranks run in the tests of numbers of one's own and of earlier runs."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import pplmon
from pplmon import Report, TokenStats
from pplmon.report import own
from pplmon.sinks import Sink
from pplmon.tally import GradNorm
from pplmon.tally.ranks import Group


class Keeps(Sink):
    """A sink that keeps the judged reports and the alerts."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.alerts: list[pplmon.Alert] = []

    def judged(self, report: Report) -> None:
        """Keep."""
        self.reports.append(report)

    def alert(self, alert: pplmon.Alert) -> None:
        """Keep."""
        self.alerts.append(alert)


def some(loss: float = 2.0) -> TokenStats:
    """Return a row of four tokens with this loss."""
    return TokenStats.from_losses(torch.full((1, 4), loss), torch.arange(1, 5)[None], vocab_size=100)


def log_unlike(rank: int) -> tuple[list[dict[str, float]], list[str], list[list[str]]]:
    """Log by two micro-batches; from step 2 on rank 1 logs one more name. Returns read-outs, warnings and collectives."""
    sink, calls = Keeps(), [[] for _ in range(5)]
    step = 0

    def counted(name: str) -> Any:
        inner = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[step].append(name)
            return inner(*args, **kwargs)

        return call

    kept = {name: getattr(dist, name) for name in ("all_reduce", "all_gather")}
    for name in kept:
        setattr(dist, name, counted(name))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = pplmon.Monitor(every_n_steps=None, sinks=[sink], alerts=[])
        for step in range(5):
            for part in range(2):
                monitor.observe(some())
                monitor.log("optim/a", torch.tensor(0.1 + step + part / 4 - rank))
                monitor.log("optim/b", -1.0 - step + rank)
                if step >= 2 and rank == 1:
                    monitor.log("optim/late", math.nan if step == 3 else 0.1)
            monitor.step()
        monitor.close()
    for name, inner in kept.items():
        setattr(dist, name, inner)
    numbers = [{name: report.numbers[name] for name in report.own} for report in sink.reports]
    return numbers, [str(w.message) for w in caught if "pplmon" in str(w.message)], calls


def norms(rank: int) -> dict[str, tuple[float | None, float]]:
    """Return the norm that parts of all ranks add up to, and the true one, for each way to hold gradients."""
    found: dict[str, tuple[float | None, float]] = {}
    group = Group()

    def merged(name: str, parameters: list[nn.Parameter], true: float, over: Group = group) -> None:
        digits = GradNorm().squares(parameters, over)
        assert digits is not None
        if over.size > 1:
            dist.all_reduce(digits, group=over.handle)
        found[name] = own.norm(digits.tolist()), true

    whole = [
        torch.randn(5, 3, generator=torch.Generator().manual_seed(7)),
        torch.randn(4, generator=torch.Generator().manual_seed(8)),
    ]
    true = math.sqrt(sum(float(part.double().square().sum()) for part in whole))
    merged("every rank has all", [_holding(part) for part in whole], true)
    merged(
        "bfloat16",
        [_holding(part.bfloat16()) for part in whole],
        math.sqrt(sum(float(p.bfloat16().double().square().sum()) for p in whole)),
    )
    mesh = init_device_mesh("cpu", (2,))
    mixed = [
        _holding(distribute_tensor(whole[0], mesh, [Shard(0)])),
        _holding(distribute_tensor(whole[1], mesh, [Replicate()])),
    ]
    merged("cut and whole DTensors", mixed, true)
    alone = [dist.new_group([0]), dist.new_group([1])][rank]
    merged("cut over ranks outside the group", mixed, true, Group(alone))
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
    for parameter in model.parameters():
        dist.broadcast(parameter.data, 0)
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(torch.ones(2, 3) * (rank + 1)).sum().backward()
    total = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    assert isinstance(total, DTensor)
    merged("FSDP2", list(model.parameters()), float(total.full_tensor()))
    return found


def _holding(grad: torch.Tensor) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros_like(grad))
    parameter.grad = grad
    return parameter


def device_of_squares(rank: int) -> str:
    """Return where this rank's part is, of gradients that every rank has; only the first rank gives one."""
    digits = GradNorm().squares([_holding(torch.ones(3, device="meta"))], Group())
    assert digits is not None
    return digits.device.type


def train_with_norm(rank: int) -> list[float | None]:
    """Return the logged norms of read-outs of two steps each: the larger one of both."""
    sink = Keeps()
    monitor = pplmon.Monitor(every_n_steps=None, judge_every_n_steps=2, sinks=[sink], alerts=[], grad_norm=True)
    for step in range(4):
        monitor.observe(some())
        monitor.log_grad_norm([_holding(torch.full((2,), float([3, 1, 2, 5][step])))])
        monitor.step()
    monitor.close()
    return [report.numbers.get("optim/grad_norm") for report in sink.reports]


def compare_to(rank: int, path: str, losses: list[float]) -> tuple[list[tuple[int | None, str | None]], list[str]]:
    """Judge beside an earlier run that the first rank alone can read; return the alerts of this rank, and warnings."""
    seen: list[tuple[int | None, str | None]] = []

    class Everywhere:
        everywhere = True

        def __call__(self, alert: pplmon.Alert) -> None:
            seen.append((alert.step, alert.cause))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = pplmon.Monitor(
            every_n_steps=None,
            reference=path if rank == 0 else Path("nowhere"),
            alerts=[pplmon.Spike("cross_entropy")],
            on_alert=Everywhere(),
            min_severity="info",
        )
        for loss in losses:
            monitor.observe(some(loss))
            monitor.step()
        monitor.close()
    return seen, [str(w.message) for w in caught if "pplmon" in str(w.message)]
