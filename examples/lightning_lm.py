"""A language model in Lightning, watched by one callback. The module does not know of it.

Run it, and look at it:

    python examples/lightning_lm.py
    pplmon view runs/lightning_lm
"""

import argparse
from pathlib import Path
from pydoc_data.topics import topics  # English that every Python carries: nothing to download

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import pplmon
from pplmon.sinks import read_journal

CONTEXT, STEPS = 64, 160


class Windows(Dataset):
    """Windows of bytes side by side, each with its row number."""

    def __init__(self, text: bytes) -> None:
        ids = torch.tensor(list(text))
        self.rows = ids[: (len(ids) - 1) // CONTEXT * CONTEXT + 1].unfold(0, CONTEXT + 1, CONTEXT)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        ids = self.rows[row]
        # The monitor takes sample_ids from the batch: a worst token then names its row of the dataset.
        return {"input_ids": ids[:-1], "targets": ids[1:], "sample_ids": torch.tensor(row)}


class ByteModel(pl.LightningModule):
    """Predicts the next byte from the last eight."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, 32)
        self.mix = nn.Linear(8 * 32, 256)
        self.head = nn.Linear(256, 256)

    def forward(self, ids: Tensor) -> Tensor:
        last_eight = F.pad(ids, (7, 0)).unfold(1, 8, 1)
        return self.head(torch.relu(self.mix(self.bytes(last_eight).flatten(2))))

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return F.cross_entropy(self(batch["input_ids"]).flatten(0, 1), batch["targets"].flatten())

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self(batch["input_ids"])  # enough: the hook on the head sees the logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(out: Path) -> None:
    pl.seed_everything(0, verbose=False)
    torch.set_num_threads(1)  # so small a model is fastest on one
    text = "\n\n".join(topics.values()).encode()
    training = DataLoader(Windows(text[:300_000]), batch_size=16, shuffle=True)
    held_out = DataLoader(Windows(text[-30_000:]), batch_size=16)

    monitor = pplmon.PerplexityMonitor(
        logits="head",  # the submodule whose output the logits are
        targets="targets",  # the key of the batch
        decode=lambda ids: bytes(ids).decode("latin-1"),  # so that a worst token is shown in its text
    )
    # Our val keys are there when the checkpoint looks, whatever the order of the callbacks.
    checkpoint = ModelCheckpoint(out / "checkpoints", "best", monitor="val/perplexity", mode="min")
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        log_every_n_steps=20,  # also the window of our numbers
        val_check_interval=STEPS // 4,
        callbacks=[monitor, checkpoint],
        logger=TensorBoardLogger(out, name=""),
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ByteModel(), training, held_out)

    # The journal beside the event file holds every report, with its evidence.
    reports = [row for row in read_journal(trainer.log_dir) if row["kind"] == "report"]
    for row in reports:
        if row["stage"] == "val":
            print(f"step {row['step']:>3}: val/perplexity {row['numbers']['perplexity']:.2f} per byte")
    print(f"best checkpoint: {checkpoint.best_model_path} (val/perplexity {checkpoint.best_model_score:.2f})")
    worst = [row for row in reports if row["stage"] == "val"][-1]["worst"][0]
    print(
        f"the held-out byte that cost most: {worst['target_text']!r}, {worst['loss']:.1f} nats, "
        f"in row {worst['sample_id']} at position {worst['position']}: {worst['context_text']!r}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/lightning_lm"))
    main(parser.parse_args().out)
