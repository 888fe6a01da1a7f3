"""Callbacks and schedulers that watch a number of a training window find it whenever they look, in a real ``Trainer``."""

from __future__ import annotations

import csv
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import pplmon
from tests.models import loader, make_module, reference
from tests.test_lightning import trainer_for, windows

pl = pytest.importorskip("pytorch_lightning")
KEY = "train/cross_entropy"


class Looks(pl.Callback):  # type: ignore[misc]
    """Notes the key's value as a callback finds it, by hook and step."""

    def __init__(self, key: str = KEY) -> None:
        self.key, self.found = key, {}  # type: ignore[var-annotated]

    def _look(self, hook: str, trainer: Any) -> None:
        value = trainer.callback_metrics.get(self.key)
        self.found[hook, trainer.global_step] = None if value is None else value.item()

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._look("step", trainer)

    def on_validation_end(self, trainer: Any, *args: Any) -> None:
        self._look("val", trainer)

    def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
        self._look("epoch", trainer)


def mean(module: Any, first: int, last: int) -> Any:
    """The float64 cross-entropy of the steps first to last, from 1."""
    return pytest.approx(reference(module.seen[first - 1 : last])["cross_entropy"], rel=1e-6)


@pytest.mark.parametrize("judge", [1, 3], ids=["judged every step", "judged every third"])
def test_a_watched_number_is_there_before_its_window_closes(tmp_path: Path, judge: int) -> None:
    """Epochs of 6 steps, windows of 50: a stop, a checkpoint every 4 steps and the epoch's end find the window so far."""
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "c", monitor=KEY, every_n_train_steps=4, save_top_k=-1)
    looks = Looks()
    trainer = trainer_for(
        tmp_path,
        pplmon.PerplexityMonitor(every_n_steps=50, judge_every_n_steps=judge, alerts=[]),
        looks,
        pl.callbacks.EarlyStopping(KEY, patience=50),
        saver,
        max_epochs=2,
        enable_checkpointing=True,
    )
    module = make_module(pl.LightningModule)
    module.keep = True
    trainer.fit(module, loader(24), loader(8, seed=1))
    assert trainer.global_step == 12
    assert looks.found["step", 1] == mean(module, 1, 1)  # from the first step on
    for at in (("step", 4), ("val", 6), ("epoch", 6), ("step", 8), ("epoch", 12)):
        assert looks.found[at] == mean(module, 1, at[1]), at
    scores = {int(path.split("step=")[1][:-5]): score.item() for path, score in saver.best_k_models.items()}
    assert scores == {4: mean(module, 1, 4), 8: mean(module, 1, 8), 12: mean(module, 1, 12)}
    assert [window["step"] for window in windows(tmp_path)] == [11]  # nothing more is logged for it


def test_a_window_that_closed_is_replaced_by_the_next_as_far_as_it_is(tmp_path: Path) -> None:
    """With windows of 4 in epochs of 6 the epoch's end finds steps 5 and 6; between looks the last window stays."""
    looks = Looks()
    trainer = trainer_for(
        tmp_path,
        pplmon.PerplexityMonitor(every_n_steps=4, alerts=[]),
        looks,
        pl.callbacks.EarlyStopping(KEY, patience=50),
        max_epochs=2,
    )
    module = make_module(pl.LightningModule)
    module.keep = True
    trainer.fit(module, loader(24))
    expected = {
        ("step", 4): (1, 4),
        ("step", 5): (1, 4),
        ("epoch", 6): (5, 6),
        ("step", 8): (5, 8),
        ("epoch", 12): (9, 12),
    }
    for at, (first, last) in expected.items():
        assert looks.found[at] == mean(module, first, last), at


@pytest.mark.parametrize(("interval", "frequency"), [("epoch", 1), ("step", 4)])
def test_a_scheduler_on_a_watched_number(tmp_path: Path, interval: str, frequency: int) -> None:
    """``ReduceLROnPlateau`` takes it at the end of an epoch, or every few steps: what it keeps is the float64 number."""
    module = make_module(pl.LightningModule)
    module.keep = True
    best: list[float] = []

    class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics: Any, *args: Any) -> None:
            best.append(float(metrics))
            super().step(metrics, *args)

    def configure(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 1e-2)
        plan = {"scheduler": Plateau(optimizer), "monitor": KEY, "interval": interval, "frequency": frequency}
        return {"optimizer": optimizer, "lr_scheduler": plan}

    module.configure_optimizers = types.MethodType(configure, module)
    trainer_for(tmp_path, pplmon.PerplexityMonitor(alerts=[]), max_epochs=2).fit(module, loader(24))
    # Lightning counts a scheduler's steps anew in each epoch.
    ends = [6, 12] if interval == "epoch" else [4, 10]
    assert best == [mean(module, 1, end) for end in ends]


def test_a_watched_key_that_the_module_logs_itself(tmp_path: Path) -> None:
    """Ours has another key then, which can be watched the same."""
    module = make_module(pl.LightningModule)
    module.keep = True
    module.on_train_batch_start = lambda batch, index: module.log(KEY, 1.0)
    looks = Looks(f"pplmon/{KEY}")
    stop = pl.callbacks.EarlyStopping(f"pplmon/{KEY}", patience=50, check_on_train_epoch_end=True)
    with pytest.warns(UserWarning, match="logs 'train/cross_entropy' itself"):
        trainer_for(tmp_path, pplmon.PerplexityMonitor(alerts=[]), looks, stop, max_epochs=2).fit(module, loader(24))
    assert looks.found["epoch", 6] == mean(module, 1, 6)


def test_nothing_is_waited_for_where_nobody_watches(tmp_path: Path) -> None:
    """Without a watcher the numbers come with their window, not before."""
    looks = Looks()
    stop = pl.callbacks.EarlyStopping("train/cross_entropy_epoch", patience=50)
    trainer_for(tmp_path, pplmon.PerplexityMonitor(alerts=[]), looks, stop, max_epochs=2).fit(
        make_module(pl.LightningModule), loader(24)
    )
    assert set(looks.found.values()) == {None}


@pytest.mark.parametrize("judge", [1, 5])
def test_passes_say_how_many_tokens_the_run_had_trained_on(tmp_path: Path, judge: int) -> None:
    """``tokens_seen`` is an x axis in every stage: in a row of val it is that of the window that ends there."""
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    monitor = pplmon.PerplexityMonitor(every_n_steps=3, judge_every_n_steps=judge, alerts=[])
    trainer = trainer_for(tmp_path, monitor, logger=logger, max_epochs=2, val_check_interval=3)
    trainer.fit(make_module(pl.LightningModule), loader(24, ignored=False), loader(8, seed=1))
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    seen = {
        stage: [float(r[f"{stage}/tokens_seen"]) for r in rows if r.get(f"{stage}/tokens_seen")]
        for stage in ("train", "val")
    }
    assert seen["train"] == seen["val"] == [240.0, 480.0, 720.0, 960.0]
    trainer.test(trainer.lightning_module, loader(8, seed=1), verbose=False)
    assert trainer.callback_metrics["test/tokens_seen"].item() == 960


def test_a_pass_without_training_has_no_count_of_it(tmp_path: Path) -> None:
    """0 would be a point at the left end of a chart."""
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(alerts=[]))
    trainer.validate(make_module(pl.LightningModule), loader(8, seed=1), verbose=False)
    assert "val/perplexity" in trainer.callback_metrics and "val/tokens_seen" not in trainer.callback_metrics
