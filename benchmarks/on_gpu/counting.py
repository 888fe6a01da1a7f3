"""From per-token numbers to the tally's states: by kernels, by array operations, and torchmetrics' three nearest metrics."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.meter import Timer, costs, host_us, interleaved
from benchmarks.on_gpu.counters import ARRAYS, KERNELS, counted_by
from benchmarks.on_gpu.kept import Kept
from pplmon import TokenStats, TokenTally, token_stats

SHAPES = ((8, 1024), (64, 1024))
ROUNDS, WARM = 15, 3
WHOLE = "an update from small logits, as the host sees it"


def stats_of(rows: int, length: int, device: torch.device) -> TokenStats:
    """Return what was measured of a batch."""
    targets = torch.randint(50, (rows, length), device=device)
    top = torch.rand(rows, length, device=device)
    return TokenStats.from_losses(
        torch.rand(rows, length, device=device) * 8,
        targets,
        predicted=targets.roll(1),
        top_probability=top,
        vocab_size=50,
    )


def by(who: str, stats: TokenStats, device: torch.device, **data: Any) -> Callable[[], Any]:
    """Return an update of a tally by kernels or by array operations; by these, too, in a dry run, whose kernels take seconds."""
    tally = TokenTally().to(device)
    who = who if device.type == "cuda" else ARRAYS

    def update() -> None:
        with counted_by(who, device):
            tally.update(stats, **data)

    return update


def torchmetrics_three(stats: TokenStats, device: torch.device) -> Callable[[], Any]:
    """Return an update of mean, maximum and accuracy of the same tokens: of all that is counted, these."""
    from torchmetrics import MaxMetric, MeanMetric

    mean, worst, hits = (metric.to(device) for metric in (MeanMetric(), MaxMetric(), MeanMetric()))

    def update() -> None:
        mean.update(stats.nll)
        worst.update(stats.nll)
        hits.update(stats.correct)

    return update


def ways(rows: int, length: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return what is compared."""
    stats = stats_of(rows, length, device)
    documents = (torch.rand(rows, length, device=device) < 0.01).cumsum(1)
    logits, targets = torch.randn(rows, length, 64, device=device), stats.targets.view(rows, length)
    tally = TokenTally().to(device)
    return {
        "kernels": by(KERNELS, stats, device),
        "kernels, packed": by(KERNELS, stats, device, document_ids=documents),
        "array operations": by(ARRAYS, stats, device),
        "torchmetrics: mean, maximum, accuracy": torchmetrics_three(stats, device),
        WHOLE: partial(tally.update, logits, targets),
        "token_stats alone of the same": partial(token_stats, logits, targets),
    }


def run(kept: Kept, device: torch.device) -> None:
    """Time each in turns on the device, and by itself on the host."""
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for shape in SHAPES if device.type == "cuda" else ((2, 20),):
        with kept.step(f"{shape[0]} x {shape[1]}"):
            calls = ways(*shape, device)
            taken = interleaved(calls, Timer(device), ROUNDS if device.type == "cuda" else 1)
            for name, call in calls.items():
                found = {
                    "device_ms": statistics.median(taken[name]),
                    "host_us": host_us(call, device, 30 if device.type == "cuda" else 2),
                }
                rows.append({"tokens": shape[0] * shape[1], "way": name, **found, **costs(call, device)})
        kept.keep("rows", rows)
        kept.table("From per-token numbers to the tally", ["N", "way", "µs on the device", "µs of the host", "launches", "waits"], [
            [r["tokens"], r["way"], f"{1000 * r['device_ms']:.1f}", f"{r['host_us']:.0f}", r["launches"], r["syncs"]] for r in rows
        ])  # fmt: skip
