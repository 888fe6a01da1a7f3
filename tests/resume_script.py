"""Run by ``test_resume``: a run that is stopped on some ranks and resumed on others, beside one that is not stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import pplmon
from tests.launch import launch
from tests.models import VOCAB, rows

EVERY, SAVE_AT, STOP_AT, EPOCHS = 6, 21, 24, 2  # windows of steps 18–23: saved after step 20, stopped after step 23
ROWS, BATCH = 64, 4  # of all ranks together: 16 steps an epoch


class Resumable(DataLoader):  # type: ignore[type-arg]
    """A loader that goes on in the middle of an epoch, as Lightning lets a stateful one."""

    at = 0

    def __iter__(self) -> Iterator[Any]:
        begin = self.at % len(self)
        for index, batch in enumerate(super().__iter__()):
            if index >= begin:
                self.at = index + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class Table(pl.LightningModule):
    """A table of logits: the same bits however a batch is dealt to ranks. It learns only where ``lr`` is not 0."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.lr = nn.Embedding(VOCAB, VOCAB), lr

    def _step(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.table(batch["x"])
        pplmon.observe(self, logits, batch["labels"])
        return F.cross_entropy(logits.view(-1, VOCAB), batch["labels"].view(-1))

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self._step(batch)

    def validation_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self._step(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)


class Data(pl.LightningDataModule):
    """Deals each global batch over the ranks in turn."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks = ranks

    def _loader(self, seed: int) -> Resumable:
        rank = 0 if self.trainer is None else self.trainer.global_rank
        return Resumable(rows(ROWS, seed)[rank :: self.ranks], batch_size=BATCH // self.ranks)  # type: ignore[arg-type]

    def train_dataloader(self) -> Resumable:
        return self._loader(0)

    def val_dataloader(self) -> Resumable:
        return self._loader(1)


def rules() -> list[pplmon.Rule]:
    """One that fires at once and stays beyond, one that comes and goes, one with a baseline."""
    spike = pplmon.Spike("max_token_loss", window=4, gap=1, quiet_steps=3, limit=1.0, leak=0.1)
    return [pplmon.Above("cross_entropy", 1.0), pplmon.Above("max_token_loss", 6.0), spike]


def fit(root: Path, loggers: Any = None, lr: float = 0.0, stop: bool = False, resume: bool = False, **more: Any) -> Any:
    """Fit with a fresh trainer and callback; returns the callback's state at the end."""
    ranks, others = more.pop("ranks", 1), more.pop("callbacks", ())
    monitor = pplmon.PerplexityMonitor(every_n_steps=EVERY, alerts=rules())
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_epochs=EPOCHS,
        max_steps=STOP_AT if stop else -1,
        callbacks=[monitor, pl.callbacks.ModelCheckpoint(root, filename="saved", every_n_train_steps=SAVE_AT), *others],
        logger=loggers or pl.loggers.CSVLogger(root, name="run", version=0),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **more,
    )
    trainer.fit(Table(lr), datamodule=Data(ranks), ckpt_path=root / "saved.ckpt" if resume else None)
    state = monitor.state_dict()["monitor"]
    if trainer.is_global_zero:
        (root / "state.json").write_text(json.dumps(state))
    return state


def part(root: Path, ranks: int, stop: bool, resume: bool) -> None:
    """One fit, on one rank of ``ranks``."""
    fit(root, ranks=ranks, stop=stop, resume=resume)


def main(root: Path) -> None:
    """Saved on two ranks and resumed on one, and the other way."""
    for name, plan in {"straight": [1], "two_to_one": [2, 1], "one_to_two": [1, 2]}.items():
        (root / name).mkdir()
        for index, ranks in enumerate(plan):
            codes = launch(part, ranks, root / name, ranks, index < len(plan) - 1, index > 0)
            assert not any(codes), (name, codes)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
