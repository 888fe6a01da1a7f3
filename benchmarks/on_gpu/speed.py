"""``benchmarks.measure`` on a GPU: every way of measuring in turns, beside one read at the speed of the card's memory."""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import FLOORS, cell, markdown
from benchmarks.meter import Timer
from benchmarks.on_gpu.kept import Kept
from benchmarks.ways import WAYS

TOKENS, ROUNDS = 4096, 9
# The most informative first: what is left out where time runs out is the least of it.
CELLS = (
    (152_064, "bfloat16"), (50_257, "bfloat16"), (32_000, "bfloat16"), (128_256, "float32"),
    (128_256, "bfloat16"), (32_000, "float32"), (50_257, "float32"), (152_064, "float32"),
)  # fmt: skip
LEAST_S = 10.0  # a shape takes about so long
LEFT_OUT = ("pplmon eager, entropy", "pplmon compiled, entropy")  # no GPU takes them by itself
COMPILED = ("pplmon compiled", "torch.compile(F.cross_entropy(x.float()) + argmax)")
DRY_WAYS = ["pplmon eager", "tally", "accuracy", "F.cross_entropy +", "Liger", "triton"]  # without a compiler


def reads() -> dict[str, Callable[[Tensor], Any]]:
    """Return ways to read a tensor once; the fastest is the floor."""
    if not find_spec("triton"):
        return dict(FLOORS)
    from benchmarks.on_gpu.read import read

    return {**FLOORS, "a Triton program": read}


def bandwidth(device: torch.device) -> dict[str, float]:
    """Return GB/s of each way to read, and of a copy, whose bytes are counted twice."""
    words = torch.randn(2**30 if device.type == "cuda" else 2**12, device=device)
    timer, target = Timer(device), torch.empty_like(words)
    ways = {name: (lambda read=read: read(words), 1) for name, read in reads().items()}
    ways["copy"] = (lambda: target.copy_(words), 2)
    found = {}
    for name, (run, times) in ways.items():
        taken = statistics.median([timer(run) for _ in range(8)][3:])
        found[name] = times * words.nbytes / taken / 1e6
    return found


def options(device: torch.device) -> argparse.Namespace:
    """Return what ``benchmarks.measure`` would be told."""
    cuda = device.type == "cuda"
    ways = [name for name in WAYS if name not in LEFT_OUT] if cuda else DRY_WAYS
    return argparse.Namespace(device=device.type, ways=ways, rounds=ROUNDS if cuda else 2)


def cells(device: torch.device) -> Iterator[tuple[int, int, torch.dtype]]:
    """Yield tokens, vocabulary and dtype, one shape after the other."""
    for vocab, dtype in CELLS if device.type == "cuda" else [(1000, "bfloat16"), (1003, "float32")]:
        yield (TOKENS if device.type == "cuda" else 64), vocab, getattr(torch, dtype)


def run(kept: Kept, device: torch.device) -> None:
    """Measure shape after shape."""
    with kept.step("bandwidth"):
        found = bandwidth(device)
        kept.keep("bandwidth_gb_s", found)
        kept.table("The card's memory", ["way", "GB/s"], [[name, f"{rate:,.0f}"] for name, rate in found.items()])
    rows: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    for tokens, vocab, dtype in cells(device):
        with kept.step(f"N = {tokens}, V = {vocab}, {dtype}"):
            if kept.left_s() < LEAST_S:
                raise TimeoutError("left out: the part's time is nearly up")
            rows += cell(tokens, vocab, dtype, options(device), absent, reads())
        kept.keep("rows", rows)
        kept.keep("not_run", absent)
        kept.content["tables"]["From logits to per-token numbers"] = markdown(rows)
        gc.collect()
    kept.table("Ways that do not run here", ["way", "why"], list(absent.items()))
