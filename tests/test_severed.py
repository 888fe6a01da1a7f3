"""A monitor goes on by itself when its link to the other ranks breaks, and takes nothing into the next run."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

import pplmon
from pplmon.sinks import Journal, read_journal
from pplmon.tally import TokenTally
from pplmon.tally import ranks as group
from pplmon.testing import run_on_ranks
from tests.fault_script import stats


def fails(*args: Any, **kwargs: Any) -> Any:
    """As a backend does that knows at once that a rank is gone."""
    raise RuntimeError("Connection closed by peer")


READS = TokenTally.read_out


def fails_over_ranks(tally: TokenTally, *args: Any) -> Any:
    """As above, but for what a rank reads out alone."""
    return fails() if tally._alone is None else READS(tally, *args)


def steps(monitor: pplmon.Monitor, count: int) -> list[pplmon.Report | None]:
    """Train so many steps of ten tokens."""
    returned = []
    for _ in range(count):
        monitor.observe(stats(10, 3.0))
        returned.append(monitor.step())
    return returned


def severed(where: Path, monkeypatch: pytest.MonkeyPatch) -> pplmon.Monitor:
    """A monitor with an open window of three steps that loses the others, and trains two more steps."""
    monitor = pplmon.Monitor(sinks=[Journal(where)], alerts=[])
    steps(monitor, 3)
    monitor.collect()
    monkeypatch.setattr(TokenTally, "read_out", fails_over_ranks)
    with pytest.warns(RuntimeWarning, match=r"a collective failed \(Connection closed by peer\). Training goes on"):
        steps(monitor, 1)
    monkeypatch.undo()
    steps(monitor, 1)
    return monitor


@pytest.mark.parametrize("end", ["close", "abandon"])
def test_a_collective_that_fails_at_once_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """What was merged is shown when the run ends, in whichever way; the rest is the rank's own. Nothing twice."""
    monitor = severed(tmp_path, monkeypatch)
    for call in (end, end, "close", "abandon"):
        getattr(monitor, call)()
    lines = map(json.loads, (tmp_path / "pplmon.jsonl").read_text().splitlines())  # the reader would hide a repetition
    (window,) = [row for row in lines if row["kind"] == "report"]
    own = read_journal(tmp_path / "pplmon.rank0.jsonl")
    assert (window["step"], window["numbers"]["tokens"]) == (2, 30)  # the last step that was merged
    assert sum(row["numbers"]["tokens"] for row in own) == 20 and all(row["ranks_missing"] for row in own)


def test_a_validation_pass_after_the_loss_is_this_ranks_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read out without a collective."""
    monitor = severed(tmp_path, monkeypatch)
    monkeypatch.setattr(TokenTally, "read_out", fails)
    with monitor.stage("val") as val:
        monitor.observe(stats(30, 3.0))
    assert val.report is not None and val.report.tokens == 30


def test_a_wish_to_stop_does_not_outlive_its_run() -> None:
    """A checkpoint that is saved while the run stops must not stop the resumed one."""
    monitor = pplmon.Monitor(alerts=[])
    steps(monitor, 1)
    monitor.request_stop()
    state = monitor.state_dict()
    steps(monitor, 2)
    assert monitor.should_stop
    resumed = pplmon.Monitor(alerts=[])
    resumed.load_state_dict(state)
    steps(resumed, 3)
    assert not resumed.should_stop


def test_a_window_that_a_pass_or_a_checkpoint_took_in_is_still_returned() -> None:
    """``step`` gives every window's report, whoever waited for it."""
    monitor = pplmon.Monitor(every_n_steps=2, alerts=[])
    returned = steps(monitor, 2)
    with monitor.stage("val"):
        monitor.observe(stats(10, 3.0))
    returned += steps(monitor, 2)
    monitor.state_dict()
    returned += steps(monitor, 2)
    assert [report.step if report else None for report in returned] == [None, None, 1, None, 3, None]


def begins_again(rank: int, where: str) -> tuple[list[int], int]:
    """Two runs in one process, as in a notebook, each with a world of its own."""
    tokens = []
    for run in range(2):
        dist.destroy_process_group()
        gc.collect()
        dist.init_process_group("gloo", init_method=f"file://{where}/{run}", rank=rank, world_size=2)
        monitor = pplmon.Monitor(alerts=[])
        steps(monitor, 2)
        report = monitor.close()
        assert report is not None
        tokens.append(report.tokens)
        del monitor
    return tokens, len(group._own)


@pytest.mark.ranks
def test_a_second_run_in_one_process_has_groups_of_its_own(tmp_path: Path) -> None:
    """The communicators of a world that ended are forgotten with it."""
    assert run_on_ranks(begins_again, 2, str(tmp_path)) == [([40, 40], 1)] * 2


def test_stop_in_the_last_step_of_an_epoch(tmp_path: Path) -> None:
    """The alert is raised when the epoch is read out; no step of the next epoch is trained."""
    pytest.importorskip("pytorch_lightning")
    from tests.fault_script import module_of, trainer_of
    from tests.models import loader

    def rule(report: pplmon.Report) -> pplmon.Alert | None:
        return pplmon.Alert("last", "the last step") if report.step == 15 else None

    monitor = pplmon.PerplexityMonitor(alerts=[rule], on_alert=pplmon.Stop())
    trainer = trainer_of(tmp_path, callbacks=[monitor], max_epochs=3)
    trainer.fit(module_of(tmp_path), loader(64))
    assert trainer.global_step == 16
