"""A ``CombinedLoader`` that gives a batch of each loader at once: the pass is over all of them, under no loader's key."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pplmon
from tests.models import loader, make_module, reference, rows
from tests.test_lightning import override, trainer_for

pl = pytest.importorskip("pytorch_lightning")

SIZES = {"min_size": (8, 8), "max_size": (16, 8), "max_size_cycle": (16, 16), "sequential": (16, 8)}  # rows of each


def module_of(package: str) -> Any:
    """A module whose step shows both batches, each with its own mask."""
    module = make_module(importlib.import_module(package).LightningModule, "none")

    def step(self: Any, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        parts = [batch] if "labels" in batch else batch.values() if isinstance(batch, dict) else batch
        for part in parts:
            if part is not None:
                pplmon.observe(self, self(part["x"]), part["labels"])

    override(module, "validation_step", step)
    override(module, "test_step", step)
    return module


def masked(count: int, seed: int) -> list[dict[str, Tensor]]:
    """Rows of which only the second half is scored."""
    found = rows(count, seed)
    for row in found:
        row["mask"] = torch.arange(len(row["x"])) >= 10
    return found


def known(module: Any, sizes: tuple[int, int]) -> dict[str, float]:
    """The numbers in float64; a loader that is cycled gives its rows again."""
    taken = [row for seed, size in enumerate(sizes) for row in (masked((16, 8)[seed], seed) * 2)[:size]]
    with torch.no_grad():
        return reference(
            [(module(row["x"][None]).double(), row["labels"].masked_fill(~row["mask"], -100)[None]) for row in taken]
        )


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
@pytest.mark.parametrize("stage", ["val", "test"])
@pytest.mark.parametrize("mode", SIZES)
@pytest.mark.parametrize("as_dict", [True, False])
def test_a_pass_over_combined_loaders_is_over_all_of_them(
    package: str, stage: str, mode: str, as_dict: bool, tmp_path: Any
) -> None:
    """Taken in turn each has its own numbers besides; taken at once none has. Their batches' masks are found."""
    lightning = pytest.importorskip(package)
    combine = importlib.import_module(f"{package}.utilities.combined_loader").CombinedLoader
    loaders = [torch.utils.data.DataLoader(masked(n, seed), batch_size=4) for seed, n in enumerate((16, 8))]  # type: ignore[arg-type]
    module = module_of(package)
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(), package=lightning)
    evaluate = trainer.validate if stage == "val" else trainer.test
    evaluate(module, combine(dict(zip("ab", loaders)) if as_dict else loaders, mode), verbose=False)
    found = {key: value.item() for key, value in trainer.callback_metrics.items()}
    for name, value in known(module, SIZES[mode]).items():
        assert found[f"{stage}/{name}"] == pytest.approx(value, rel=1e-6), name
    each = {key.rpartition("/")[2] for key in found if "dataloader_idx" in key}
    assert each == ({"dataloader_idx_0", "dataloader_idx_1"} if mode == "sequential" else set())
    longer = (
        "rollout_match_",
        "seen_cross_entropy",
    )  # NaN where no start is so far from its end, and where no id came twice
    assert not any(math.isnan(value) for key, value in found.items() if not any(name in key for name in longer))


def test_loaders_taken_at_once_in_the_middle_of_a_fit(tmp_path: Any) -> None:
    """The pass within training likewise."""
    combine = importlib.import_module("pytorch_lightning.utilities.combined_loader").CombinedLoader
    module = make_module(pl.LightningModule)
    single = module.validation_step

    def both(self: Any, batch: list[Any], index: int) -> None:
        for part in batch:
            single(part, index)

    override(module, "validation_step", both)
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(), max_epochs=1)
    trainer.fit(module, loader(16), combine([loader(8, seed=1), loader(8, seed=2)], "max_size"))
    assert trainer.callback_metrics["val/sequences"].item() == 16
    assert not [key for key in trainer.callback_metrics if "dataloader_idx" in key]
