"""Compiles, while other parts run, the Triton and PyTorch programs that later parts time. Times nothing."""

from __future__ import annotations

import torch

from benchmarks.measure import batch, once
from benchmarks.on_gpu import speed, tuning
from benchmarks.on_gpu.kept import Kept


def run(kept: Kept, device: torch.device) -> None:
    """Compile; a way that cannot be compiled says why in the part that times it."""
    done: list[str] = []
    for name, call in {**tuning.calls(device), **tuning.counting_calls(device)}.items():
        with kept.step(name):
            call()
            done.append(name)
            kept.keep("compiled", done)
    for tokens, vocab, dtype in speed.cells(device) if device.type == "cuda" else ():  # a CPU's compiler takes a minute
        with kept.step(f"V = {vocab}, {dtype}"):
            logits, targets = batch(tokens, vocab, dtype, device)
            torch._dynamo.reset()
            for name in speed.COMPILED:
                once(name, logits, targets, 0.0)
            done.append(f"V = {vocab}, {dtype}")
            kept.keep("compiled", done)
