"""Time the callback on the host in each optimizer step, beside an empty one and hand-written logging.

    python -m benchmarks.callback [--steps 300] [--rounds 5] [--out result.json] [--against CHECKOUT]

The same small model is trained under a Lightning ``Trainer``, in turn with

- an empty callback;
- an empty callback and ``pplmon.token_stats`` in the step: on a CPU the host itself reads the logits;
- ``PerplexityMonitor``: every step is read out and judged by the default alerts, every 50th is logged;
- four numbers of torchmetrics and ``self.log``: perplexity, accuracy, mean and largest loss;
- the callback's ten default numbers, by torchmetrics, plain PyTorch and ``self.log``.

Figures are the median over rounds of a round's mean step (the logged ones among them), less that of the empty callback in the same
round.

``--against`` compares the callback of this checkout with that of another one (``git worktree add ../before COMMIT`` makes one), which
is given as its folder: see ``benchmarks.turns``.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

import pplmon
from benchmarks import turns
from benchmarks.machine import machine

VOCAB, WIDTH, ROWS, LENGTH, LOGGED = 128, 16, 8, 64, 50
WARM = 60  # steps of a round that are not counted; the first logged window is among them


class Model(pl.LightningModule):
    """A bigram model: as little as a step can be."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        logits, targets = self.net(batch[0][:, :-1]), batch[0][:, 1:]
        self.watch(logits, targets)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def watch(self, logits: Tensor, targets: Tensor) -> None:
        """Look at a batch; what this costs is measured."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), 0.1)


class Watched(Model):
    """For the callback: it is told where logits and targets are."""

    def watch(self, logits: Tensor, targets: Tensor) -> None:
        pplmon.observe(self, logits, targets)


class Measured(Model):
    """What the pass over the logits costs alone."""

    def watch(self, logits: Tensor, targets: Tensor) -> None:
        pplmon.token_stats(logits, targets)


class FourNumbers(Model):
    """What a tutorial shows."""

    def __init__(self) -> None:
        super().__init__()
        self.perplexity, self.accuracy = Perplexity(ignore_index=-100), MulticlassAccuracy(VOCAB, average="micro")
        self.mean, self.worst = MeanMetric(), MaxMetric()

    def watch(self, logits: Tensor, targets: Tensor) -> None:
        logits = logits.detach()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        self.perplexity(logits, targets)
        self.accuracy(logits.flatten(0, 1), targets.flatten())
        self.mean(losses)
        self.worst(losses)
        self.log("train/perplexity", self.perplexity)
        self.log("train/token_accuracy", self.accuracy)
        self.log("train/cross_entropy", self.mean)
        self.log("train/max_token_loss", self.worst)


class TenNumbers(FourNumbers):
    """The callback's default numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def watch(self, logits: Tensor, targets: Tensor) -> None:
        super().watch(logits, targets)
        losses = F.cross_entropy(logits.detach().transpose(1, 2), targets, reduction="none")
        flat = losses.flatten()
        self.seen += flat.numel()
        self.log("train/inverse_perplexity", torch.exp(-flat.mean()))
        self.log("train/max_sequence_loss", losses.mean(1).max())
        self.log("train/token_loss_p99", torch.quantile(flat, 0.99))
        self.log("train/worst_1pct_loss", flat.topk(-(-flat.numel() // 100)).values.mean())
        self.log("train/nonfinite_tokens", (~flat.isfinite()).sum().float())
        self.log("train/tokens_seen", float(self.seen))


class Clock(pl.Callback):
    """Notes when each step begins."""

    def __init__(self) -> None:
        self.begun: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.begun.append(time.perf_counter())

    def mean(self) -> float:
        """Seconds from one step to the next, the logged ones among them."""
        return (self.begun[-1] - self.begun[WARM]) / (len(self.begun) - 1 - WARM)


Variant = tuple[Callable[[], Model], Callable[[], list[pl.Callback]]]
VARIANTS: dict[str, Variant] = {
    "an empty callback": (Model, lambda: [pl.Callback()]),
    "measuring alone": (Measured, lambda: [pl.Callback()]),
    "PerplexityMonitor": (Watched, lambda: [pplmon.PerplexityMonitor()]),
    "torchmetrics and self.log, four numbers": (FourNumbers, lambda: [pl.Callback()]),
    "torchmetrics and self.log, the same ten": (TenNumbers, lambda: [pl.Callback()]),
}


def trained(variant: str, steps: int, where: Path | None = None) -> tuple[pl.Trainer, Clock]:
    """Train for so many steps."""
    torch.manual_seed(0)
    model, callbacks = (make() for make in VARIANTS[variant])
    data = DataLoader(TensorDataset(torch.randint(0, VOCAB, (ROWS * steps, LENGTH + 1))), batch_size=ROWS)
    clock = Clock()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False if where is None else TensorBoardLogger(where),
        default_root_dir=tempfile.gettempdir(),  # the journal of a run without a logger goes there
        log_every_n_steps=LOGGED,
        callbacks=[clock, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, data)
    return trainer, clock


def measure(steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return, by variant, what it adds to a step: the median over rounds, the least and the most, in µs."""
    added: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as where:
        for _ in range(rounds):
            took = {name: trained(name, steps + WARM + 1, Path(where))[1].mean() for name in VARIANTS}
            empty = took["an empty callback"]
            for name, seconds in took.items():
                added[name].append(1e6 * (seconds - empty))
            added["an empty callback"][-1] = 1e6 * empty
    return {
        name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
        for name, values in added.items()
    }


def quieten() -> None:
    """Take one thread, and say nothing."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def table(results: dict[str, dict[str, float]]) -> Table:
    """Return the figures, and their ratio to the glue that logs the same numbers."""
    shown = Table("", "µs a step", "of rounds", "of the glue", title="What is added to an optimizer step")
    glue = results["torchmetrics and self.log, the same ten"]["median"]
    for name, row in results.items():
        whole = name == "an empty callback"
        shown.add_row(
            f"{name} (the whole step)" if whole else name,
            f"{row['median']:,.0f}",
            f"{row['least']:,.0f}–{row['most']:,.0f}",
            "" if whole else f"{row['median'] / glue:.2f}",
        )
    monitor = results["PerplexityMonitor"]["median"] - results["measuring alone"]["median"]
    shown.add_row("PerplexityMonitor less measuring", f"{monitor:,.0f}", "", f"{monitor / glue:.2f}")
    return shown


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="counted steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="compare with the callback of another checkout"
    )
    options = parser.parse_args(arguments)
    results: dict[str, Any]
    if options.against is not None:
        results = turns.compare(options.against, options.steps, options.rounds)
        Console().print(turns.table(results))
    else:
        quieten()
        results = measure(options.steps, options.rounds)
        Console().print(table(results))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine(), "µs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
