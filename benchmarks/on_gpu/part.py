"""One part in a process of its own: ``python -m benchmarks.on_gpu.part NAME FILE SECONDS [--dry]``."""

from __future__ import annotations

import argparse
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.on_gpu.kept import Kept
from benchmarks.on_gpu.plan import NO_DEVICE, PARTS


def about(device: torch.device) -> dict[str, Any]:
    """Return what a part ran on."""
    if device.type != "cuda":
        return machine()
    card = torch.cuda.get_device_properties(device)
    return {
        **machine(),
        "cuda": torch.version.cuda,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory_gib": round(card.total_memory / 2**30, 1),
    }


def run(name: str, kept: Kept, device: torch.device) -> None:
    """Run a part, and keep what it finds, what goes wrong, and what pplmon warns of."""
    (part,) = (part for part in PARTS if part.name == name)
    module, function = part.run.split(".")
    with warnings.catch_warnings(record=True) as said, kept.step(name):
        warnings.simplefilter("always")
        getattr(import_module(f"benchmarks.on_gpu.{module}"), function)(kept, device)
    kept.keep("warnings", sorted({text for text in (str(w.message) for w in said) if text.startswith("pplmon")}))


def main(arguments: list[str] | None = None) -> int:
    """Run the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("file", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args(arguments)
    kept = Kept(options.file, options.seconds)
    device = torch.device("cpu" if options.dry else "cuda")
    if not options.dry and not torch.cuda.is_available():
        return NO_DEVICE
    kept.keep("machine", about(device))
    run(options.name, kept, device)
    return int(bool(kept.errors))


if __name__ == "__main__":
    sys.exit(main())
