"""A small run of fixed losses, whose checkpoints and journal lie in ``tests/golden``; they were written once, by

    python -m tests.golden_run tests/golden

and every later version has to read in them the numbers that ``numbers.json`` holds (``tests/test_golden.py``). They are not to be
made anew: a version that reads other numbers is at fault. Nothing here depends on the machine but the last bits of exp.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import pplmon
from pplmon import Report, TokenStats, TokenTally
from pplmon.sinks import Journal

ROWS, LENGTH, VOCAB = 4, 24, 9
EVERY, STEPS = 4, 6  # steps of a window, and of an epoch


def stats(step: int) -> TokenStats:
    """Losses with ties, among them one that is not finite, and from step 5 on one beyond the cap; some targets are ignored."""
    index = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) + 7 * step
    nll = (index * 37 % 101) / 16
    nll[1, 5] = torch.nan if step % 4 == 2 else 3.5
    nll[2, 7] = 2000.0 if step >= 5 else 4.25
    targets = index * 5 % VOCAB
    targets[::2, :3] = -100
    return TokenStats.from_losses(
        nll,
        targets,
        predicted=index * 3 % VOCAB,
        top_probability=(index * 13 % 16) / 16,
        vocab_size=VOCAB,
        entropy=(index % 16) / 8,
    )


def data() -> dict[str, Tensor]:
    """What comes with every batch: two documents in a row, and the rows of the data set."""
    documents = (torch.arange(LENGTH) >= 10).long().expand(ROWS, LENGTH)
    return {"document_ids": documents, "sample_ids": torch.arange(ROWS) * 11}


def tally() -> TokenTally:
    """Everything that a tally may measure."""
    return TokenTally(
        top_k=3, context=2, min_sequence_tokens=4, token_bytes=[1, 2, 3, 4, 0, 6, 7, 8, 9], extras=[pplmon.Entropy()]
    )


def rules() -> list[pplmon.Rule]:
    """One that fires and stays, one that comes and goes, one with a baseline."""
    spike = pplmon.Spike("max_token_loss", window=3, gap=1, limit=1.0, quiet_steps=2, leak=0.1)
    return [pplmon.Above("max_token_loss", 6.0), pplmon.NonFinite(), spike]


def seen(report: Report) -> dict[str, Any]:
    """Everything that a report says, as plain values."""
    rows = {
        name: [{key: value for key, value in asdict(row).items() if value is not None} for row in getattr(report, name)]
        for name in ("worst", "worst_sequences")
    }
    return json.loads(json.dumps({"numbers": report.as_dict(), **rows}))  # type: ignore[no-any-return]


def monitor(*sinks: pplmon.sinks.Sink) -> pplmon.Monitor:
    """A monitor that has seen nothing."""
    return pplmon.Monitor(every_n_steps=EVERY, tally=tally(), alerts=rules(), sinks=sinks)


def watch(watched: pplmon.Monitor, steps: range) -> None:
    """Train some steps of two micro-batches, with a validation pass after step 6."""
    for step in steps:
        watched.observe(stats(step), **data())
        watched.observe(stats(step - 50), **data())
        watched.step()
        if step == 6:
            with watched.stage("val"):
                watched.observe(stats(100), **data())


class Watched(pl.LightningModule):
    """A module with a tally of its own, which shows the fixed losses to a monitor, too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.tally = torch.nn.Parameter(torch.zeros(1)), tally()

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        shown = stats(int(batch))
        pplmon.observe(self, shown, **data())
        self.tally.update(shown, **data(), step=int(batch))
        nll = shown.nll[shown.scored & shown.nll.isfinite()]
        return nll.clamp(max=1024.0).mean() + 0 * self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self) -> DataLoader[Any]:
        epoch = self.current_epoch
        return DataLoader(range(epoch * STEPS, (epoch + 1) * STEPS), batch_size=None)  # type: ignore[arg-type]


class Keeps(pl.Callback):
    """Saves a checkpoint when an epoch ends, in the middle of a window."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self._path)


def fit(where: Path, *callbacks: pl.Callback, ckpt_path: Path | None = None) -> tuple[Watched, list[dict[str, Any]]]:
    """Train two epochs, or the second of them from a checkpoint on; return the module and the journal's rows."""
    module, watches = Watched(), pplmon.PerplexityMonitor(every_n_steps=EVERY, tally=tally(), alerts=rules())
    trainer = pl.Trainer(
        default_root_dir=where,
        accelerator="cpu",
        max_epochs=2,
        callbacks=[watches, *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
    )
    trainer.fit(module, ckpt_path=ckpt_path)
    (path,) = where.rglob("pplmon.jsonl")
    return module, pplmon.sinks.read_journal(path)


def window(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The report of the window that the checkpoint cut."""
    (row,) = [row for row in rows if row["kind"] == "report" and row["stage"] == "train" and row["step"] == 7]
    return {name: row[name] for name in ("numbers", "worst", "worst_sequences")}


def main(where: Path, scratch: Path) -> None:
    """Write all files."""
    where.mkdir(parents=True, exist_ok=True)
    numbers = {}
    watched = monitor(Journal(where))
    watch(watched, range(10))
    watched.observe(stats(10), **data())
    (where / "monitor.json").write_text(json.dumps(watched.state_dict()) + "\n")
    last = watched.close()
    assert last is not None
    numbers["monitor"] = seen(last)
    counted = tally()
    for step in range(8):
        counted.update(stats(step), **data(), step=step)
    (where / "totals.json").write_text(json.dumps(counted.totals().state_dict()) + "\n")
    numbers["totals"] = seen(counted.report())
    module, rows = fit(scratch, Keeps(where / "run.ckpt"))
    numbers["callback"], numbers["tally"] = window(rows), seen(module.tally.report())
    (where / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        main(Path(sys.argv[1]), Path(scratch))
