"""Run by ``test_parallel``: FSDP2 and tensor parallel training of one tiny model on CPU ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed._composable.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils.data import DataLoader

import pplmon
from tests.launch import launch
from tests.models import VOCAB, rows


class Sharded(pl.LightningModule):
    """An embedding and a head: the head is sharded over the tensor-parallel ranks, all of it over the data-parallel."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def configure_model(self) -> None:
        if hasattr(self, "model"):
            return
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Embedding(VOCAB, 16), nn.Linear(16, VOCAB))
        mesh = self.device_mesh
        if mesh["tensor_parallel"].size() > 1:
            parallelize_module(self.model, mesh["tensor_parallel"], {"1": ColwiseParallel(output_layouts=Replicate())})
        if mesh["data_parallel"].size() > 1:
            fully_shard(self.model, mesh=mesh["data_parallel"])

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        logits = self.model(batch["x"])
        pplmon.observe(self, logits, batch["labels"])
        losses = F.cross_entropy(logits.view(-1, VOCAB), batch["labels"].view(-1), reduction="none")
        self.seen += losses.detach()[batch["labels"].view(-1) != -100].tolist()
        return losses.sum() / (batch["labels"] != -100).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


def fit(root: Path, data_parallel: int, tensor_parallel: int) -> None:
    """Fit, and write what this rank saw."""
    data = rows(16)
    monitor = pplmon.PerplexityMonitor()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=data_parallel * tensor_parallel,
        strategy=ModelParallelStrategy(data_parallel_size=data_parallel, tensor_parallel_size=tensor_parallel),
        max_epochs=1,
        log_every_n_steps=2,
        callbacks=[monitor],
        logger=pl.loggers.CSVLogger(root, name="csv", version=0),
        default_root_dir=root,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    module = Sharded()

    class Dealt(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
            mine = trainer.strategy.device_mesh["data_parallel"].get_local_rank()
            return DataLoader(data[mine::data_parallel], batch_size=2)  # type: ignore[arg-type]

    trainer.fit(module, datamodule=Dealt())
    mesh = trainer.strategy.device_mesh
    seen = {
        "metrics": {key: value.item() for key, value in trainer.callback_metrics.items()},
        "losses": module.seen,
        "data_rank": mesh["data_parallel"].get_local_rank(),
        "tensor_rank": mesh["tensor_parallel"].get_local_rank(),
    }
    (root / f"rank{trainer.global_rank}.json").write_text(json.dumps(seen))


LAYOUTS = ((2, 1), (1, 2), (2, 2))  # ranks that hold different data × ranks that share the head

if __name__ == "__main__":
    for data_parallel, tensor_parallel in LAYOUTS:
        where = Path(sys.argv[1]) / f"{data_parallel}x{tensor_parallel}"
        where.mkdir()
        codes = launch(fit, data_parallel * tensor_parallel, where, data_parallel, tensor_parallel)
        assert not any(codes), codes
