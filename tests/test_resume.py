"""A run that was stopped and resumed, on any number of ranks, reports bit for bit what a run never stopped reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pplmon.sinks import read_journal
from tests.launch import run_script

pl = pytest.importorskip("pytorch_lightning")
from tests import resume_script as script  # noqa: E402 - it needs Lightning


def rows_of(where: Path) -> list[dict[str, Any]]:
    """The journal of a run."""
    (path,) = where.rglob("pplmon.jsonl")
    return read_journal(path)


def numbers(where: Path) -> dict[tuple[str, int], Any]:
    """All numbers and worst losses of each report, by stage and step."""
    return {
        (row["stage"], row["step"]): (
            row["numbers"],
            [w["loss"] for w in row["worst"]],
            [s["loss"] for s in row["worst_sequences"]],
        )
        for row in rows_of(where)
        if row["kind"] == "report"
    }


def alerts(where: Path) -> list[tuple[Any, ...]]:
    """What was raised, in order."""
    return [(row["rule"], row["metric"], row["step"], row["value"]) for row in rows_of(where) if row["kind"] == "alert"]


def assert_alike(straight: Path, resumed: Path) -> None:
    """Everything that the run never stopped has is in the other's journal, bit-identical."""
    expected, found = numbers(straight), numbers(resumed)
    assert len([key for key in expected if key[0] == "train"]) == 6
    # The one that was stopped ended its epoch there.
    assert set(found) - set(expected) <= {("train_epoch", script.STOP_AT - 1), ("val", script.STOP_AT - 1)}
    for key, row in expected.items():
        assert found[key] == row, key
    assert alerts(resumed) == alerts(straight)
    states = [json.loads((where / "state.json").read_text()) for where in (straight, resumed)]
    worst = [state.pop("worst") for state in states]
    assert len({state.pop("run") for state in states}) == 2  # two runs, each with a name of its own
    assert states[0] == states[1]  # the rules' baselines, the counts, the open windows
    # The run's worst tokens are the same ones, met on other ranks.
    for rows in ("token_rows", "sequence_rows"):
        assert [row[0] for row in worst[0][rows]] == [row[0] for row in worst[1][rows]]


@pytest.fixture(scope="module", params=[1, 2], ids=["plain", "accumulated"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run never stopped, and one stopped and resumed; the model learns."""
    straight, resumed = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("resumed")
    more: dict[str, Any] = {"lr": 0.5}
    if request.param > 1:
        more |= {"accumulate_grad_batches": 2, "max_epochs": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "EPOCHS", more.pop("max_epochs", script.EPOCHS))
        script.fit(straight, **more)
        script.fit(resumed, stop=True, **more)
        script.fit(resumed, resume=True, **more)
    return straight, resumed


def test_a_resumed_run_reports_what_a_run_never_stopped_reports(runs: tuple[Path, Path]) -> None:
    """Saved in the middle of a window, stopped later, resumed by a fresh trainer and callback."""
    assert_alike(*runs)


def test_addresses_are_those_of_the_run_never_stopped(runs: tuple[Path, Path]) -> None:
    """Steps and micro-batches of the worst tokens go on, too."""
    straight, resumed = (
        {r["step"]: r["worst"] for r in rows_of(w) if r["kind"] == "report" and r["stage"] == "train"} for w in runs
    )
    assert straight == resumed


def test_alerts_before_the_checkpoint_are_raised_once(runs: tuple[Path, Path]) -> None:
    """In the raw file: an edge that was seen before is no edge after."""
    (path,) = runs[1].rglob("pplmon.jsonl")
    raised = [row for row in map(json.loads, path.read_text().splitlines()) if row["kind"] == "alert"]
    early = [(row["rule"], row["metric"], row["step"]) for row in raised if row["step"] < script.SAVE_AT]
    assert early and len(early) == len(set(early))
    assert [row["step"] for row in raised if row["metric"] == "cross_entropy"] == [0]


def test_the_checkpoint_holds_plain_values_only(runs: tuple[Path, Path]) -> None:
    """It loads with ``weights_only=True``."""
    saved = torch.load(runs[1] / "saved.ckpt", weights_only=True)
    (state,) = (value for key, value in saved["callbacks"].items() if key.startswith("PerplexityMonitor"))
    json.dumps(state)
    assert state["monitor"]["tokens_seen"] > 0


@pytest.mark.ranks
def test_a_checkpoint_goes_on_on_another_number_of_ranks(tmp_path: Path) -> None:
    """Saved under DDP on two ranks and resumed on one, and the other way: the same global batches, the same bits."""
    done = run_script("tests.resume_script", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("two_to_one", "one_to_two"):
        assert_alike(tmp_path / "straight", tmp_path / name)


def test_the_steps_of_the_loggers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's and TensorBoard's x axes continue where the run was stopped."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from tests.wandb_run import read_run

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb = pytest.importorskip("wandb")
    seen = []
    for how in ({"stop": True}, {"resume": True}):
        logger = pl.loggers.WandbLogger(save_dir=tmp_path, project="p", id="one", resume="allow")
        script.fit(tmp_path, [pl.loggers.TensorBoardLogger(tmp_path, name="tb", version=0), logger], **how)
        logger.experiment.finish()
        wandb.teardown()
    for path in sorted(tmp_path.rglob("*.wandb")):
        rows = [row for row in read_run(path).history if "train/cross_entropy" in row]
        seen.append([row["trainer/global_step"] for row in rows])
    assert seen == [[5, 11, 17, 23], [23, 29, 31]]
    board = EventAccumulator(str(tmp_path / "tb" / "version_0"), size_guidance={"scalars": 0}).Reload()
    # By time: TensorBoard reads files by name, where of two of one second the tenth of a process comes before its ninth.
    steps = [event.step for event in sorted(board.Scalars("train/cross_entropy"), key=lambda event: event.wall_time)]
    assert steps == sorted(steps) and set(steps) == {5, 11, 17, 23, 29, 31}
