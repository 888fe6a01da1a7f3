"""The demo's model: a plain pre-norm transformer over bytes, 0.8 M parameters. See ``training_step`` for pplmon."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn

import pplmon
from pplmon.demo.text import CONTEXT, Sequences

VOCABULARY = 256  # bytes
WIDTH = 128
HEADS = 4
HEAD_WIDTH = WIDTH // HEADS
LAYERS = 4
PEAK_RATE = 3e-3


class ByteModel(LightningModule):
    """Predicts the next byte. ``steps``: optimizer steps of the run, over which the learning rate falls."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.bytes = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Embedding, nn.Linear)):
                nn.init.normal_(
                    module.weight, std=0.02
                )  # so small that the first guess is uniform: ln 256 = 5.545 nats

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits [B, T, V] for ids [B, T]."""
        logits: Tensor = self.head(self.norm(self.blocks(self.bytes(ids))))
        return logits

    def training_step(self, batch: Sequences, batch_idx: int) -> Tensor:
        """Return the loss. The line in the middle is all that pplmon needs from a module."""
        logits = self(batch["input_ids"])
        pplmon.observe(self, logits, batch["targets"])
        return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())

    def validation_step(self, batch: Sequences, batch_idx: int) -> None:
        """Show the held-out batch to pplmon, which makes val/perplexity of it."""
        pplmon.observe(self, self(batch["input_ids"]), batch["targets"])

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """AdamW, with a warm-up of a tenth of the steps and then a cosine."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, self.steps + 1, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Block(nn.Module):
    """Causal self-attention, then a feed-forward layer, each added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.register_buffer(
            "angles", torch.outer(torch.arange(CONTEXT), 1e4 ** -torch.linspace(0, 1, HEAD_WIDTH // 2))
        )
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, T, WIDTH] for [B, T, WIDTH]."""
        x = x + self._attend(self.norms[0](x))
        return x + self.feed(self.norms[1](x))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)  # [B, HEADS, T, D]
        mixed = F.scaled_dot_product_attention(self._rotate(query), self._rotate(key), value, is_causal=True)
        return self.mix(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _rotate(self, x: Tensor) -> Tensor:
        """Rotate pairs of features by an angle that grows with the position: attention then sees distances."""
        angles: Tensor = self.angles[: x.shape[-2]]  # type: ignore[index]
        cos, sin = angles.cos(), angles.sin()
        left, right = x.chunk(2, dim=-1)
        return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)
