"""A state that is saved by a signal's handler, at any point of a step: what resumes from it counts every token once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pplmon
from pplmon.sinks import read_journal
from pplmon.tally import ReadOut
from tests.models import loader, make_module
from tests.test_lightning import trainer_for

pl = pytest.importorskip("pytorch_lightning")
AT = 5  # the micro-batch in which the signal comes
BATCHES, TOKENS = 12, 12 * 4 * 20


class Saves:
    """Saves a checkpoint when SIGUSR1 comes, as a scheduler's plugin does, and ends the run."""

    def __init__(self, path: Path) -> None:
        self.path, self.trainer = path, None

    def __enter__(self) -> Saves:
        self.before = signal.signal(signal.SIGUSR1, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGUSR1, self.before)

    def _handle(self, *args: Any) -> None:
        self.trainer.save_checkpoint(self.path)  # type: ignore[attr-defined]
        raise SystemExit

    def send(self) -> None:
        """Send the signal, and let the handler run."""
        os.kill(os.getpid(), signal.SIGUSR1)
        for _ in range(1000):
            pass


def fit(where: Path, saves: Saves | None, place: str, accumulate: int, judge: int, checkpoint: Path | None) -> Any:
    """Fit, and have the signal sent at a place."""

    class Sends(pl.Callback):  # type: ignore[misc]
        """Sends the signal in one of the trainer's hooks."""

        def _at(self, here: str, index: int) -> None:
            if saves is not None and here == place and index == AT:
                saves.send()

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            self._at("before the batch", index)

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            self._at("after the batch", index)

    class Module(type(make_module(pl.LightningModule))):  # type: ignore[misc]
        def training_step(self, batch: Any, index: int) -> Any:
            loss = super().training_step(batch, index)
            if saves is not None and place == "in the batch" and index == AT:
                saves.send()
            return loss

    monitor = pplmon.PerplexityMonitor(every_n_steps=4, judge_every_n_steps=judge, alerts=[])
    trainer = trainer_for(where, Sends(), monitor, max_epochs=1, accumulate_grad_batches=accumulate)
    if saves is not None:
        saves.trainer = trainer
    trainer.fit(Module(), loader(BATCHES * 4, ignored=False), ckpt_path=checkpoint)
    return trainer


def tokens_seen(where: Path) -> int:
    """The tokens of the run at its end."""
    return [row for row in read_journal(where) if row["kind"] == "report" and row["stage"] == "train"][-1]["numbers"][
        "tokens_seen"
    ]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize(("accumulate", "judge"), [(1, 1), (2, 1), (1, 3)])
@pytest.mark.parametrize("place", ["before the batch", "in the batch", "after the batch"])
def test_a_run_that_a_signal_saved_in_a_step_counts_every_token_once(
    tmp_path: Path, place: str, accumulate: int, judge: int
) -> None:
    """The batch that Lightning repeats is left out of the state, those before it are in it, one that is done is, too."""
    with Saves(tmp_path / "hpc.ckpt") as saves, pytest.raises(SystemExit):
        fit(tmp_path, saves, place, accumulate, judge, None)
    trainer = fit(tmp_path, None, place, accumulate, judge, tmp_path / "hpc.ckpt")
    assert trainer.global_step == BATCHES // accumulate
    assert tokens_seen(tmp_path) == TOKENS


def test_a_signal_while_a_read_out_is_waited_for_loses_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler's state has the step, which is judged once, and the run that goes on counts it once, too."""
    judged: list[int] = []
    states: list[dict[str, Any]] = []
    monitor = pplmon.Monitor(every_n_steps=4, alerts=[lambda report: judged.append(report.step)])  # type: ignore[arg-type,func-returns-value]
    totals: Callable[..., Any] = ReadOut.totals

    def interrupted(self: ReadOut, *args: Any) -> Any:
        if self.doing.step == AT and not states:
            states.append({})  # the handler waits for the same read-out
            states[0] = monitor.state_dict()
        return totals(self, *args)

    monkeypatch.setattr(ReadOut, "totals", interrupted)

    def feed(monitor: pplmon.Monitor, first: int) -> pplmon.Report:
        for step in range(first, BATCHES):
            torch.manual_seed(step)
            monitor.observe(torch.randn(2, 20, 32), torch.randint(0, 32, (2, 20)))
            monitor.step()
        last = monitor.close()
        assert last is not None
        return last

    last = feed(monitor, 0)
    assert last.tokens_seen == BATCHES * 40 and judged == list(range(BATCHES))
    again = pplmon.Monitor(every_n_steps=4, alerts=[])
    again.load_state_dict(states[0])
    assert (
        again.current_step == AT + 1
    )  # a read-out is waited for one step late: what the next step observed is there, too
    again.step()
    assert feed(again, AT + 2).numbers == last.numbers


def test_a_loss_that_a_signals_handler_saw_first_counts_no_step_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The handler takes the read-out in whose wait it came, as this rank's own."""
    monitor = pplmon.Monitor(every_n_steps=4, sinks=[pplmon.sinks.Journal(tmp_path)], alerts=[])
    handled: list[dict[str, Any]] = []
    totals: Callable[..., Any] = ReadOut.totals

    def lost(self: ReadOut, *args: Any) -> Any:
        if self.doing.step != AT:
            return totals(self, *args)
        if not handled:
            handled.append({})
            handled[0] = monitor.state_dict()
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(ReadOut, "totals", lost)

    def run() -> None:
        for step in range(BATCHES):
            torch.manual_seed(step)
            monitor.observe(torch.randn(2, 20, 32), torch.randint(0, 32, (2, 20)))
            monitor.step()
        monitor.close()

    with pytest.warns(RuntimeWarning, match="a collective failed"):
        run()
    rows = [
        row for path in tmp_path.glob("*.jsonl") for row in read_journal(path) if row["kind"] in ("report", "local")
    ]
    assert handled[0] and sum(row["numbers"]["tokens"] for row in rows) == BATCHES * 40


@pytest.mark.parametrize("stopped", [False, True], ids=["further", "after another stage"])
def test_a_trainer_that_fits_further_goes_on_with_the_count(tmp_path: Path, stopped: bool) -> None:
    """One trainer, two fits: one run in the journal, whose tokens and rules go on; another trainer begins anew."""
    monitor = pplmon.PerplexityMonitor(every_n_steps=4)
    trainer = trainer_for(tmp_path / "a", monitor, max_epochs=1)
    module, data = make_module(pl.LightningModule), loader(BATCHES * 4, ignored=False)
    trainer.fit(module, data)
    if stopped:
        trainer.validate(module, loader(4, ignored=False), verbose=False)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, data)
    rows = [row for row in read_journal(tmp_path / "a") if row["kind"] == "report" and row["stage"] == "train"]
    assert [row["numbers"]["tokens_seen"] for row in rows] == [(n + 1) * 4 * 80 for n in range(2 * BATCHES // 4)]
    assert [row["resumed_at"] for row in read_journal(tmp_path / "a") if row["kind"] == "run"] == [None, BATCHES]
    trainer_for(tmp_path / "b", monitor, max_epochs=1).fit(module, data)
    assert tokens_seen(tmp_path / "b") == TOKENS
