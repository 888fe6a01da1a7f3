"""Run by ``test_lightning_uneven``: DDP ranks of which one has fewer batches to train on, or is lost before validation."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy

import pplmon
from pplmon.monitor import readouts
from tests.fault_script import module_of
from tests.launch import launch
from tests.models import loader


def fit(where: Path, case: str) -> None:
    """Train two epochs; what a rank saw and how long it took is in ``rank{r}.txt``."""
    readouts.EPOCH_S = 3.0
    rank, begun = int(os.environ["RANK"]), time.monotonic()
    monitor = pplmon.PerplexityMonitor(every_n_steps=4, alerts=[])
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=20)),
        max_epochs=2,
        callbacks=[monitor, Dies(rank == 1 and case == "lost")],
        default_root_dir=where,
        logger=pl.loggers.CSVLogger(where, name="csv", version=0),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    rows = 32 if rank == 1 and case == "uneven" else 48
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(module_of(where), loader(rows), loader(16, seed=1))
        finally:
            metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if "perplexity" in key}
            texts = [str(each.message) for each in caught if "pplmon" in str(each.message)]
            seen = [f"seconds {time.monotonic() - begun:.1f}", f"metrics {metrics}", *texts]
            (where / f"rank{rank}.txt").write_text("\n".join(seen))
            os._exit(0)  # the other rank may be gone


class Dies(pl.Callback):
    """Kills its own process when validation begins."""

    def __init__(self, dies: bool) -> None:
        self._dies = dies

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        if self._dies and not trainer.sanity_checking:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    launch(fit, 2, Path(sys.argv[1]), sys.argv[2], timeout_s=70.0)
