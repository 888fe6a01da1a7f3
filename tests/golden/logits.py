"""The fixed runs that begin with logits, for ``tests.golden_runs``: their last bits are those of one machine.

Weights, logits and ids are made by formulas in whole numbers, so that no random generator takes part.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

import pplmon
from pplmon import TokenTally, token_stats
from tests.golden.monitors import journal

VOCAB, LENGTH, WIDTH = 37, 20, 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def scattered(*shape: int, step: int, modulus: int) -> Tensor:
    """Return whole numbers from 0 to ``modulus`` − 1 that look disordered: k²·step + k·7 of the k-th, modulo it."""
    count = torch.arange(torch.Size(shape).numel())
    return ((count * count * step + count * 7) % modulus).reshape(shape)


def logits_of(*shape: int, step: int = 11) -> Tensor:
    """Return float32 logits between −8 and 8 in eighths: the same number in every dtype."""
    return (scattered(*shape, step=step, modulus=127) - 63) / 8


def columns() -> dict[str, Any]:
    """Return what is measured of each token, for each dtype, with all options, and of rows that are read in chunks."""
    logits, targets = logits_of(3, LENGTH, VOCAB), scattered(3, LENGTH, step=5, modulus=VOCAB)
    odd = logits.clone()
    odd[0, 2, 5], odd[1, 3], odd[2, 4, :30], odd[0, 6, 1] = torch.nan, torch.inf, -torch.inf, torch.inf
    mask = scattered(3, LENGTH, step=3, modulus=5) > 0
    found = {str(dtype): token_stats(logits.to(dtype), targets, entropy=True) for dtype in DTYPES}
    found["odd"] = token_stats(odd, targets, entropy=True)
    found["shifted"] = token_stats(logits, targets, mask=mask, shift=True, ignore_index=3)
    found["flat"] = token_stats(logits.flatten(0, 1), targets.flatten(), ignore_index=None)
    wide = token_stats(logits_of(2, 400, 6007), scattered(2, 400, step=5, modulus=6007), entropy=True)
    digests = {name: digest(value) for name, value in parts(wide).items() if isinstance(value, Tensor)}
    return {**{name: parts(stats) for name, stats in found.items()}, "wide": digests}


def parts(stats: pplmon.TokenStats) -> dict[str, Any]:
    """Return the fields of stats by name."""
    return {field.name: getattr(stats, field.name) for field in fields(stats)}


def digest(column: Tensor) -> str:
    """Return a digest of the bits of a column."""
    return hashlib.sha256(column.contiguous().numpy().tobytes()).hexdigest()


def tallies() -> dict[str, Any]:
    """Return the report of tallies that were given logits, and the values of the views."""
    settings: dict[str, dict[str, Any]] = {
        "plain": {},
        "shifted": {"shift": True, "token_bytes": [1 + i % 4 for i in range(VOCAB)]},
        "entropy": {"extras": [pplmon.Entropy()], "ignore_index": 4},
    }
    found: dict[str, Any] = {}
    for name, how in settings.items():
        tally = TokenTally(top_k=3, context=2, **how)
        for step in range(3):
            logits, targets = batch(step)
            documents = torch.arange(LENGTH).expand(4, LENGTH) // 7 if step == 1 else None
            tally.update(logits, targets, mask=targets > 0, document_ids=documents, step=step)
        found[name] = tally.report()
    names = ("Perplexity", "CrossEntropy", "TokenAccuracy", "MaxTokenLoss")
    views = MetricCollection([*(getattr(pplmon, name)() for name in names), pplmon.TokenLossQuantile(q=0.9)])
    forward = views(*batch(0))
    views.update(*batch(1))
    found["views"] = {"forward": values(forward), "computed": values(views.compute())}
    return found


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Return the logits and targets of a step."""
    return logits_of(4, LENGTH, VOCAB, step=11 + 2 * step), scattered(4, LENGTH, step=3 + 2 * step, modulus=VOCAB)


