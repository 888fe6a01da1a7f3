"""Run by ``test_parallel``: FSDP2 and tensor parallel training of one tiny model on CPU ranks.

"sharded" layouts keep the head's output a DTensor cut over the vocabulary, said in the step or found by a hook.
"""

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
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils.data import DataLoader

import pplmon
from tests.launch import launch
from tests.models import VOCAB, rows


class Sharded(pl.LightningModule):
    """An embedding and a head: the head is sharded over the tensor-parallel ranks, all of it over the data-parallel."""

    def __init__(self, sharded: bool, says: bool) -> None:
        super().__init__()
        self.sharded, self.says = sharded, says
        self.seen: list[float] = []

    def configure_model(self) -> None:
        if hasattr(self, "model"):
            return
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Embedding(VOCAB, 16), nn.Linear(16, VOCAB))
        mesh = self.device_mesh
        if mesh["tensor_parallel"].size() > 1:
            whole, part = {"output_layouts": Replicate()}, {"output_layouts": Shard(-1), "use_local_output": False}
            head = ColwiseParallel(**part if self.sharded else whole)
            parallelize_module(self.model, mesh["tensor_parallel"], {"1": head})
        if mesh["data_parallel"].size() > 1:
            fully_shard(self.model, mesh=mesh["data_parallel"])

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        logits = self.model(batch["x"])
        assert isinstance(logits, DTensor) == self.sharded
        if self.says:
            pplmon.observe(self, logits, batch["labels"])
        if self.sharded:
            logits = logits.full_tensor()
        losses = F.cross_entropy(logits.view(-1, VOCAB), batch["labels"].view(-1), reduction="none")
        self.seen += losses.detach()[batch["labels"].view(-1) != -100].tolist()
        return losses.sum() / (batch["labels"] != -100).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


def fit(root: Path, data_parallel: int, tensor_parallel: int, sharded: bool, says: bool) -> None:
    """Fit, and write what this rank saw."""
    data = rows(16)
    monitor = pplmon.PerplexityMonitor() if says else pplmon.PerplexityMonitor(logits="model", targets="labels")
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
    module = Sharded(sharded, says)

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


# ranks that hold different data × ranks that share the head, whether its output stays cut, whether the step says it
LAYOUTS = {
    "2x1": (2, 1, False, True),
    "1x2": (1, 2, False, True),
    "2x2": (2, 2, False, True),
    "1x2 sharded": (1, 2, True, True),
    "2x2 sharded": (2, 2, True, False),
}

if __name__ == "__main__":
    for name, layout in LAYOUTS.items():
        where = Path(sys.argv[1]) / name
        where.mkdir()
        codes = launch(fit, layout[0] * layout[1], where, *layout)
        assert not any(codes), codes
