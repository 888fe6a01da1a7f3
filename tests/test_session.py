"""A session alone serves a trainer that pplmon does not know: exact windows and passes, resume, stop, and a clean end."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from torch import nn

import pplmon
from pplmon.sinks import read_journal
from pplmon.trainers.session import Session
from pplmon.trainers.settings import Settings
from tests.models import loader, reference
from tests.other_trainer import Batch, Net, OtherTrainer, Wire

STEPS = 8
TRAIN, HELD_OUT = list(loader(96)), list(loader(12, seed=1))  # 24 batches: 8 steps of 3, with unlike numbers of tokens


def fit(where: Path, net: Net | None = None, until: int = STEPS, resume: bool = False, **settings: Any) -> OtherTrainer:
    """Train with a fresh trainer and wire."""
    where.mkdir(exist_ok=True)
    trainer = OtherTrainer(where, net or Net())
    Wire(trainer, **settings)
    trainer.fit(TRAIN, HELD_OUT, until, resume)
    return trainer


def rows(where: Path, kind: str = "report") -> list[dict[str, Any]]:
    """The rows of a journal, without the time of day."""
    return [
        {k: v for k, v in row.items() if k not in ("time", "run")} for row in read_journal(where) if row["kind"] == kind
    ]


def expected(net: Net, batches: list[Batch]) -> dict[str, float]:
    """The numbers in float64."""
    with torch.no_grad():
        return reference([(net.model.table(batch["x"]).double(), batch["labels"]) for batch in batches])


def test_each_window_is_over_all_micro_batches_of_its_steps(tmp_path: Path) -> None:
    """3 micro-batches a step, 2 steps a window, in the trainer's own history and in the journal."""
    trainer = fit(tmp_path)
    windows = [row for row in rows(tmp_path) if row["stage"] == "train"]
    shown = [entry for entry in trainer.history if "train/tokens" in entry]
    assert [row["step"] for row in windows] == [entry["step"] for entry in shown] == [1, 3, 5, 7]
    for index, (row, entry) in enumerate(zip(windows, shown)):
        for name, value in expected(trainer.net, TRAIN[6 * index : 6 * index + 6]).items():
            assert row["numbers"][name] == entry[f"train/{name}"] == pytest.approx(value, abs=1e-6), name


def test_a_pass_is_counted_apart_and_its_batches_are_addressed(tmp_path: Path) -> None:
    """It bears the last step, and the worst token's batch is its number in the pass."""
    trainer = fit(tmp_path)
    passes = [row for row in rows(tmp_path) if row["stage"] == "val"]
    assert [row["step"] for row in passes] == [3, 7]
    for name, value in expected(trainer.net, HELD_OUT).items():
        assert [row["numbers"][name] for row in passes] == pytest.approx([value] * 2, abs=1e-6), name
    worst = passes[0]["worst"][0]
    with torch.no_grad():
        logits = trainer.net.model.table(HELD_OUT[worst["micro_batch"]]["x"])
    losses = nn.functional.cross_entropy(
        logits.transpose(1, 2), HELD_OUT[worst["micro_batch"]]["labels"], reduction="none"
    )
    assert losses[worst["sequence"], worst["position"]].item() == pytest.approx(worst["loss"], abs=1e-5)


def test_a_pass_of_several_loaders_has_each_and_all_of_them(tmp_path: Path) -> None:
    """Their batches may come in any order."""
    session = Session(Settings(alerts=[]), net := Net(), [pplmon.sinks.Journal(tmp_path)])
    session.begin_pass("test", (None, None))
    for batch, index in ((HELD_OUT[0], 0), (HELD_OUT[1], 1), (HELD_OUT[2], 0)):
        session.begin_batch(batch, step=5, loader=index)
        net(batch)
        session.end_batch()
    report = session.end_pass(step=5)
    session.release()
    found = {row["stage"]: row["numbers"]["tokens"] for row in rows(tmp_path)}
    parts = [expected(net, [HELD_OUT[0], HELD_OUT[2]])["tokens"], expected(net, [HELD_OUT[1]])["tokens"]]
    assert found == {"test": sum(parts), "test/dataloader_idx_0": parts[0], "test/dataloader_idx_1": parts[1]}
    assert report.step == 5
    with pytest.raises(RuntimeError, match="end_pass was called without begin_pass"):
        session.end_pass()


