"""Run by ``test_actions``: two DDP ranks, two checkpoints of which rank 0 cannot write one, and the batch of rank 1."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import pplmon
from tests.launch import launch
from tests.models import make_module, rows

BAD_ROW = 13  # dealt to rank 1 as its 7th row: step 3, row 0 with batches of 2


class Dealt(pl.LightningDataModule):
    """Rows by turns."""

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        data = rows(24)
        for index, item in enumerate(data):
            item["labels"][item["labels"] == 5] = 6
            if index == BAD_ROW:
                item["labels"][15] = 5
        return DataLoader(data[self.trainer.global_rank :: 2], batch_size=2)  # type: ignore[arg-type]


def main(root: Path) -> None:
    """Fit, and write what this rank saw to ``rank{r}.json``."""
    (root / "file").touch()
    module = make_module(pl.LightningModule)
    module.head.bias.data[5] = -50.0
    actions = [
        pplmon.Checkpoint(root / "file" / "is no directory"),
        pplmon.Checkpoint(root / "good"),
        pplmon.SaveBatch(root / "batches"),
    ]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        callbacks=[pplmon.PerplexityMonitor(alerts=[pplmon.Above("max_token_loss", 40.0)], on_alert=actions)],
        logger=False,
        default_root_dir=root,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=Dealt())
    seen = {
        "steps": trainer.global_step,
        "weights": sum(parameter.sum().item() for parameter in module.parameters()),
        "warnings": " ".join(str(w.message) for w in caught),
    }
    (root / f"rank{trainer.global_rank}.json").write_text(json.dumps(seen))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(
        max(abs(code or 0) if code is not None else 1 for code in launch(main, 2, Path(sys.argv[1]))) and os.EX_SOFTWARE
    )
