"""A whole training step with the monitor and without: forward, backward, optimizer; paired, with the ratio's confidence interval.

    python -m benchmarks.step [--size 10m] [--vocab 16384] [--batch 4] [--length 256] [--pairs 20] [--block 3]
                              [--kernel eager] [--checkpoint] [--out result.json]

A pair is three blocks of steps: without, with, without. The overhead is the time of the second over the mean of its neighbours,
which a steady drift of the machine does not change; the third over the first, which differ in nothing, shows what the machine's
noise alone makes of the same arithmetic. Intervals hold 95 %: percentiles of the mean log ratio over resampled pairs.

The loss is ``F.cross_entropy`` in the logits' dtype, the cheapest there is: beside a dearer one the monitor would weigh less.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

import pplmon
from benchmarks.decoder import SIZES, build, parameters
from benchmarks.machine import machine

BATCHES = 8
RESAMPLED = 10_000
WARM_UP = 3  # steps of each kind


class Training:
    """A model that trains, and a monitor that is shown its logits or not."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        torch.manual_seed(0)
        shape = SIZES[options.size]
        shape = shape._replace(vocab=options.vocab or shape.vocab)
        self.model = build(shape, self.device, getattr(torch, options.dtype), options.checkpoint)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)
        ids = torch.randint(shape.vocab, (BATCHES, options.batch, options.length + 1), device=self.device)
        self.ids, self.vocab, self.taken, self.own_s = ids, shape.vocab, 0, 0.0
        self.monitor = pplmon.Monitor(every_n_steps=50, tally=pplmon.TokenTally(kernel=options.kernel))

    def step(self, monitored: bool) -> None:
        """Train on the next batch."""
        batch = self.ids[self.taken % BATCHES]
        self.taken += 1
        logits = self.model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        if monitored:
            self._observe(logits.detach(), batch[:, 1:])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _observe(self, logits: Tensor, targets: Tensor) -> None:
        begun = time.perf_counter()
        self.monitor.observe(logits, targets)
        self.monitor.step()
        self.own_s += time.perf_counter() - begun

    def block(self, steps: int, monitored: bool) -> float:
        """Return the seconds of so many steps, from an idle device to an idle device."""
        self.wait()
        begun = time.perf_counter()
        for _ in range(steps):
            self.step(monitored)
        self.wait()
        return time.perf_counter() - begun

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def warmed_up(options: argparse.Namespace) -> Training:
    """Make a model, and train it for a few steps of each kind."""
    training = Training(options)
    for monitored in (False, True):
        training.block(WARM_UP, monitored)
    return training


def compare(training: Training, options: argparse.Namespace) -> dict[str, Any]:
    """Train in pairs, and return the two ratios with their intervals."""
    training.own_s = 0.0
    triples = [
        [training.block(options.block, monitored) for monitored in (False, True, False)] for _ in range(options.pairs)
    ]
    training.monitor.close()
    over = [math.log(with_ / ((before + after) / 2)) for before, with_, after in triples]
    noise = [math.log(after / before) for before, _, after in triples]
    without = statistics.median(block for before, _, after in triples for block in (before, after)) / options.block
    own = training.own_s / (options.pairs * options.block)
    return {
        "size": options.size,
        "parameters": parameters(training.model),
        "vocab": training.vocab,
        "tokens": options.batch * options.length,
        "dtype": options.dtype,
        "device": options.device,
        "pairs": options.pairs,
        "steps_per_block": options.block,
        "step_ms": 1000 * without,
        "monitor_host_ms": 1000 * own,
        "overhead": interval(over),
        "noise": interval(noise),
        "blocks_s": triples,
    }


def interval(log_ratios: list[float]) -> dict[str, float]:
    """Return the mean ratio less 1, in percent, and its 95 % interval."""
    chance = random.Random(0)
    means = sorted(statistics.fmean(chance.choices(log_ratios, k=len(log_ratios))) for _ in range(RESAMPLED))
    low, high = means[int(0.025 * RESAMPLED)], means[int(0.975 * RESAMPLED)]
    return {
        name: 100 * math.expm1(x)
        for name, x in (("percent", statistics.fmean(log_ratios)), ("low", low), ("high", high))
    }


def shown(name: str, found: dict[str, float]) -> str:
    """Return an interval as it is printed."""
    return f"{name} {found['percent']:+.2f} % ({found['low']:+.2f} to {found['high']:+.2f})"


def table(result: dict[str, Any]) -> Table:
    """Return the figures for the terminal."""
    rows = Table("", "", title="a whole training step, with and without the monitor", show_header=False)
    rows.add_row("model", f"{result['parameters'] / 1e6:,.1f} M parameters, V = {result['vocab']}, {result['dtype']}")
    rows.add_row("step", f"{result['tokens']} tokens, {result['step_ms']:.2f} ms without the monitor")
    rows.add_row("with the monitor", shown("", result["overhead"]))
    rows.add_row("the machine's noise alone", shown("", result["noise"]))
    rows.add_row("host time in the monitor", f"{result['monitor_host_ms']:.3f} ms a step")
    rows.add_row("pairs × steps per block", f"{result['pairs']} × {result['steps_per_block']}")
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Train, print, and write."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="10m")
    parser.add_argument("--vocab", type=int, help="V; as models of the size have it")
    parser.add_argument("--batch", type=int, default=8 if cuda else 4, help="sequences")
    parser.add_argument("--length", type=int, default=1024 if cuda else 256, help="tokens of each")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16" if cuda else "float32")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--block", type=int, default=10 if cuda else 2, help="steps of a block")
    parser.add_argument("--kernel", help="of the monitor; the fastest that runs there")
    parser.add_argument("--checkpoint", action="store_true", help="recompute blocks in backward, to fit a larger model")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    result = compare(warmed_up(options), options)
    Console(width=max(Console().width, 100)).print(table(result))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        found = {"machine": machine(), "threads": options.threads, "results": result}
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
