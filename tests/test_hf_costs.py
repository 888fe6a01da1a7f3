"""What watching a Hugging Face ``Trainer`` costs: as many operators as under Lightning, and no wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import pplmon

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pl = pytest.importorskip("pytorch_lightning")

from tests.hf_kit import build, collate, rows, trainer  # noqa: E402
from tests.test_laws import Watch, as_on_a_device, watched  # noqa: E402, F401

SHORT, LONG = 10, 14  # steps: what is done for the first few batches only is in both


def hugging_face(where: Path, steps: int, ours: bool) -> Watch:
    """Train by the Trainer."""
    made = trainer(
        where, train_dataset=rows(2 * LONG), gradient_accumulation_steps=1, max_steps=steps, logging_steps=1000,
        logging_nan_inf_filter=False,
    )  # fmt: skip
    if ours:
        pplmon.watch(made)
    return watched(made.train)


class Module(pl.LightningModule):
    """The same model under Lightning."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build()

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> Any:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters())


def lightning(where: Path, steps: int, ours: bool) -> Watch:
    """Train by Lightning."""
    made = pl.Trainer(
        accelerator="cpu", max_steps=steps, log_every_n_steps=1000, callbacks=[pplmon.PerplexityMonitor()] if ours else [],
        default_root_dir=where, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    loader = DataLoader(rows(2 * LONG), batch_size=2, collate_fn=collate)  # type: ignore[arg-type]
    return watched(lambda: made.fit(Module(), loader))


def per_step(run: Callable[[Path, int, bool], Watch], where: Path) -> tuple[float, float]:
    """The operators and the waits that pplmon adds to one step."""
    runs = {
        (steps, ours): run(where / f"{steps}{ours}", steps, ours) for steps in (SHORT, LONG) for ours in (False, True)
    }

    def added(count: Callable[[Watch], int]) -> float:
        longer, shorter = (count(runs[steps, True]) - count(runs[steps, False]) for steps in (LONG, SHORT))
        return (longer - shorter) / (LONG - SHORT)

    return added(lambda watch: sum(watch.count.values())), added(lambda watch: len(watch.waits))


@pytest.mark.usefixtures("as_on_a_device")
def test_a_step_costs_what_it_costs_under_lightning(tmp_path: Path) -> None:
    """Nothing waits, and no operator comes on top."""
    operators, waits = per_step(hugging_face, tmp_path / "hf")
    under_lightning = per_step(lightning, tmp_path / "pl")
    assert waits == under_lightning[1] == 0
    assert 20 < operators <= under_lightning[0]
