"""Through the trainer's real loggers, read back from their real files."""

from __future__ import annotations

import csv
import glob
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb

import pplmon
from pplmon.sinks import read_journal
from tests.models import loader, make_module, reference
from tests.wandb_run import read_run

pl = pytest.importorskip("pytorch_lightning")

BAD_STEP = 5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One short run with three loggers: a target no one expects at step 5, and validation at the end."""
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        wandb.teardown()  # it remembers the directory of the first run in the process
        module = make_module(pl.LightningModule, lr=0.0)
        module.keep = True
        module.head.bias.data[5] = -50.0
        data = loader(ignored=False)
        for index, item in enumerate(data.dataset):  # type: ignore[arg-type]
            item["labels"][item["labels"] == 5] = 6
            if index == 4 * BAD_STEP + 1:
                item["labels"][7] = 5
        loggers = [
            pl.loggers.TensorBoardLogger(root, name="tb"),
            pl.loggers.WandbLogger(save_dir=root, project="p"),
            pl.loggers.CSVLogger(root, name="csv"),
        ]
        trainer = pl.Trainer(
            accelerator="cpu",
            callbacks=[
                pplmon.PerplexityMonitor(
                    alerts=[pplmon.Above("max_token_loss", 40.0)], decode=lambda ids: "".join(chr(97 + i) for i in ids)
                )
            ],
            logger=loggers,
            max_epochs=1,
            log_every_n_steps=4,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=root,
        )
        trainer.fit(module, data, loader(8, seed=1))
        wandb.finish()
    return root, module, trainer


def expected(module: Any) -> dict[int, dict[str, float]]:
    """The float64 numbers of each window of four steps, by its last step."""
    return {4 * i + 3: reference(module.seen[4 * i : 4 * i + 4]) for i in range(4)}


def test_the_tensorboard_file_holds_the_float64_numbers_and_the_alert(run: Any) -> None:
    """Scalars within float32 (the file's own precision), the layout, and the alert's text at its step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root, module, _ = run
    board = EventAccumulator(str(next((root / "tb").iterdir())), {"scalars": 0, "tensors": 0})
    board.Reload()
    for name in ("cross_entropy", "token_accuracy", "max_token_loss"):
        found = {event.step: event.value for event in board.Scalars(f"train/{name}")}
        wanted = {step: numbers[name] for step, numbers in expected(module).items()}
        assert found == pytest.approx(wanted, rel=1e-6)
    assert [event.step for event in board.Scalars("val/perplexity")] == [15]
    (tag,) = [tag for tag in board.Tags()["tensors"] if "alert" in tag]
    (text,) = board.Tensors(tag)
    assert text.step == BAD_STEP
    assert "max_token_loss" in text.tensor_proto.string_val[0].decode().replace("\\_", "_")
    assert [(event.step, event.value) for event in board.Scalars("pplmon/alerts_total")][-1] == (15, 1)
    assert board.Scalars("train_epoch/perplexity") and "train/perplexity_epoch" not in board.Tags()["scalars"]
    assert any("custom_scalars" in tag for tag in board.Tags()["tensors"])


def test_the_wandb_file_holds_the_float64_numbers_and_the_alert(run: Any) -> None:
    """Rows on trainer/global_step, one run only, plain best values in the summary, the alert with its step."""
    root, module, trainer = run
    (path,) = glob.glob(str(root / "wandb" / "offline-run-*" / "*.wandb"))
    found = read_run(Path(path))
    rows = {row["trainer/global_step"]: row for row in found.history if "train/cross_entropy" in row}
    for step, numbers in expected(module).items():
        for name in ("cross_entropy", "token_accuracy", "max_token_loss"):
            assert rows[step][f"train/{name}"] == pytest.approx(numbers[name], abs=1e-6)
    assert found.summary["val/perplexity_min"] == trainer.callback_metrics["val/perplexity"].item()
    assert (found.summary["pplmon/alerts_total"], found.summary["pplmon/worst_step"]) == (1, BAD_STEP)
    assert found.config["pplmon"]["alerts"] and not [
        k for k, v in found.summary.items() if isinstance(v, dict) and k != "_wandb"
    ]
    (alert,) = found.alerts
    assert f"step {BAD_STEP}" in alert.text
    assert len(alert.title) <= 64


def test_any_other_logger_gets_the_scalars(run: Any) -> None:
    """CSV stands for the rest."""
    root, module, _ = run
    with open(next((root / "csv").rglob("metrics.csv"))) as file:
        lines = [line for line in csv.DictReader(file) if line["train/cross_entropy"]]
    assert lines[-1]["pplmon/alerts_total"] == "1"
    assert {int(line["step"]): float(line["train/cross_entropy"]) for line in lines} == pytest.approx(
        {step: numbers["cross_entropy"] for step, numbers in expected(module).items()}, abs=1e-6
    )


def test_the_journal_beside_the_first_logger_has_the_alert_with_text(run: Any) -> None:
    """Step, dataset row and the text around the token."""
    root, _, _ = run
    (path,) = root.rglob("pplmon.jsonl")
    (alert,) = [line for line in read_journal(path) if line["kind"] == "alert"]
    worst = alert["worst"][0]
    assert (alert["step"], worst["sample_id"], worst["position"]) == (BAD_STEP, 4 * BAD_STEP + 1, 7)
    assert worst["target_text"] == "f" and "f" in worst["context_text"]
    assert torch.isfinite(torch.tensor(alert["value"]))
