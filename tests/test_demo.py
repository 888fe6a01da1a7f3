"""``pplmon demo``, by its command line: what a newcomer runs first."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pplmon.alerts.words import plural
from pplmon.cli import main
from pplmon.demo.plan import BATCH, SETTLED, Plan
from pplmon.demo.summary import corruption_found, numbers, verdict
from pplmon.demo.text import CONTEXT, HeldOutWindows, TrainingWindows, decode, language_reference
from pplmon.page.command import opening
from pplmon.sinks import read_journal
from tests.launch import run_script

STEPS = SETTLED + 3


def demo(out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, from the directory above ``out``."""
    return run_script("pplmon.cli", "demo", "--out", out.name, *flags, cwd=out.parent, timeout_s=280, COLUMNS="200")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory and the output of one whole run with TensorBoard, as short as a spike can be found in."""
    out = tmp_path_factory.mktemp("demo") / "runs"
    done = demo(out, "--steps", str(STEPS))
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "version_0", done.stdout


@pytest.mark.slow
def test_the_corrupted_row_is_named_with_its_text(finished: tuple[Path, str]) -> None:
    """The alert at that step has the step, the row of the data, and the bytes that were put there."""
    directory, _ = finished
    plan = Plan(steps=STEPS)
    assert plan.corrupted_step == SETTLED
    alerts = [row for row in read_journal(directory) if row["kind"] == "alert"]
    found = [alert for alert in alerts if alert["step"] == SETTLED]
    assert found and found == alerts, "and no other alarm"
    worst = found[0]["worst"][0]
    assert (worst["step"], worst["sample_id"]) == (SETTLED, plan.corrupted_row)
    noise = TrainingWindows(language_reference()[0], CONTEXT, plan.rows, plan.seed, plan.corrupted_row)
    row = noise[plan.corrupted_row]["targets"].tolist()
    assert worst["target"] == row[worst["position"]]
    assert worst["target_text"] == decode([worst["target"]])
    assert worst["context_text"] in decode(row)
    assert found[0]["worst_sequences"][0]["sample_id"] == plan.corrupted_row


@pytest.mark.slow
def test_the_event_file_holds_the_journals_numbers(finished: tuple[Path, str]) -> None:
    """val/perplexity and train/max_sequence_loss, read back, at the journal's steps."""
    directory, _ = finished
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    rows = read_journal(directory)
    for key in ("val/perplexity", "train/max_sequence_loss"):
        logged = [(event.step, event.value) for event in events.Scalars(key)]
        assert len(logged) >= 4
        assert logged == [(step, pytest.approx(value, rel=1e-6)) for step, value in numbers(rows, key)]
    assert numbers(rows, "val/perplexity")[-1][1] < 20, "it learns"
    assert events.Tags()["tensors"], "the alert is there as text"


@pytest.mark.slow
def test_what_is_said(finished: tuple[Path, str]) -> None:
    """What will happen, that it happens, that it was found, the table, and what opens the dashboard."""
    directory, out = finished
    first, second = out.splitlines()[:2]
    assert first.startswith(f"pplmon demo: {STEPS} steps")
    assert f"step {SETTLED} " in second and "on purpose" in second
    assert f"step {SETTLED}: now comes row" in out
    assert re.search(rf"^corrupted step {SETTLED}: found by Spike\(.*\) at step {SETTLED}$", out, re.MULTILINE)
    assert "other alerts and notices: none" in out
    for key in ("train/cross_entropy", "train/perplexity", "val/perplexity", "train/token_accuracy", "max_token_loss"):
        assert key in out
    assert f"{STEPS} steps in" in out
    assert "runs/version_0/pplmon.jsonl" in out and directory.is_dir()
    assert "pplmon view runs" in out
    assert out.rstrip().endswith(opening(Path("runs/version_0/report.html")))


@pytest.mark.slow
def test_the_page_shows_the_corrupted_row(finished: tuple[Path, str]) -> None:
    """The verdict names the step, and the alert the row and where its batch lies."""
    directory, _ = finished
    page = (directory / "report.html").read_text(encoding="utf-8")
    notices = [row for row in read_journal(directory) if row["kind"] == "alert"]  # of one rule, or of several
    assert f"Healthy, {plural(len(notices), 'notice')} at step {SETTLED}: one sequence explains" in page
    assert f"sample {Plan(steps=STEPS).corrupted_row}" in page
    (batch,) = (directory / "alerts").glob(f"*-step={SETTLED}-rank=0.pt")
    assert f"alerts/{batch.name}" in page


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_say_everything_once_and_a_spike_that_is_not_found_is_admitted(tmp_path: Path) -> None:
    """``--devices 2`` is one run with one summary; the alerts cannot know a spike at step 3, and the exit code says so."""
    done = demo(tmp_path / "runs", "--devices", "2", "--steps", "6", "--corrupt-step", "3", "--logger", "csv")
    assert done.returncode == 1, done.stdout + done.stderr
    for once in ("on 2 ranks", "6 steps in", "corrupted step 3: NOT found by any alert"):
        assert done.stdout.count(once) == 1
    rows = read_journal(tmp_path / "runs" / "version_0")
    assert rows[0]["kind"] == "run" and rows[0]["ranks"] == 2
    assert sum(value for _, value in numbers(rows, "train/tokens")) == 6 * BATCH * CONTEXT
    worst = [token for row in rows if row["kind"] == "report" and row["stage"] == "train" for token in row["worst"]]
    assert {token["rank"] for token in worst} == {0, 1}
    for token in worst:  # rows are dealt out in turn, and not shuffled: so the corrupted one is in its step
        assert token["sample_id"] == token["step"] * BATCH + token["sequence"] * 2 + token["rank"]
    assert (tmp_path / "runs" / "version_0" / "metrics.csv").is_file()


