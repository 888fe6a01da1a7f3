"""Alerts by a logger's own backend: W&B online against a stand-in for its server, and whatever else has ``alert``."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import wandb

import pplmon
from pplmon.alerts.text import Table
from pplmon.trainers.lightning.logger import LightningLogger
from tests.models import loader, make_module
from tests.wandb_server import wandb_server

pl = pytest.importorskip("pytorch_lightning")
ALERT = pplmon.Alert("Spike" * 20, "step 7: jumped", "cross_entropy", 7, severity="critical")


def test_an_online_run_receives_the_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a Trainer with a WandbLogger: title within 64 characters, level by severity, no minute of silence."""
    rule = pplmon.Above("max_token_loss", 40.0)
    monkeypatch.setattr(type(rule), "severity", "critical")
    # Tables travel as artifacts, for which the stand-in has no answers.
    for table in ("token_table", "sequence_table"):
        monkeypatch.setattr(f"pplmon.sinks.wandb.{table}", lambda rows: Table([], []))
    module = make_module(pl.LightningModule, lr=0.0)
    module.head.bias.data[5] = -50.0
    data = loader(16, ignored=False)
    for index, item in enumerate(data.dataset):  # type: ignore[arg-type]
        item["labels"][item["labels"] == 5] = 6
        if index == 9:
            item["labels"][7] = 5
    with wandb_server() as server:
        for name, value in (
            ("BASE_URL", server.url), ("API_KEY", "0" * 40), ("MODE", "online"), ("SILENT", "true"), ("DIR", str(tmp_path)),
        ):  # fmt: skip
            monkeypatch.setenv(f"WANDB_{name}", value)
        wandb.teardown()  # it remembers the settings of the first run in the process
        trainer = pl.Trainer(
            accelerator="cpu",
            callbacks=[pplmon.PerplexityMonitor(alerts=[rule])],
            logger=pl.loggers.WandbLogger(save_dir=tmp_path, project="p"),
            max_epochs=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            log_every_n_steps=2,
        )
        trainer.fit(module, data)
        until = time.monotonic() + 10
        while not server.alerts and time.monotonic() < until:
            time.sleep(0.02)
        wandb.finish()
        wandb.teardown()
    (alert,) = server.alerts
    assert alert["title"] == "Above: train/max_token_loss" and len(alert["title"]) <= 64
    assert (alert["severity"], alert["projectName"], alert["waitDuration"]) == ("ERROR", "p", 1)
    assert "step 2: train/max_token_loss is" in alert["text"]
    assert any("train/perplexity" in row for row in server.history)


class Level(Enum):
    """As trackio's: names as W&B's, values of its own."""

    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class Trackio:
    """An experiment with trackio's ``alert``."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def alert(
        self,
        title: str,
        text: str | None = None,
        level: Level = Level.WARN,
        step: int | None = None,
        webhook_url: str = "",
    ) -> None:
        self.heard.append((title, text, level, step))


class Plain:
    """An experiment that takes three words, the level as W&B's text."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def alert(self, title: str, text: str, level: str) -> None:
        self.heard.append((title, text, level))


class Logger:
    """A logger of the user's own."""

    def __init__(self, experiment: Any) -> None:
        self.experiment = experiment


def test_any_logger_whose_experiment_has_alert_gets_it() -> None:
    trackio, plain = Trackio(), Plain()
    for experiment in (trackio, plain, object(), None):
        LightningLogger(Logger(experiment)).alert(ALERT)
    ((title, text, level, step),) = trackio.heard
    assert (len(title), level, step) == (64, Level.ERROR, 7)
    assert text is not None and "step 7: jumped" in text
    ((_, _, name),) = plain.heard
    assert name == "ERROR"
