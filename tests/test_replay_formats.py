"""A replay reads what other trainers leave behind: their formats, names, separators, and packed files."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pplmon import replay
from pplmon.cli import main
from pplmon.replay.read.columns import parse_map
from pplmon.replay.score import Watch
from tests.launch import run_script

SPIKE = 300
LOSSES = [3.0 + (step * 37 % 100) / 1000 + 2 * (step == SPIKE) for step in range(400)]
STEPS = list(enumerate(LOSSES))


def table(head: list[str], row: Callable[[int, float], list[Any]], separator: str = ",") -> str:
    """Return a CSV file of all steps."""
    return "".join(separator.join(map(str, cells)) + "\n" for cells in [head, *(row(*step) for step in STEPS)])


def each(line: Callable[[int, float], str]) -> str:
    """Return a file with a line for each step."""
    return "".join(f"{line(step, loss)}\n" for step, loss in STEPS)


def exported(runs: Mapping[str, list[float]]) -> str:
    """Return a chart as W&B exports it."""
    names = [f"{run} - train/loss{bound}" for run in runs for bound in ("", "__MIN", "__MAX")]
    head = ",".join(f'"{name}"' for name in ["Step", *names])
    rows = [[step, *(v for losses in runs.values() for v in [losses[step] if losses else ""] * 3)] for step, _ in STEPS]
    return "\n".join([head, *(",".join(f'"{cell}"' for cell in row) for row in rows)]) + "\n"


def trainer_state(first: int = 1) -> str:
    """Return the state of a Trainer, which counts steps from 1, with an evaluation and the row that closes it."""
    rows: list[dict[str, Any]] = [{"step": first + n, "loss": loss, "epoch": n / 400} for n, loss in STEPS]
    rows.insert(200, {"step": 200, "eval_loss": 2.5, "eval_runtime": 1.0})
    return json.dumps(
        {"global_step": 400, "log_history": [*rows, {"step": 400, "train_runtime": 9.0, "train_loss": 3.1}]}
    )


MEGATRON = " iteration {:8}/     400 | consumed samples: 64 | learning rate: 1.5E-04 | lm loss: {:.6E} | loss scale: 1.0 | grad norm: 1.2 |"
FORMATS: dict[str, tuple[str, str]] = {  # file name -> its text, and the kind that it is read as
    "comma.csv": (table(["step", "cross_entropy"], lambda n, x: [n, f'"{x}"'.replace(".", ",")]), "csv"),
    "spaces.csv": (table(["step", " cross_entropy"], lambda n, x: [n, f" {x}\r"]), "csv"),
    "semicolon.csv": (table(["step", "loss"], lambda n, x: [n, str(x).replace(".", ",")], ";"), "csv"),
    "tabs.tsv": (table(["step", "cross_entropy"], lambda n, x: [n, x], "\t"), "csv"),
    "thousands.csv": (table(["global_step", "loss"], lambda n, x: [f'"{n + 1000:,}"', x]), "csv"),
    "iterations.csv": (table(["iteration", "lm loss"], lambda n, x: [n, x]), "csv"),
    "iter.csv": (table(["iter", "train_loss", "lr"], lambda n, x: [n, x, 1e-4]), "csv"),
    "perplexity.csv": (table(["step", "perplexity"], lambda n, x: [n, math.exp(x)]), "csv"),
    "ppl.csv": (table(["step", "train/ppl", "lr"], lambda n, x: [n, math.exp(x), 1]), "csv"),
    "chart.csv": (exported({"misty-sun-1": LOSSES}), "wandb export"),
    "empty_run.csv": (exported({"misty-sun-1": LOSSES, "dark-tree-2": []}), "wandb export"),
    "no_name.csv": (table(["Step", "train/loss", "train/loss__MIN", "train/loss__MAX"], lambda n, x: [n, x, x, x]), "wandb export"),
    "scalar.csv": (table(["Wall time", "Step", "Value"], lambda n, x: [1.7e9 + n, n, x]), "tensorboard export"),
    "run-a_b-tag-train_loss.csv": (table(["Wall time", "Step", "Value"], lambda n, x: [1.7e9 + n, n, x]), "tensorboard export"),
    "trainer_state.json": (trainer_state(0), "trainer state"),
    "trainer_log.jsonl": (each(lambda n, x: json.dumps({"current_steps": n, "total_steps": 400, "loss": x})), "trainer log"),
    "metrics.jsonl": (each(lambda n, x: json.dumps({"step": n, "train/loss": x})), "json lines"),
    "nested.jsonl": ('{"config": {"lr": 1}}\n' + each(lambda n, x: json.dumps({"_step": n, "train": {"loss": x}})), "json lines"),
    "nanogpt.txt": (each(lambda n, x: f"iter {n}: loss {x:.6f}, time 12.31ms, mfu 4.20%"), "text log"),
    "nanogpt_evals.log": (each(lambda n, x: f"step {n}: train loss {x:.6f}, val loss {x + 1:.6f}"), "text log"),
    "llmc.txt": (each(lambda n, x: f"step {n:4}/400 | loss {x:.6f} (+nanz)| norm 1.2 (+nanz)| lr 1e-04 | 30.0 ms"), "text log"),
    "main.log": (each(lambda n, x: f"s:{n} trl:{x:.6f} lr:0.0001 norm:1.2"), "text log"),
    "twin.txt": (each(lambda n, x: f"{n} train {x:.6f}"), "text log"),
    "modded.log": (each(lambda n, x: f"step:{n}/400 train_loss:{x:.6f} train_time:{n}ms step_avg:9.50ms"), "text log"),
    "megatron.out": (each(MEGATRON.format), "text log"),
    "titan.log": (each(lambda n, x: f"[titan] - INFO - \x1b[31mstep: {n:2}  \x1b[32mloss: {x:.5f}  \x1b[33mmemory: 1GiB"), "text log"),
    "dicts.log": (each(lambda n, x: str({"step": n, "loss": x, "lr": 0.1})), "text log"),
    "lit.log": (each(lambda n, x: f"Epoch 1 | iter {n} step {n} | loss train: {x:.5f}, val: n/a | iter time: 9 ms"), "text log"),
}  # fmt: skip


def spikes(series: replay.Series) -> list[int | None]:
    """Return the steps of the alerts of a spike rule."""
    return [f.alert.step for f in replay.run(series, replay.Rules(["Spike('cross_entropy')"], series)).fired]


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    """The rows of each format, plain and packed: kind, steps and values, and the same alert."""
    text, kind = FORMATS[name]
    (tmp_path / name).write_text(text, newline="")
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    first = 1000 * (name == "thousands.csv")
    for path in (tmp_path / name, tmp_path / f"{name}.gz"):
        series = replay.read(path)
        assert (series.kind, series.spans()) == (kind, [(first, first + 399)])
        rows = [row for row in series.rows() if row.stage == "train"]
        assert [row.cross_entropy for row in rows] == pytest.approx(LOSSES, rel=1e-5)
        assert spikes(series) == [SPIKE + first]


def test_what_was_taken_is_told(tmp_path: Path) -> None:
    """A loss that is taken for the cross-entropy, a perplexity that is turned into it, and a run without values."""
    told = {
        "iter.csv": "'train_loss' is taken for train/cross_entropy; --map says otherwise.",
        "perplexity.csv": "train/cross_entropy is the logarithm of 'perplexity'.",
        "empty_run.csv": "The file has 2 runs: misty-sun-1, dark-tree-2; --map chooses.",
        "nested.jsonl": "Left out 1 ×: a row whose _step is no whole number of at least 0 (the first: None).",
    }
    for name, note in told.items():
        (tmp_path / name).write_text(FORMATS[name][0])
        assert note in replay.read(tmp_path / name).notes


def test_several_runs_in_an_export_are_listed(tmp_path: Path) -> None:
    """Several runs with values are an error that names them; --map reads one of them."""
    path = tmp_path / "chart.csv"
    path.write_text(exported({"a-1": LOSSES, "b-2": [loss + 1 for loss in LOSSES]}))
    with pytest.raises(replay.ReplayError, match=r"2 runs: a-1, b-2; choose one .*--map 'a-1 - train/loss=train/cross"):
        replay.read(path)
    series = replay.read(path, dict([parse_map("b-2 - train/loss=cross_entropy")]))
    assert next(series.rows()).cross_entropy == LOSSES[0] + 1


def test_losses_of_several_stages(tmp_path: Path) -> None:
    """Evaluations are read as val, an epoch's mean is not train's loss, and pplmon's own key goes before any other."""
    path = tmp_path / "trainer_state.json"
    path.write_text(trainer_state())
    assert [(r.step, r.cross_entropy) for r in replay.read(path).rows() if r.stage == "val"] == [(200, 2.5)]
    for column, place in {
        "eval_loss": ("val", "cross_entropy"),
        "Validation Loss": ("val", "cross_entropy"),
        "test/ppl": ("test", "perplexity"),
        "train_loss_step": ("train", "cross_entropy"),
    }.items():
        (tmp_path / "a.csv").write_text(f"step,{column},lr\n1,2.0,1\n")
        assert place in replay.read(tmp_path / "a.csv").numbers()
    for column in ("train_loss_epoch", "aux_loss", "loss_scale", "z_loss", "train/val_loss"):
        (tmp_path / "a.csv").write_text(f"step,{column},lr\n1,2.0,1\n")
        with pytest.raises(replay.ReplayError, match="has no number of pplmon's"):
            replay.read(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("step,loss,train/cross_entropy\n1,9.0,2.0\n")
    assert next(replay.read(tmp_path / "a.csv").rows()).cross_entropy == 2.0
    megatron = " validation loss at iteration 100 on validation set | lm loss value: 3.2E+00 | lm loss PPL: 2.4E+01 |\n"
    (tmp_path / "m.log").write_text(MEGATRON.format(100, 3.0) + "\n" + megatron)
    rows = [(row.stage, row.step, row.cross_entropy) for row in replay.read(tmp_path / "m.log").rows()]
    assert rows == [("train", 100, 3.0), ("val", 100, 3.2)]


def test_of_checkpoints_the_last_is_read(tmp_path: Path) -> None:
    """Every checkpoint of a Trainer has the history so far."""
    for steps in (90, 100):
        (tmp_path / f"checkpoint-{steps}").mkdir()
        (tmp_path / f"checkpoint-{steps}" / "trainer_state.json").write_text(trainer_state())
    assert replay.read(tmp_path).path.parent.name == "checkpoint-100"


def test_a_pattern_of_ones_own(tmp_path: Path) -> None:
    """``--pattern`` reads any text; what is wrong with it is told."""
    path = tmp_path / "odd.dat"
    path.write_text(each(lambda n, x: f"it={n} ... ce={x} x"))
    assert spikes(replay.read(path, pattern=r"it=(?P<step>\d+) .*ce=(?P<cross_entropy>\S+)")) == [SPIKE]
    for pattern, error in (
        ("(", r"is no regular expression: missing \)"),
        (r"it=(?P<step>\d+)", "wants the groups step and a number's, .* with step"),
        (r"(?P<step>x)(?P<loss>y)", "has no line with a step and a loss that fits --pattern"),
    ):
        with pytest.raises(replay.ReplayError, match=error):
            replay.read(path, pattern=pattern)
    with pytest.raises(replay.ReplayError, match="reads one text file"):
        replay.read(tmp_path, pattern=r"(?P<step>x)(?P<loss>y)")
    (tmp_path / "odd.log").write_text("Epoch 1 begins\n")
    with pytest.raises(replay.ReplayError, match=r"no line with a step and a loss; say how they look: --pattern"):
        replay.read(tmp_path / "odd.log")


def test_steps_that_come_twice_are_counted(tmp_path: Path) -> None:
    """The later value counts, as after a resume, and a note says how many were replaced: steps may begin anew each epoch."""
    path = tmp_path / "a.csv"
    path.write_text("epoch,batch,loss\n0,0,1.0\n0,1,2.0\n1,0,3.0\n1,1,4.0\n")
    with pytest.raises(replay.ReplayError, match=r"no column step, .* that counts steps; name it with --step"):
        replay.read(path)
    series = replay.read(path, step="batch")
    assert [row.cross_entropy for row in series.rows()] == [3.0, 4.0]
    assert any("Left out 2 ×: a value whose step stands there once more" in note for note in series.notes)


def test_utf_16_and_packed_journals(tmp_path: Path) -> None:
    """A redirect of PowerShell writes UTF-16; a journal may be packed, whatever its name."""
    (tmp_path / "a.csv").write_bytes("step,loss\n1,2.0\n".encode("utf-16"))
    assert next(replay.read(tmp_path / "a.csv").rows()).cross_entropy == 2.0
    row = {"kind": "judged", "step": 3, "stage": "train", "numbers": {"cross_entropy": 2.5}}
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(row).encode()))
    assert (replay.read(tmp_path / "b.jsonl").kind, replay.read(tmp_path / "b.jsonl").spans()) == ("journal", [(3, 3)])


