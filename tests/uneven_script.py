"""Run by ``test_lightning_uneven``: DDP ranks of which one has fewer batches to train on, or is lost before validation."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader, IterableDataset

import pplmon
from pplmon.monitor import patience
from tests.fault_script import module_of
from tests.launch import launch
from tests.models import loader, rows

TIMEOUT_S = 12.0  # of the training's own group


class Case(NamedTuple):
    """Rows of each rank, of which four are a batch, and how they are trained on."""

    rows: tuple[int, int] = (48, 48)
    sized: bool = True
    validates: bool = True
    judge_every_n_steps: int = 1
    dies: bool = False


CASES = {
    "second": Case((48, 32)),
    "first": Case((28, 48), judge_every_n_steps=4),
    "without validation": Case((48, 20), validates=False, judge_every_n_steps=3),
    "unknown": Case((48, 32), sized=False),
    "alike": Case(),
    "lost": Case(dies=True),
}


class Stream(IterableDataset[Any]):
    """Rows without a number of them."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __iter__(self) -> Iterator[Any]:
        return iter(rows(self._count))


def fit(where: Path, case: Case) -> None:
    """Train two epochs; what a rank saw, and the longest time in a hook of ours, is in ``rank{r}.json``."""
    patience.EPOCH_S = 3.0
    rank = int(os.environ["RANK"])
    monitor = Timed(every_n_steps=4, judge_every_n_steps=case.judge_every_n_steps, alerts=[])
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=TIMEOUT_S)),
        max_epochs=2,
        callbacks=[monitor, Dies(rank == 1 and case.dies)],
        default_root_dir=where,
        logger=pl.loggers.CSVLogger(where, name="csv", version=0),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    count = case.rows[rank]
    train = loader(count, seed=10 + rank) if case.sized else DataLoader(Stream(count), batch_size=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(module_of(where), train, loader(16, seed=1) if case.validates else None)
        finally:
            metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if "perplexity" in key}
            texts = [str(each.message) for each in caught if str(each.message).startswith("pplmon")]
            seen = {"waited": monitor.longest, "metrics": metrics, "warnings": texts}
            (where / f"rank{rank}.json").write_text(json.dumps(seen))
            os._exit(0)  # the other rank may be gone


class Timed(pplmon.PerplexityMonitor):
    """Notes the longest time that a hook took."""

    longest = 0.0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("on_") or not callable(found):
            return found

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.monotonic()
            try:
                return found(*args, **kwargs)
            finally:
                self.longest = max(self.longest, time.monotonic() - begun)

        return timed


class Dies(pl.Callback):
    """Kills its own process when validation begins."""

    def __init__(self, dies: bool) -> None:
        self._dies = dies

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        if self._dies:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    for name, given in CASES.items():
        folder = Path(sys.argv[1]) / name
        folder.mkdir()
        if os.fork() == 0:
            launch(fit, 2, folder, given, timeout_s=70.0)
            os._exit(0)
    for _ in CASES:
        os.wait()