def values(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Return numbers in place of tensors."""
    return {name: value.item() for name, value in metrics.items()}


def plain_loop(where: Path) -> dict[str, Any]:
    """Return what a monitor wrote that was given logits."""
    rules = [*pplmon.default_alerts(), pplmon.Above("max_token_loss", 13.0)]
    sinks = [pplmon.sinks.Journal(where), pplmon.sinks.TensorBoard(where)]
    monitor = pplmon.Monitor(every_n_steps=4, tally=TokenTally(top_k=2, context=1), sinks=sinks, alerts=rules)
    for step in range(10):
        logits, targets = batch(step)
        monitor.observe(logits * (3 if step == 6 else 1), targets)
        monitor.step()
    with monitor.stage("val"):
        monitor.observe(*batch(20))
    monitor.close()
    return {"journal": journal(where), "scalars": scalars(where)}


# A Trainer.


class Model(pl.LightningModule):
    """A bigram model whose first weights are fixed; it tells of its logits in one of three ways."""

    def __init__(self, told: str) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB))
        self.told = told
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_((scattered(*weight.shape, step=13, modulus=31) - 15) / 16)

    def any_step(self, batch: dict[str, Tensor]) -> Any:
        """Return the loss, and with it what the callback asks for."""
        logits = self.net(batch["x"])
        if self.told == "observe":
            pplmon.observe(self, logits, batch["labels"], sample_ids=batch["sample_ids"])
        loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        return {"loss": loss, "logits": logits, "labels": batch["labels"]} if self.told == "returned" else loss

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        """Train."""
        return self.any_step(batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Validate."""
        return self.any_step(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        """Test."""
        return self.any_step(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), 0.5)


def loader(rows: int, step: int) -> DataLoader[Any]:
    """Return batches of four rows; some targets are ignored."""
    ids = scattered(rows, LENGTH + 1, step=step, modulus=VOCAB)
    labels = ids[:, 1:].masked_fill(scattered(rows, LENGTH, step=7, modulus=11) == 0, -100)
    samples = [{"x": x[:-1], "labels": y, "sample_ids": torch.tensor(i)} for i, (x, y) in enumerate(zip(ids, labels))]
    return DataLoader(samples, batch_size=4)  # type: ignore[arg-type]


def trainer(where: Path, name: str, told: str = "observe", **settings: Any) -> pl.Trainer:
    """Return a trainer that logs to TensorBoard, with our callback."""
    source = {"logits": "net.1", "targets": "labels"} if told == "named" else {}
    monitor = pplmon.PerplexityMonitor(
        **source,
        numbers="all",
        tally=TokenTally(top_k=2, context=1),
        alerts=[*pplmon.default_alerts(), pplmon.Above("cross_entropy", 3.5, stage="val")],
    )
    logger = pl.loggers.TensorBoardLogger(where, name=name, version="")
    shared: dict[str, Any] = {"accelerator": "cpu", "log_every_n_steps": 3, "num_sanity_val_steps": 0, **QUIET}
    return pl.Trainer(logger=logger, callbacks=[monitor], **shared, **settings)


def epochs(where: Path) -> dict[str, Any]:
    """Return two epochs with accumulation and two loaders to validate on, the second resumed, and a test."""
    loaders = [loader(8, 17), loader(12, 19)]
    first = trainer(where, "first", max_epochs=1, accumulate_grad_batches=2)
    first.fit(Model("observe"), loader(44, 5), loaders)
    first.save_checkpoint(where / "saved.ckpt")
    second = trainer(where, "second", max_epochs=2, accumulate_grad_batches=2)
    model = Model("observe")
    second.fit(model, loader(44, 5), loaders, ckpt_path=where / "saved.ckpt")
    found = {"after fit": values(second.callback_metrics)}
    second.test(model, loader(8, 23), verbose=False)
    found["after test"] = values(second.callback_metrics)
    return {**found, **{name: written(where / name) for name in ("first", "second")}}


def sources(where: Path) -> dict[str, Any]:
    """Return what the callback told the trainer for each way in which it finds logits."""
    found = {}
    for told in ("observe", "returned", "named"):
        run = trainer(where, told, told, max_steps=5)
        run.fit(Model(told), loader(20, 5))
        found[told] = values(run.callback_metrics)
    return found


def written(where: Path) -> dict[str, Any]:
    """Return the journal and the scalars of a trainer."""
    return {"journal": journal(where), "scalars": scalars(where)}


def scalars(where: Path) -> dict[str, Any]:
    """Return the scalars of TensorBoard's files: (step, value) by tag."""
    events = EventAccumulator(str(where), size_guidance={"scalars": 0}).Reload()
    return {tag: [[s.step, s.value] for s in events.Scalars(tag)] for tag in sorted(events.Tags()["scalars"])}


def runs() -> dict[str, Any]:
    """Make every run."""
    quiet = logging.getLogger("pytorch_lightning")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            where = Path(directory)
            return {
                "columns": columns(),
                "tally": tallies(),
                "monitor": plain_loop(where / "loop"),
                "trainer": epochs(where),
                "sources": sources(where / "sources"),
            }
    finally:
        quiet.setLevel(level)
