"""Run by ``test_pages_ranks``: the loops of the pages, as they stand there, on one rank or two."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers  # noqa: F401 - the ranks are forked off this process, and find it loaded
from torch.nn.functional import cross_entropy

import pplmon
from tests.launch import ROOT, launch

PAGES = ("plain-loop", "fabric", "accelerate")


def block(page: str) -> str:
    """The first program of a page."""
    found = re.search(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert found
    return found[1]


def true(names: dict[str, Any]) -> tuple[float, int]:
    """Σ nll in float64 and the tokens of a page's held-out rows, each once, by its model as it is in the end."""
    model = names["model"]
    model = getattr(model, "module", model).double()
    with torch.no_grad():
        if "ids" in names:
            held_out = names["held_out"].flatten(0, 1)
            logits, targets = model(held_out[:, :-1], held_out[:, 1:])[0], held_out[:, 1:]
        else:
            logits, targets = model(input_ids=names["held_out"]).logits[:, :-1], names["held_out"][:, 1:]
    return cross_entropy(logits.flatten(0, 1), targets.flatten()).item(), targets.numel()


def goes_on(names: dict[str, Any]) -> bool:
    """Tell whether accelerate saves and restores a monitor."""
    accelerator = names["accelerator"]
    before, after = pplmon.Monitor(every_n_steps=2), pplmon.Monitor(every_n_steps=2)
    logits = torch.randn(2, 5, 7)
    before.observe(logits, torch.zeros(2, 5, dtype=torch.int64))
    before.step()
    accelerator.register_for_checkpointing(before)
    accelerator.save_state("state")
    before.close()
    accelerator._custom_objects[0] = after
    accelerator.load_state("state")
    after.observe(logits, torch.zeros(2, 5, dtype=torch.int64))
    after.step()
    report = after.close()
    return report is not None and report.tokens == 20 * accelerator.num_processes


def run(where: Path, ranks: int) -> None:
    """Run each page in a folder of its own; what it found, and what is true, is in ``{page}.{rank}.json``."""
    for page in PAGES:
        folder = where / page
        folder.mkdir(exist_ok=True)
        os.chdir(folder)
        names: dict[str, Any] = {}
        exec(compile(block(page), page, "exec"), names)
        report = names["val"].report
        found = {
            "val": [report.cross_entropy, report.tokens],
            "true": true(names),
            "duplicates": report.numbers.get("duplicate_sequences"),
            "goes_on": goes_on(names) if page == "accelerate" else None,
        }
        (where / f"{page}.{names['monitor'].rank}.json").write_text(json.dumps(found))
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    size = int(sys.argv[2])
    if size > 1:  # as `Fabric(devices=2)` and `accelerate launch` say it
        os.environ |= {
            "LT_DEVICES": str(size),
            "LT_STRATEGY": "ddp",
            "LT_ACCELERATOR": "cpu",
            "ACCELERATE_USE_CPU": "1",
        }
    print(launch(run, size, Path(sys.argv[1]), size))
