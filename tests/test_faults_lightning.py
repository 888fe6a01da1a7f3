"""Faults of a run under Lightning: interrupts, signals, an exception on one rank, loggers, forked children."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import pplmon
from pplmon.sinks import read_journal
from pplmon.testing import run_on_ranks
from tests.fault_script import module_of, trainer_of
from tests.launch import run_script, start_script
from tests.models import loader
from tests.test_faults import wait_for
from tests.wandb_run import read_run

pl = pytest.importorskip("pytorch_lightning")


def journal_of(where: Path) -> list[dict[str, Any]]:
    """The run's journal."""
    (path,) = where.rglob("pplmon.jsonl")
    return read_journal(path)


def tokens(rows: list[dict[str, Any]]) -> int:
    """Tokens of all train windows, or of all local rows."""
    return sum(
        row["numbers"]["tokens"] for row in rows if row["kind"] in ("report", "local") and row["stage"] == "train"
    )


def own_tokens(where: Path) -> int:
    """Tokens that ranks wrote to journals of their own."""
    return sum(tokens(read_journal(path)) for path in where.rglob("pplmon.rank*.jsonl"))


def seen(where: Path) -> int:
    """Tokens that the ranks measured."""
    return sum(path.stat().st_size for path in where.glob("seen*"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_in_training_step(tmp_path: Path, error: type[BaseException]) -> None:
    """Hooks are gone, the journal is written out and closed, and every token is in it."""

    def on_batch(rank: int, index: int) -> None:
        if index == 9:
            raise error

    module = module_of(tmp_path, on_batch)
    monitor = pplmon.PerplexityMonitor(logits="head", every_n_steps=4, alerts=[])
    trainer = trainer_of(tmp_path, callbacks=[monitor])
    with pytest.raises((error, SystemExit)):
        trainer.fit(module, loader(64))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    rows = journal_of(tmp_path)
    assert [row["step"] for row in rows if row["kind"] == "judged"] == list(range(9))
    assert [row["step"] for row in rows if row["kind"] == "report"] == [3, 7, 8]
    assert tokens(rows) + own_tokens(tmp_path) == seen(tmp_path)
    files = [path.readlink().name for path in Path("/proc/self/fd").iterdir() if path.is_symlink() and path.exists()]
    assert not [name for name in files if name.endswith(".jsonl")]


def test_an_exception_in_validation_step(tmp_path: Path) -> None:
    """What was counted of the pass is a row of its own; training's windows are logged as ever."""
    module = module_of(tmp_path)
    inner = module.validation_step

    def validation_step(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        assert batch_idx < 3, "planned"
        return inner(batch, batch_idx)

    module.validation_step = validation_step
    with pytest.raises(AssertionError, match="planned"):
        trainer_of(tmp_path, num_sanity_val_steps=0).fit(module, loader(64), loader(64, ignored=False))
    (own,) = read_journal(next(tmp_path.rglob("pplmon.rank0.jsonl")))
    assert (own["stage"], own["numbers"]["tokens"]) == ("val", 3 * 4 * 20)
    assert tokens(journal_of(tmp_path)) == seen(tmp_path)


def test_a_checkpoint_saved_on_the_exception_holds_the_open_window(tmp_path: Path) -> None:
    """The window is shown when the run ends, and the resumed run logs it whole: nothing lost, nothing twice."""
    from tests import resume_script as script

    fails = pl.callbacks.LambdaCallback(on_train_batch_start=lambda trainer, *_: 1 / (trainer.global_step - 22))
    saves = pl.callbacks.OnExceptionCheckpoint(tmp_path, "saved")
    with pytest.raises(ZeroDivisionError):
        script.fit(tmp_path, callbacks=[fails, saves])
    script.fit(tmp_path, resume=True)
    rows = [row for row in journal_of(tmp_path) if row["kind"] == "report" and row["stage"] == "train"]
    windows = {row["step"]: row["numbers"] for row in rows}
    shown = windows.pop(21)
    assert 23 in windows and windows[23]["tokens"] > shown["tokens"]
    last = max(windows)
    assert sum(numbers["tokens"] for numbers in windows.values()) == windows[last]["tokens_seen"]


@pytest.mark.ranks
def test_an_exception_on_one_rank_under_ddp(tmp_path: Path) -> None:
    """No collective, no hang: what was merged is in the journal, each rank writes the rest to its own; nothing is lost."""
    begun = time.monotonic()
    done = run_script("tests.fault_script", "one_rank_fails", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "planned" in done.stderr and time.monotonic() - begun < 40
    own = [read_journal(path) for path in sorted(tmp_path.rglob("pplmon.rank*.jsonl"))]
    assert [[row["kind"] for row in rows] for rows in own] == [["local"], ["local"]]
    rows = journal_of(tmp_path)
    assert [row["step"] for row in rows if row["kind"] == "report"] == [3, 4]
    assert tokens(rows) + own_tokens(tmp_path) == seen(tmp_path)


def waits_for_nobody(rank: int, where: str) -> tuple[float, int]:
    """Rank 0 starts a read-out that rank 1 never joins, and gives up."""
    from tests.fault_script import stats

    monitor = pplmon.Monitor(sinks=[pplmon.sinks.Journal(where)], alerts=[])
    monitor.observe(stats(10, 3.0))
    monitor.step()
    monitor.collect()  # both have the communicator now
    begun = time.monotonic()
    if rank == 0:
        monitor.observe(stats(20, 3.0))
        monitor.step()
        monitor.observe(stats(30, 3.0))
        monitor.abandon(seconds=0.3)
        state = monitor.state_dict()  # still no collective
        assert state["tokens_seen"] == 20
    return time.monotonic() - begun, 0


@pytest.mark.ranks
def test_a_read_out_that_never_arrives_is_given_up(tmp_path: Path) -> None:
    """After the time allowed the rank writes it as its own, and asks nobody."""
    (took, _), _ = run_on_ranks(waits_for_nobody, 2, str(tmp_path))
    assert 0.3 <= took < 3
    (row,) = read_journal(tmp_path / "pplmon.rank0.jsonl")
    assert row["numbers"]["tokens"] == 50
    assert tokens(read_journal(tmp_path)) == 20


def test_sigterm_leaves_a_whole_journal(tmp_path: Path) -> None:
    """A scheduler ends the job: the window is logged, and no token is missing."""
    run = start_script("tests.fault_script", "wait_for_a_signal", tmp_path, out=tmp_path)
    wait_for(lambda: seen(tmp_path) > 400)
    run.terminate()
    run.join(30)
    assert run.exitcode is not None
    rows = journal_of(tmp_path)
    assert [row["kind"] for row in rows[-2:]] == ["report", "worst"]
    assert tokens(rows) + own_tokens(tmp_path) == seen(tmp_path)


@pytest.mark.ranks
def test_wandb_in_a_forked_child_is_complete(tmp_path: Path) -> None:
    """Under ddp_fork nobody but the child can end the run: all rows, the alert and the end are in its file."""
    done = run_script("tests.fault_script", "fork", tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.rglob("*.wandb")
    run = read_run(path)
    steps = [row["trainer/global_step"] for row in run.history if "train/cross_entropy" in row]
    assert steps == [3, 7, 11, 15] and len(run.alerts) == 1 and run.exits == [0]


def test_failing_loggers_do_not_change_the_training(tmp_path: Path) -> None:
    """The weights are bit-identical, and the other logger has every row."""

    class Broken(pl.loggers.CSVLogger):  # type: ignore[misc,name-defined]
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            raise ConnectionError("no route to host")

    weights = []
    for name, callbacks in (("with", None), ("without", [])):
        good = pl.loggers.CSVLogger(tmp_path, name=name, version=0)
        more = {} if callbacks is None else {"callbacks": callbacks}
        module = module_of(tmp_path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer_of(tmp_path, logger=[good, Broken(tmp_path, name="bad", version=0)], **more).fit(module, loader(64))
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
        texts = [str(w.message) for w in caught if "ConnectionError" in str(w.message)]
        assert len(texts) == (2 if callbacks is None else 0)
    assert torch.equal(*weights)
    lines = (tmp_path / "with" / "version_0" / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 + 1  # the names, four windows, the epoch


def test_local_rows_are_strict_json(tmp_path: Path) -> None:
    """A rank's own journal reads like the other, non-finite numbers included."""
    monitor = pplmon.Monitor(sinks=[pplmon.sinks.Journal(tmp_path)], alerts=[])
    nll = torch.tensor([[1.0, float("nan")]])
    monitor.observe(pplmon.TokenStats.from_losses(nll, torch.zeros(1, 2, dtype=torch.int64)))
    monitor.abandon()
    (line,) = (tmp_path / "pplmon.rank0.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert (row["kind"], row["numbers"]["nonfinite_tokens"], row["worst"][0]["loss"]) == ("local", 1, "NaN")