def test_wandb_works_without_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline; the journal lies with the run's files, and the words name the run."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    done = demo(tmp_path / "runs", "--logger", "wandb", "--steps", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No sequence is corrupted" in done.stdout and "corrupted step" not in done.stdout
    (run,) = (tmp_path / "runs" / "wandb").glob("offline-run-*")
    assert numbers(read_journal(run / "files"), "val/perplexity")
    assert "anonymous" not in done.stdout + done.stderr  # a warning of W&B's about what a logger would have set
    assert f"wandb sync {run.relative_to(tmp_path)}" in done.stdout
    assert f"wandb leet run {run.relative_to(tmp_path)}" in done.stdout
    assert list(run.glob("*.wandb"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--steps", "0"], "--steps must be at least 1 optimizer step, got 0"),
        (["--steps", "10", "--corrupt-step", "10"], "--corrupt-step must be one of the run's steps, 0 to 9, got 10"),
        (["--corrupt-step", "-1"], "--corrupt-step must be one of the run's steps, 0 to 539, got -1"),
        (["--devices", "0"], "--devices must be 1 to 16 (a step has 16 sequences), got 0"),
        (["--devices", "17"], "--devices must be 1 to 16"),
        (["--seed", "-1"], "--seed must be 0 to 4294967295, got -1"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--logger", "paper"], "invalid choice: 'paper'"),
    ],
)
def test_a_wrong_flag_is_named(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The flag, what it takes and what it got; exit code 2, before anything heavy is loaded or written."""
    assert main(["demo", *flags]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_the_corrupted_row_is_the_last_of_its_step(devices: int) -> None:
    """Whatever the ranks: a step takes consecutive rows, and the last goes to the last rank."""
    plan = Plan(devices=devices, corrupt_step=7)
    rows = plan.rank_batch * devices
    assert plan.corrupted_row is not None and plan.corrupted_row == 7 * rows + rows - 1
    assert plan.rows == plan.steps * rows


def test_a_run_that_is_too_short_is_not_corrupted() -> None:
    """The alerts could not find it; asked for, it is done all the same."""
    assert Plan(steps=SETTLED).corrupted_step is None
    assert Plan(steps=SETTLED + 1).corrupted_step == SETTLED
    assert Plan(steps=5, corrupt_step=2).corrupted_step == 2


def test_the_verdict_counts_alerts_of_training_only() -> None:
    """An alert of another step or stage did not find the corrupted sequence."""
    alert = {"kind": "alert", "rule": "Spike", "metric": "cross_entropy", "stage": "train", "step": 9}
    assert corruption_found([alert], 9) and not corruption_found([alert], 8)
    assert not corruption_found([alert | {"stage": "val"}], 9)
    assert verdict([alert], 9) == [
        "corrupted step 9: found by Spike(cross_entropy) at step 9",
        "other alerts and notices: none",
    ]
    missed = [
        "corrupted step 8: NOT found by any alert",
        "other alerts and notices: Spike(cross_entropy) at train step 9",
    ]
    assert verdict([alert], 8) == missed
    assert verdict([], None) == ["other alerts and notices: none"]


def test_every_held_out_byte_is_scored_once() -> None:
    """Windows side by side: what one window ends with is the first input of the next."""
    training, tail = language_reference()
    assert len(training) > 400_000 and len(tail) > 20_000
    windows = HeldOutWindows(tail, CONTEXT)
    scored = [byte for row in range(len(windows)) for byte in windows[row]["targets"].tolist()]
    assert scored == tail[1 : 1 + len(scored)].tolist()
    assert len(tail) - len(scored) <= CONTEXT


@pytest.mark.parametrize("command", [["demo"], ["report", "runs/a"], ["replay", "runs/a"], ["view", "runs/a"]])
def test_a_wrong_flag_shows_the_usage_of_its_command(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """That of pplmon alone would name no flag of the command."""
    assert main([*command, "--no-such-flag", "3"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"usage: pplmon {command[0]} [-h]")
    assert said.endswith(f"pplmon {command[0]}: error: unrecognized arguments: --no-such-flag 3\n")
