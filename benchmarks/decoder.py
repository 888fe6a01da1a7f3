"""A decoder of the usual shape in a few lines of torch.nn, for benchmarks: weights are random, nothing is downloaded."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Shape(NamedTuple):
    """Width, layers and heads of a model, and the vocabulary that models of its size have."""

    width: int
    layers: int
    heads: int
    vocab: int


# Named by their size: parameters of the blocks, 12·width² each, and of one matrix of width × vocab for embedding and head.
SIZES = {
    "1m": Shape(128, 4, 4, 1024),
    "10m": Shape(256, 8, 4, 16_384),
    "100m": Shape(768, 10, 12, 50_257),
    "1.5b": Shape(1536, 44, 12, 152_064),
    "8b": Shape(4096, 37, 32, 128_256),
}


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Decoder(nn.Module):
    """Token ids [B, T] to logits [B, T, V]; the head is the embedding."""

    def __init__(self, shape: Shape, checkpointed: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.checkpointed = checkpointed

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return F.linear(self.norm(x), self.embedding.weight)


def parameters(model: nn.Module) -> int:
    """Return how many numbers are trained."""
    return sum(weight.numel() for weight in model.parameters())


def build(shape: Shape, device: torch.device, dtype: torch.dtype, checkpointed: bool) -> Decoder:
    """Make the model where and in what it trains, without a float32 copy of it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return Decoder(shape, checkpointed)
    finally:
        torch.set_default_dtype(before)
