"""The directories that a run's files go to, under real loggers, and what is said of them at the start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb

import pplmon
from tests.models import loader, make_module
from tests.test_lightning import trainer_for

pl = pytest.importorskip("pytorch_lightning")


class NoDirectory(pl.loggers.logger.Logger):  # type: ignore[misc]
    """A logger of a server, which has no directory here."""

    name, version = "served", 0

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.mark.parametrize(
    "logger",
    [
        lambda: False,
        NoDirectory,
        lambda: pl.loggers.WandbLogger(project="p", mode="disabled"),
        lambda: [NoDirectory(), pl.loggers.CSVLogger("elsewhere")],
    ],
    ids=["no logger", "without a directory", "W&B disabled", "of several, the first without"],
)
def test_files_go_to_the_trainers_directory_where_the_logger_has_none(
    logger: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Journal and saved batches: not to the working directory, nor to one that goes away; the paths are said, once."""
    work, root = tmp_path / "work", tmp_path / "root"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monitor = pplmon.PerplexityMonitor(alerts=[pplmon.Above("max_token_loss", 0.1)], on_alert=pplmon.SaveBatch())
    try:
        trainer_for(root, monitor, logger=logger(), max_epochs=1, log_every_n_steps=4).fit(
            make_module(pl.LightningModule), loader(16)
        )
    finally:
        wandb.finish()
        wandb.teardown()
    assert not [path for path in work.rglob("*") if "pplmon" in path.name or path.suffix == ".pt"]
    assert (root / "pplmon.jsonl").is_file() and [*(root / "alerts").glob("*.pt")]
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pplmon: writes")]
    assert said == f"pplmon: writes {root / 'pplmon.jsonl'}, {root / 'alerts'}"


def test_a_plain_loops_files_are_said_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every place that a sink of ours opens."""
    sinks = [pplmon.sinks.Journal("a"), pplmon.sinks.TensorBoard("b"), pplmon.sinks.Console()]
    monkeypatch.chdir(tmp_path)
    monitor = pplmon.Monitor(sinks=sinks, alerts=[])
    with monitor.stage("val"):
        pass
    monitor.close()
    assert f"pplmon: writes {tmp_path / 'a' / 'pplmon.jsonl'}, {tmp_path / 'b'}" in capsys.readouterr().out
