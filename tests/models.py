"""Small modules and data that the Lightning tests share. V = 32, T = 20."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

VOCAB, LENGTH = 32, 20


def rows(count: int = 64, seed: int = 0, ignored: bool = True) -> list[dict[str, Tensor]]:
    """Random ids with targets shifted beforehand; some targets are ignored, so that batches differ in token counts."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (count, LENGTH + 1), generator=generator)
    data = [{"x": row[:-1], "labels": row[1:].clone(), "sample_ids": torch.tensor(i)} for i, row in enumerate(ids)]
    if ignored:
        for i, item in enumerate(data):
            item["labels"][: i % 7] = -100
    return data


def loader(count: int = 64, batch_size: int = 4, seed: int = 0, ignored: bool = True, **kwargs: Any) -> DataLoader[Any]:
    """Batches of ``rows``."""
    return DataLoader(rows(count, seed, ignored), batch_size=batch_size, **kwargs)  # type: ignore[arg-type]


def make_module(base: type, source: str = "observe", lr: float = 1e-2) -> Any:
    """Return a tiny language model as a ``LightningModule`` of either package."""

    class TinyLM(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Embedding(VOCAB, 16)
            self.head = nn.Linear(16, VOCAB)
            self.seen: list[tuple[Tensor, Tensor]] = []  # what a float64 recomputation needs
            self.keep = False

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

        def _step(self, batch: dict[str, Tensor]) -> Any:
            import pplmon

            logits = self(batch["x"])
            loss = F.cross_entropy(logits.view(-1, VOCAB), batch["labels"].view(-1))
            if self.keep and torch.is_grad_enabled():
                self.seen.append((logits.detach().double(), batch["labels"]))
            if source == "observe":
                pplmon.observe(self, logits, batch["labels"])
            if source == "return":
                return {"loss": loss, "logits": logits, "labels": batch["labels"]}
            return loss

        def training_step(self, batch: dict[str, Tensor], index: int) -> Any:
            return self._step(batch)

        def validation_step(self, batch: dict[str, Tensor], index: int, dataloader_idx: int = 0) -> Any:
            return self._step(batch)

        def test_step(self, batch: dict[str, Tensor], index: int, dataloader_idx: int = 0) -> Any:
            return self._step(batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr)

    return TinyLM()


def reference(seen: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Token-weighted numbers in float64 over micro-batches."""
    losses, hits = [], []
    for logits, labels in seen:
        flat, targets = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        kept = targets != -100
        losses.append(F.cross_entropy(flat, targets, reduction="none")[kept])
        hits.append((flat.argmax(-1) == targets)[kept])
    nll, hit = torch.cat(losses), torch.cat(hits)
    return {
        "cross_entropy": nll.mean().item(),
        "token_accuracy": hit.double().mean().item(),
        "max_token_loss": nll.max().item(),
        "tokens": float(nll.numel()),
    }
