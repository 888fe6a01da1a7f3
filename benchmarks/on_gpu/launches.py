"""Counts the launches, waits and memory of an update, a step of the monitor and a read-out, as CUDA reports them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pplmon
from benchmarks.meter import captured, costs, launched, refused
from benchmarks.on_gpu.kept import Kept
from pplmon import Entropy, TokenTally, token_stats

WARM = 6  # more than the looks for overwritten logits
ARRIVES_S = 20.0


def batch(device: torch.device) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return logits [B, T, V], targets of which some are ignored, and what else a batch may bring."""
    rows, length, vocab = (8, 1024, 32_000) if device.type == "cuda" else (2, 24, 50)
    targets = torch.randint(vocab, (rows, length), device=device)
    targets[:, :3] = -100
    data = {
        "mask": torch.rand(rows, length, device=device) < 0.9,
        "document_ids": (torch.rand(rows, length, device=device) < 0.01).cumsum(1),
        "sample_ids": torch.arange(rows, device=device),
    }
    return torch.randn(rows, length, vocab, device=device).bfloat16(), targets, data


def calls(device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return what is counted, by name."""
    logits, targets, data = batch(device)
    stats = token_stats(logits, targets)

    def update(*what: Any, extras: tuple[Any, ...] = (), shift: bool = False, **more: Tensor) -> Callable[[], Any]:
        tally = TokenTally(extras=extras, shift=shift).to(device)
        return lambda: tally.update(*what, **more)

    documents = {"document_ids": data["document_ids"]}
    return {
        "update from logits": update(logits, targets),
        "... masked": update(logits, targets, mask=data["mask"]),
        "... packed": update(logits, targets, **documents),
        "... packed, shifted": update(logits, targets, shift=True, **documents),
        "... with all that a batch may bring": update(logits, targets, **data),
        "... with Entropy": update(logits, targets, extras=(Entropy(),)),
        "... flat": update(logits.flatten(0, 1), targets.flatten()),
        "update from TokenStats": update(stats),
        "... packed ": update(stats, **documents),
        "a monitor's whole step, read out": monitored(logits, targets),
    }


def monitored(logits: Tensor, targets: Tensor) -> Callable[[], Any]:
    """Return a step of a monitor that judges every step."""
    monitor = pplmon.Monitor()

    def step() -> None:
        monitor.observe(logits, targets)
        monitor.step()

    return step


def counted(run: Callable[[], Any], tokens: int, device: torch.device) -> dict[str, Any]:
    """Count one warm call."""
    for _ in range(WARM):
        run()
    before = _new_memory(device)
    cost = costs(run, device)
    return {
        **cost,
        "bytes_a_token": cost["peak_bytes"] / tokens,
        "names": dict(Counter(launched(run, device))),
        "refused": refused(run, device),
        "new_memory": _new_memory(device) - before,
    }


def _new_memory(device: torch.device) -> int:
    return int(torch.cuda.memory_stats()["num_device_alloc"]) if device.type == "cuda" else 0


def replayed(device: torch.device) -> dict[str, Any]:
    """Count by replays of a CUDA graph and by updates, and compare."""
    logits, targets, _ = batch(device)
    graphed, plain = (TokenTally().to(device) for _ in range(2))
    plain.update(logits, targets)  # proves the kernels, which a capture cannot
    replay, alike = captured(lambda: graphed.update(logits, targets), device), []
    for times in (1, 3):
        graphed.reset()
        plain.reset()
        for _ in range(times):
            replay()
            plain.update(logits, targets)
        alike.append(graphed.local_totals() == plain.local_totals())
    return {"replays_count_what_updates_count": all(alike)}


def beside_the_step(device: torch.device) -> dict[str, Any]:
    """Start a read-out, then give the step's stream much to do: the read-out must arrive while that still runs."""
    logits, targets, _ = batch(device)
    tally = TokenTally().to(device)
    tally.update(logits, targets)
    tally.read_out().totals()
    size, times = (8192, 150) if device.type == "cuda" else (64, 1)
    matrix = torch.randn(size, size, device=device).bfloat16()
    (matrix @ matrix).sum().item()
    tally.update(logits, targets)
    begun = time.perf_counter()
    under_way = tally.read_out()
    for _ in range(times):
        product = matrix @ matrix
    handed_over = time.perf_counter()
    while not under_way.arrived() and time.perf_counter() - begun < ARRIVES_S:
        time.sleep(1e-5)
    arrived = time.perf_counter()
    product.sum().item()
    done = time.perf_counter()
    alike = under_way.totals() == tally.local_totals()
    ms = {"handed_over": handed_over, "arrived": arrived, "step_done": done}
    return {"right": alike, **{f"{name}_ms": 1000 * (at - begun) for name, at in ms.items()}}


def run(kept: Kept, device: torch.device) -> None:
    """Count every call, replay a graph, and watch a read-out."""
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    tokens = batch(device)[1].numel()
    for name, call in calls(device).items():
        with kept.step(name):
            found[name] = counted(call, tokens, device)
            kept.keep("calls", found)
            kept.table("Launches and waits", *_table(found))
    with kept.step("a CUDA graph"):
        kept.keep("graph", replayed(device))
    with kept.step("beside the step"):
        kept.keep("beside_the_step", beside_the_step(device))
    kept.table("A graph, and a read-out beside a busy step", ["what", "found"], [
        [name.replace("_", " "), value]
        for part in ("graph", "beside_the_step") for name, value in kept.content["found"].get(part, {}).items()
    ])  # fmt: skip


def _table(found: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    columns = ["call", "launches", "waits", "where waits are errors", "new device memory", "B a token", "names"]
    lines: list[list[object]] = []
    for name, row in found.items():
        names = ", ".join(f"{times} {launch[:40]}" for launch, times in row["names"].items())
        bytes_ = f"{row['bytes_a_token']:.1f}"
        lines.append(
            [name, row["launches"], row["syncs"], row["refused"] or "none", row["new_memory"], bytes_, names[:200]]
        )
    return columns, lines