@pytest.mark.parametrize("at", [3, 5])
def test_a_resumed_run_reports_what_a_run_never_stopped_reports(at: int, tmp_path: Path) -> None:
    """Saved in the middle of a window: the same reports and alerts, bit-identical."""
    alerts = [pplmon.Above("cross_entropy", 1.0), pplmon.Spike("max_token_loss", window=4, gap=1, quiet_steps=3)]
    fit(tmp_path / "straight", Net(lr=0.5), alerts=alerts)
    net, saved = Net(lr=0.5), tmp_path / "resumed"
    saved.mkdir()
    first = OtherTrainer(saved, net)
    Wire(first, alerts=alerts)
    with pytest.raises(KeyboardInterrupt):
        first.callback.step_end = _saves_and_dies(first, at)
        first.fit(TRAIN, HELD_OUT, STEPS)
    fit(saved, net, resume=True, alerts=alerts)
    for kind in ("report", "alert"):
        straight, resumed = rows(tmp_path / "straight", kind), rows(saved, kind)
        assert [row for row in resumed if row in straight] == straight != [], kind


def _saves_and_dies(trainer: OtherTrainer, at: int) -> Any:
    end = trainer.callback.step_end

    def step_end() -> None:
        end()
        if trainer.step == at:
            trainer.save()
            raise KeyboardInterrupt  # which no trainer tells its callback of: nothing is closed

    return step_end


def test_a_wish_to_stop_reaches_the_trainer(tmp_path: Path) -> None:
    """The alert of step 0 is known in step 1."""
    trainer = fit(tmp_path, alerts=[pplmon.Above("cross_entropy", 1.0)], on_alert=pplmon.Stop())
    assert trainer.step == 2


@pytest.mark.parametrize(("factor", "told"), [(1.0, 0), (1.3, 1)])
def test_the_loss_is_compared_whatever_the_accumulation(factor: float, told: int, tmp_path: Path) -> None:
    """A loss that was divided by it is the cross-entropy; one that holds more is told of once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, Net(factor=factor))
    assert len([w for w in caught if "training_step returned a loss" in str(w.message)]) == told


def test_after_an_exception_the_window_is_on_disk_and_nobody_listens(tmp_path: Path) -> None:
    """The trainer tells its wire, which abandons the run."""
    trainer = OtherTrainer(tmp_path, Net())
    Wire(trainer)
    bad = {"x": torch.zeros(4, 20, dtype=torch.int64), "labels": torch.zeros(3, 20, dtype=torch.int64)}
    with pytest.raises(ValueError, match="targets must have the shape of logits"):
        trainer.fit([*TRAIN[:15], bad], HELD_OUT, STEPS)
    assert [row["step"] for row in rows(tmp_path) if row["stage"] == "train"] == [1, 3, 4]
    session = trainer.callback.session
    assert not session.listening
    session.release()
    fit(tmp_path / "again", trainer.net)
    assert rows(tmp_path / "again")[-1]["numbers"]["tokens"] == expected(trainer.net, HELD_OUT)["tokens"]


def test_each_run_has_rules_of_its_own_and_a_users_rule_stays_the_users(tmp_path: Path) -> None:
    """Ours remember: a second run with the same settings judges as the first."""
    heard: list[pplmon.Alert] = []
    seen: list[int] = []

    def users(report: pplmon.Report) -> None:
        seen.append(report.step)

    settings = {"alerts": [pplmon.Above("cross_entropy", 1.0), users], "on_alert": heard.append}
    for name in ("a", "b"):
        fit(tmp_path / name, **settings)
    assert [alert.step for alert in heard] == [0, 0]
    assert seen == 2 * [0, 1, 2, 3, 3, 4, 5, 6, 7, 7]  # each step, and the passes after steps 3 and 7


def test_bad_settings_are_errors_before_a_run() -> None:
    """A wire is made long before its trainer runs."""
    with pytest.raises(ValueError, match="did you mean perplexity"):
        Settings(numbers=["perplexty"])
    with pytest.raises(TypeError, match="a rule is a callable"):
        Settings(alerts=["max_token_loss"])  # type: ignore[list-item]


def test_a_session_that_nobody_ended_is_not_kept_alive() -> None:
    """Neither its model nor its monitor: the list of those who listen holds them weakly."""
    net = Net()
    session = Session(Settings(), net)
    gone = ref(net), ref(session.monitor)
    del net, session
    gc.collect()
    assert [thing() for thing in gone] == [None, None]
