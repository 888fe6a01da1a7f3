"""A step that returns nothing: it caught an out-of-memory, or had nothing to score. It says nothing about the logits."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

import pplmon
from pplmon.trainers.capture.silent_steps import PATIENCE
from tests.models import LENGTH, loader, make_module
from tests.test_lightning import override, trainer_for

pl = pytest.importorskip("pytorch_lightning")

COUNT = 32  # rows: 8 batches of 4


def skipping(source: str, skipped: set[int], step: str = "training_step") -> Any:
    """A module whose step returns ``None`` in some batches, before it has called anything."""
    module = make_module(pl.LightningModule, source)
    real = override(module, step, lambda self, batch, index: None if index in skipped else real(batch, index))
    return module


def fit(module: Any, where: Any, count: int = COUNT, **settings: Any) -> dict[str, float]:
    """Train on full rows, without a warning of ours."""
    trainer = trainer_for(where, pplmon.PerplexityMonitor(alerts=[], **settings), max_epochs=1)
    trainer.fit(module, loader(count, ignored=False))
    return {key: value.item() for key, value in trainer.callback_metrics.items()}


SETTINGS: dict[str, dict[str, Any]] = {
    "observe": {},
    "return": {},
    "none": {"logits": "head", "targets": "labels"},
    "callable": {"logits": lambda outputs, batch: outputs["logits"], "targets": "labels"},
}


@pytest.mark.parametrize("source", SETTINGS)
@pytest.mark.parametrize("skipped", [{0}, {0, 1, 2}, {0, 5}, {5}])
def test_training_goes_on_after_a_step_that_returned_nothing(source: str, skipped: set[int], tmp_path: Any) -> None:
    """In the first batch, in the first few, and later on: what the others scored is counted, each source."""
    module = skipping("return" if source == "callable" else source, skipped)
    found = fit(module, tmp_path, **SETTINGS[source])
    assert found["train/tokens_seen"] == (COUNT - 4 * len(skipped)) * LENGTH


@pytest.mark.parametrize("skipped", [set(), {0}, {0, 1}])
def test_the_first_loss_decides_that_there_are_no_logits(skipped: set[int], tmp_path: Any) -> None:
    """Training would go unwatched: an error, at the first batch whose step returned a loss."""
    seen: list[int] = []
    module = skipping("none", skipped)
    real = override(module, "training_step", lambda self, batch, index: seen.append(index) or real(batch, index))
    with pytest.raises(ValueError, match="found no logits and targets in the first train batch"):
        fit(module, tmp_path)
    assert len(seen) == len(skipped) + 1


@pytest.mark.parametrize(("count", "steps"), [(8, 2), (4 * PATIENCE + 8, PATIENCE)])
def test_a_run_that_never_returns_a_loss_is_told_that_nothing_was_found(count: int, steps: int, tmp_path: Any) -> None:
    """A module that optimizes by hand returns nothing: one warning, after a while or at the end, and training goes on."""
    module = make_module(pl.LightningModule, "none")
    module.automatic_optimization = False
    seen: list[int] = []
    told: list[int] = []
    override(module, "training_step", lambda self, batch, index: seen.append(index))

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        if "found no logits" in str(message):
            told.append(len(seen))

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(warnings, "showwarning", show)
        fit(module, tmp_path, count)
    assert told == [steps] and len(seen) == count // 4


def test_optimization_by_hand_is_watched(tmp_path: Any) -> None:
    """Its steps return nothing, and a hooked module gives all that is needed."""
    module = make_module(pl.LightningModule, "none")
    module.automatic_optimization = False

    def training_step(self: Any, batch: dict[str, Any], index: int) -> None:
        self(batch["x"])

    override(module, "training_step", training_step)
    assert fit(module, tmp_path, logits="head", targets="labels")["train/tokens_seen"] == COUNT * LENGTH


@pytest.mark.parametrize("source", ["observe", "return"])
def test_validation_warns_of_nothing_where_its_first_step_returned_nothing(source: str, tmp_path: Any) -> None:
    """What the others scored is the pass."""
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor())
    trainer.validate(skipping(source, {0}, "validation_step"), loader(COUNT, ignored=False), verbose=False)
    assert trainer.callback_metrics["val/tokens"].item() == (COUNT - 4) * LENGTH


@pytest.mark.parametrize("skipped", [{0}, set(range(8))])
def test_validation_in_which_nothing_is_found_is_told_once(skipped: set[int], tmp_path: Any) -> None:
    """At the first step that returned something, or at the end of a pass in which none did."""
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor())
    with pytest.warns(UserWarning, match="found no logits and targets in the first val batch") as told:
        trainer.validate(skipping("none", skipped, "validation_step"), loader(COUNT), verbose=False)
    assert len([w for w in told if "pplmon" in str(w.message)]) == 1
