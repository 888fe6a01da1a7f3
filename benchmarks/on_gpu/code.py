"""``benchmarks.instructions`` with the Triton that is here: the instructions in the kernel's loop."""

from __future__ import annotations

import torch

from benchmarks.instructions import NAMES, row
from benchmarks.on_gpu.kept import Kept

COLUMNS = (
    "dtype",
    "entropy",
    "per_logit",
    "budget",
    "exp2_per_logit",
    "bytes_per_load",
    "registers",
    "barriers_and_shuffles",
)


def run(kept: Kept, device: torch.device) -> None:
    """Count the instructions of every variant."""
    rows = []
    for dtype in NAMES if device.type == "cuda" else (torch.bfloat16,):
        for entropy in (False, True):
            with kept.step(f"{dtype}, entropy = {entropy}"):
                rows.append(row(dtype, entropy))
            kept.keep("rows", rows)
    lines = [[f"{r[name]:.2f}" if isinstance(r[name], float) else r[name] for name in COLUMNS] for r in rows]
    kept.table("Machine instructions of the loop, for sm_90", COLUMNS, lines)