def shaped(path: Path, losses: Mapping[int, float], gap: int = 1) -> Path:
    """Write a CSV of 600 noisy values ``gap`` steps apart, with some replaced."""
    noise = [3.0 + 0.05 * math.sin(n * n) for n in range(600)]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["step", "loss"], *([n * gap, losses.get(n, v)] for n, v in enumerate(noise))])
    return path


def test_a_hard_step_does_not_hide_the_burst_after_it(tmp_path: Path) -> None:
    """One step of 13 standard deviations is a notice, and a burst of 20 within its quiet time a page."""
    path = shaped(tmp_path / "a.csv", {300: 3.65, **{320 + n: 4.0 - n / 15 for n in range(10)}})
    series = replay.read(path)
    fired = replay.run(series, replay.Rules(["Spike('cross_entropy')"], series)).fired
    assert [(f.alert.step, f.alert.severity) for f in fired] == [(300, "info"), (321, "warning")]


def test_a_plateau_gives_the_same_answer_however_often_it_is_logged(tmp_path: Path) -> None:
    """Rows 1, 10, 50 and 200 steps apart: the same alerts, at the same rows, and the same rate per value."""
    plateau = {n: 4.0 + 0.05 * math.sin(n * n) for n in range(300, 600)}
    answers = []
    for gap in (1, 10, 50, 200):
        series = replay.read(shaped(tmp_path / "a.csv", plateau, gap))
        fired = replay.run(series, replay.Rules(["Spike('cross_entropy')"], series)).fired
        score = Watch(series).score("Spike", fired)
        assert score.false_per_100k_steps == pytest.approx((score.false_per_100k_values or 0) * 600 / (599 * gap + 1))
        answers.append(([((f.alert.step or 0) // gap, f.alert.severity) for f in fired], score.false_per_100k_values))
    assert len(answers[0][0]) == 3 and all(answer == answers[0] for answer in answers)


def test_the_command_as_a_module(tmp_path: Path) -> None:
    """``python -m pplmon`` is ``pplmon``."""
    (tmp_path / "a.csv").write_text(FORMATS["iter.csv"][0])
    done = run_script("pplmon", "replay", "a.csv", "--json", cwd=tmp_path)
    assert [alert["step"] for alert in json.loads(done.stdout)["alerts"]] == [SPIKE]


def test_options_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--pattern``, ``--map`` and ``--step`` reach the reader."""
    (tmp_path / "a.log").write_text(each(lambda n, x: f"it={n} obj={x} x"))
    pattern = r"it=(?P<step>\d+) obj=(?P<objective>\S+)"
    assert main(["replay", str(tmp_path / "a.log"), "--pattern", pattern, "--map", "objective=cross_entropy"]) == 0
    assert f"step {SPIKE}  Spike('cross_entropy')" in capsys.readouterr().out
