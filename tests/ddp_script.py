"""Run by ``test_lightning_ranks``: two DDP ranks with unlike numbers of tokens; rank 1 meets the bad one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import pplmon
from tests.launch import launch
from tests.models import make_module, rows

BAD_ROW = 13  # dealt to rank 1 as its 7th row: step 3, row 0 with batches of 2


def main(root: Path) -> None:
    """Fit, and write what this rank saw to ``rank{r}.json``."""
    module = make_module(pl.LightningModule, lr=0.0)
    module.head.bias.data[5] = -50.0
    module.keep = True
    data = rows(24)
    for index, item in enumerate(data):
        item["labels"][item["labels"] == 5] = 6
        if index == BAD_ROW:
            item["labels"][15] = 5
    alerts: list[pplmon.Alert] = []
    monitor = pplmon.PerplexityMonitor(alerts=[pplmon.Above("max_token_loss", 40.0)], on_alert=alerts.append)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        log_every_n_steps=2,
        callbacks=[monitor, pl.callbacks.EarlyStopping("val/perplexity")],
        logger=pl.loggers.CSVLogger(root, name="csv", version=0),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )

    class Dealt(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
            return DataLoader(data[trainer.global_rank :: 2], batch_size=2)  # type: ignore[arg-type]

        def val_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
            sampler = torch.utils.data.DistributedSampler(data[:5], shuffle=False)  # type: ignore[arg-type]
            return DataLoader(data[:5], batch_size=2, sampler=sampler)  # type: ignore[arg-type]

    trainer.fit(module, datamodule=Dealt())
    seen = {
        "metrics": {key: value.item() for key, value in trainer.callback_metrics.items()},
        "alerts": [
            [a.step, a.worst[0].rank, a.worst[0].sequence, a.worst[0].position, a.worst[0].sample_id] for a in alerts
        ],
        "losses": [
            [
                float(loss)
                for loss in torch.nn.functional.cross_entropy(lo.flatten(0, 1), la.flatten(), reduction="none")[
                    la.flatten() != -100
                ]
            ]
            for lo, la in module.seen
        ],
    }
    (root / f"rank{trainer.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    sys.exit(any(launch(main, 2, Path(sys.argv[1]))))
