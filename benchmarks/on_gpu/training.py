"""``benchmarks.step`` in the time that is left: a whole training step with the monitor and without, in turns."""

from __future__ import annotations

import argparse
import gc

import torch

from benchmarks import step
from benchmarks.on_gpu.kept import Kept

SIZES = ("1.5b", "100m")  # the second where the first does not fit
VOCABULARY = {"8b": 128_256}  # of the others 152,064
BLOCK, LEAST_PAIRS, MOST_PAIRS = 2, 4, 60
MARGIN_S = 6.0  # to read the interval and to write


def options(size: str, device: torch.device) -> argparse.Namespace:
    """Return what ``benchmarks.step`` would be told."""
    if device.type == "cuda":
        return argparse.Namespace(
            size=size, vocab=VOCABULARY.get(size, 152_064), batch=8, length=1024, dtype="bfloat16", device="cuda", block=BLOCK, pairs=LEAST_PAIRS,
            kernel=None, checkpoint=False,
        )  # fmt: skip
    return argparse.Namespace(
        size="1m",
        vocab=64,
        batch=1,
        length=16,
        dtype="float32",
        device="cpu",
        block=1,
        pairs=2,
        kernel=None,
        checkpoint=False,
    )


def made(size: str, kept: Kept, device: torch.device) -> tuple[step.Training, argparse.Namespace] | None:
    """Return a model of that size, warmed up, or ``None`` where it does not fit."""
    wanted = options(size, device)
    try:
        return step.warmed_up(wanted), wanted
    except torch.OutOfMemoryError as error:
        kept.keep(f"{size} does not fit", str(error)[:300])
        return None


def run(kept: Kept, device: torch.device) -> None:
    """Train the largest model that fits, in as many pairs of blocks as there is time for."""
    _train(SIZES, kept, device)


def run_8b(kept: Kept, device: torch.device) -> None:
    """Train a model of 8 B parameters, which needs a card of 120 GB."""
    _train(("8b",), kept, device)


def _train(sizes: tuple[str, ...], kept: Kept, device: torch.device) -> None:
    for size in sizes:
        if found := made(size, kept, device):
            _compare(*found, kept, device)
            return
        gc.collect()
        torch.cuda.empty_cache()
    raise MemoryError(f"none of {', '.join(sizes)} fits into this card")


def _compare(training: step.Training, wanted: argparse.Namespace, kept: Kept, device: torch.device) -> None:
    seconds = training.block(wanted.block, monitored=False)
    if device.type == "cuda":
        fit = int((kept.left_s() - MARGIN_S) / (3 * seconds))
        wanted.pairs = max(LEAST_PAIRS, min(MOST_PAIRS, fit))
    result = step.compare(training, wanted)
    kept.keep("step", result)
    overhead, noise = (step.shown("", result[name]).strip() for name in ("overhead", "noise"))
    kept.table(f"A whole training step, {result['size']}", ["figure", "value"], [
        ["parameters, V, tokens", f"{result['parameters'] / 1e6:,.0f} M, {result['vocab']}, {result['tokens']}"],
        ["ms without the monitor", f"{result['step_ms']:.2f}"],
        ["with the monitor", overhead],
        ["the machine's noise alone", noise],
        ["host time in the monitor, ms a step", f"{result['monitor_host_ms']:.3f}"],
        ["pairs, steps of a block", f"{result['pairs']}, {result['steps_per_block']}"],
    ])  # fmt: skip
