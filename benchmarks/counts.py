"""Count launches, host syncs, bytes and collectives, which are the same on every run. No GPU is needed.

    python -m benchmarks.counts [--ranks 1 2 4] [--out counts.json] [--compare counts.json]

On one machine with one build of PyTorch the figures are the same in every run, so that two commits can be compared by them:
``--compare`` prints each figure that is not as in an earlier file, and exits with 1 if there is one.

- update: what a warm measurement or update takes (``benchmarks.meter``), for each of our ways to measure (``benchmarks.measure``);
- step: the same of an optimizer step of a plain loop, with what it judges and logs;
- trainer: the same of a short run of a Lightning ``Trainer``, with an empty callback and with ours (``benchmarks.callback``);
- read-out: collectives and their bytes (``benchmarks.collectives``);
- kernel: machine instructions of the Triton kernel (``benchmarks.instructions``), where Triton brings a disassembler.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import pplmon
from benchmarks import callback, collectives, measure, meter
from benchmarks.machine import machine
from pplmon.testing import run_on_ranks

CPU = torch.device("cpu")
# N, V and dtype; the last is the least that torch.compile takes.
SHAPES = [(64, 4099, torch.float32), (64, 4099, torch.bfloat16), (256, 32768, torch.float32)]
COSTS = ("launches", "syncs", "allocations", "peak_bytes")
TRAINED = 12  # steps

Counts = dict[str, float]


def updates() -> Counts:
    """Count one call of each of our ways to measure."""
    found: Counts = {}
    for tokens, vocab, dtype in SHAPES:
        logits, targets = measure.batch(tokens, vocab, dtype, CPU)
        for name in measure.chosen(["pplmon"]):
            way, row = measure.once(name, logits, targets, measure.exact_mean(logits, targets))
            if way is not None:  # a kernel for GPUs is none here
                shape = f"{tokens} × {vocab} {str(dtype).removeprefix('torch.')}"
                found |= {f"update, {name}, {shape}, {cost}": row[cost] for cost in COSTS}
    return found


def steps() -> Counts:
    """Count a step that counts only, one that is read out and judged, and one that logs its window."""
    found: Counts = {}
    logits, targets = torch.randn(4, 64, 100), torch.randint(100, (4, 64))
    with tempfile.TemporaryDirectory() as where:
        for name, every, judged in (("counted", 1000, 1000), ("judged", 1000, 1), ("logged", 1, 1)):
            sinks = [pplmon.sinks.Journal(where), pplmon.sinks.TensorBoard(where)]
            monitor = pplmon.Monitor(every_n_steps=every, judge_every_n_steps=judged, sinks=sinks)

            def step(monitor: pplmon.Monitor = monitor) -> None:
                monitor.observe(logits, targets)
                monitor.step()

            for _ in range(meter.WARM_UP):
                step()
            found |= {f"step, {name}, {cost}": value for cost, value in meter.costs(step, CPU).items()}
            monitor.close()
    return found


def trainers() -> Counts:
    """Count a short run with an empty callback, and with ours."""
    found: Counts = {}
    for variant in ("an empty callback", "PerplexityMonitor"):
        callback.trained(variant, TRAINED)
        taken = meter.costs(lambda variant=variant: callback.trained(variant, TRAINED), CPU)
        found |= {f"trainer, {variant}, {TRAINED} steps, {cost}": value for cost, value in taken.items()}
    return found


def read_outs(sizes: list[int]) -> Counts:
    """Count the collectives of one read-out, and the bytes that rank 0 gives."""
    found: Counts = {}
    for ranks in sizes:
        ours = run_on_ranks(collectives.measure, ranks, 1, timeout_s=600)[0]["pplmon"]
        found |= {f"read-out, ranks: {ranks}, {what}": ours[what] for what in ("collectives", "bytes")}
    return found


def kernels() -> Counts:
    """Count the instructions of the kernel's loop and of what surrounds it."""
    if find_spec("triton") is None:
        return {}
    from benchmarks import instructions

    if not Path(instructions.disassembler()).exists():
        return {}
    found: Counts = {}
    for dtype in instructions.NAMES:
        for entropy in (False, True):
            row = instructions.row(dtype, entropy)
            kind = f"{row['dtype']}{', entropy' if entropy else ''}"
            found |= {f"kernel, {kind}, {name}": value for name, value in row.items() if type(value) in (int, float)}
    return found


def count(ranks: list[int]) -> Counts:
    """Count everything."""
    torch.manual_seed(0)
    return {**updates(), **steps(), **trainers(), **read_outs(ranks), **kernels()}


def differences(before: Counts, after: Counts) -> list[str]:
    """Say which figures changed, went, or are new."""
    names = {**before, **after}
    return [f"{n}: {before.get(n)} → {after.get(n)}" for n in names if before.get(n) != after.get(n)]


def main(arguments: list[str] | None = None) -> int:
    """Count, print, write, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--compare", type=Path, help="a file that --out wrote, with the same --ranks")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    found = count(options.ranks)
    shown = Table("", "", title="counted", show_header=False)
    for name, value in found.items():
        shown.add_row(name, f"{value:,.2f}".removesuffix(".00"))
    Console(width=max(Console().width, 110)).print(shown)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine(), "counts": found}, indent=1) + "\n")
    if options.compare is None:
        return 0
    changed = differences(json.loads(options.compare.read_text())["counts"], found)
    print(*changed, f"{len(changed)} of {len(found)} figures differ", sep="\n")
    return 1 if changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
