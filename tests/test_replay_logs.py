"""A replay reads other logs than journals: real files of TensorBoard, W&B, Lightning's CSV logger, and plain CSV."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pplmon import replay
from pplmon.replay.read.columns import parse_map
from tests.wandb_run import read_run

SPIKE = 150
LOSSES = [2.0 + step % 7 / 100 + 5 * (step == SPIKE) for step in range(300)]
RULES = ("Spike('cross_entropy')", "Above('cross_entropy', 6)", "Above('cross_entropy', 3, stage='val')")


def fired(series: replay.Series, *texts: str) -> list[tuple[str, str, int | None]]:
    """Rule, stage and step of each alert."""
    result = replay.run(series, replay.Rules(texts or RULES, series))
    return [(f.alert.rule, f.alert.stage, f.alert.step) for f in result.fired]


EXPECTED = [("Spike", "train", SPIKE), ("Above", "train", SPIKE), ("Above", "val", 199)]


def log(step: int, prefix: str = "") -> list[dict[str, float]]:
    """The rows of one step: train, and every hundredth step val."""
    rows = [{f"{prefix}train/cross_entropy": LOSSES[step], f"{prefix}train/perplexity": 7.0, "lr": 0.1}]
    return [*rows, {f"{prefix}val/cross_entropy": 2.0 + (step == 199) * 2}] if step % 100 == 99 else rows


def test_tensorboard(tmp_path: Path) -> None:
    """A directory of event files, with a prefix and another tag beside it; the second file repeats steps."""
    from torch.utils.tensorboard import SummaryWriter

    for begin, end in ((0, 120), (100, 300)):
        with SummaryWriter(str(tmp_path / "tb")) as writer:
            for step in range(begin, end):
                for row in log(step, "lm/"):
                    for tag, value in row.items():
                        writer.add_scalar(tag, value + (begin == 0) * (step >= 100) * 90, step)
        time.sleep(1.1 * (begin == 0))  # files of one second would share a name's stamp, and their order
    series = replay.read(tmp_path)  # found below the directory
    assert (series.kind, series.path, series.spans()) == ("tensorboard", tmp_path / "tb", [(0, 299)])
    assert fired(series) == EXPECTED
    (event_file, *_) = (tmp_path / "tb").glob("events*")
    assert replay.read(event_file).kind == "tensorboard"


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An offline run: its directory, or its file; the x axis is Lightning's."""
    import wandb

    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("DIR", str(tmp_path))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()
    run = wandb.init(project="p")
    for step in range(300):
        for row in log(step):
            run.log({**row, "trainer/global_step": step})
    run.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    for _ in range(100):
        if read_run(file).exits:
            break
        time.sleep(0.05)
    for path in (file, file.parent, tmp_path / "wandb"):
        found = replay.read(path)
        assert (found.kind, found.path.name, found.spans()) == ("wandb", file.name, [(0, 299)])
    assert fired(replay.read(file)) == EXPECTED
    (file.parent / "files/pplmon.jsonl").write_text("")
    assert "A journal lies beside it" in replay.read(file).notes[0]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])  # killed while it was written
    assert 100 < replay.read(file).spans()[0][1] < 250
    file.write_bytes(b"something else")
    with pytest.raises(replay.ReplayError, match="is no .wandb file"):
        replay.read(file)


def test_lightnings_csv(tmp_path: Path) -> None:
    """metrics.csv of Lightning's logger: a row for each call, with empty cells."""
    loggers = pytest.importorskip("pytorch_lightning.loggers")
    logger = loggers.CSVLogger(tmp_path)
    for step in range(300):
        for row in log(step):
            logger.log_metrics(row | {"epoch": step // 100}, step)
    logger.save()
    series = replay.read(tmp_path)
    assert (series.kind, series.path.name) == ("csv", "metrics.csv")
    assert fired(series) == EXPECTED


def write_csv(path: Path, head: str, rows: list[Any]) -> Path:
    """Write a CSV file."""
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_a_plain_csv(tmp_path: Path) -> None:
    """One column is taken for the cross-entropy; names, steps and stages can be told."""
    path = write_csv(tmp_path / "a.csv", "step,value", list(enumerate(LOSSES)))
    series = replay.read(path)
    assert fired(series, *RULES[:2]) == EXPECTED[:2]
    assert "The only column, 'value', is taken for cross_entropy" in series.notes[0]
    path = write_csv(tmp_path / "b.csv", "n,loss,ppl", [(n, loss, "") for n, loss in enumerate(LOSSES)])
    mapped = dict([parse_map("loss=cross_entropy")])
    assert fired(replay.read(path, mapped, "n"), *RULES[:2]) == EXPECTED[:2]
    mapped = dict([parse_map("loss=val/cross_entropy")])
    assert fired(replay.read(path, mapped, "n"), RULES[2]) == [("Above", "val", SPIKE)]


def test_values_of_a_csv(tmp_path: Path) -> None:
    """NaN and inf are values, an empty or foreign cell is none, the last of a repeated step counts, in order of steps."""
    rows = [(3, 1.0), (1, "nan"), (2, ""), (2, "n/a"), (0, "inf"), (3, 9.5), ("total", 7)]
    series = replay.read(write_csv(tmp_path / "a.csv", "Step,run - train/cross_entropy", rows))
    assert [(row.step, str(row.cross_entropy)) for row in series.rows()] == [(0, "inf"), (1, "nan"), (3, "9.5")]


def test_one_of_several_columns_is_told(tmp_path: Path) -> None:
    """Ours beside a key of the module's own has the prefix pplmon/; otherwise the shortest; --map chooses."""
    head = "step,a/train/perplexity,train/perplexity,train/cross_entropy,pplmon/train/cross_entropy,train/group/a"
    path = write_csv(tmp_path / "a.csv", head, [(1, 2, 3, 4, 5, 6)])
    series = replay.read(path)
    (row,) = series.rows()
    assert row.numbers == {"perplexity": 3, "cross_entropy": 5, "group/a": 6}
    assert len(series.notes) == 2 and "'pplmon/train/cross_entropy', not from 'train/cross_entropy'" in series.notes[1]
    (row,) = replay.read(path, dict([parse_map("train/cross_entropy=cross_entropy")])).rows()
    assert row.cross_entropy == 4


def read_error(path: Path, mapped: Mapping[str, Any] | None = None, step: str | None = None) -> str:
    """What the user is told."""
    with pytest.raises(replay.ReplayError) as raised:
        replay.read(path, mapped, step)
    return str(raised.value)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    """Nothing there, nothing in it, no step, no number, no such column, several runs."""
    assert "does not exist; give a run's directory" in read_error(tmp_path / "x")
    assert "holds none of pplmon.jsonl, *.wandb" in read_error(tmp_path)
    odd = tmp_path / "odd.bin"
    odd.write_text("")
    assert "is of no known kind: expected .jsonl" in read_error(odd)
    assert "is empty: expected a line of column names" in read_error(write_csv(tmp_path / "a.csv", "", []))
    assert "is empty" in read_error(write_csv(tmp_path / "a.csv", "step,value", []))
    path = write_csv(tmp_path / "b.csv", "loss,ppl", [(1, 2)])
    assert "no column step, global_step, iteration" in read_error(path) and "has loss, ppl" in read_error(path)
    assert "no column n that counts steps" in read_error(path, step="n")
    path = write_csv(tmp_path / "c.csv", "step,objective,lr", [(1, 2, 3)])
    assert "has no number of pplmon's: its columns are objective, lr; say --map COLUMN=cross" in read_error(path)
    wrong = {"objectiv": ("train", "cross_entropy")}
    assert "did you mean objective? there are 'objective', 'lr'" in read_error(path, wrong)
    series = replay.read(path, {"objective": ("train", "cross_entropy")})
    with pytest.raises(
        replay.ReplayError, match=r"the csv lacks train/perplexity; for train it has cross_entropy.*--map"
    ):
        replay.Rules(["Spike('perplexity')"], series)
    with pytest.raises(replay.ReplayError, match="only a journal does"):
        replay.Rules(["live"], series)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pplmon.jsonl").write_text("")
    assert "holds 2 runs (journal); give one of them:" in read_error(tmp_path)
    for text, error in (
        ("loss", "--map wants COLUMN=NUMBER"),
        ("loss=cross_entrpy", "unknown number 'cross_entrpy': did you mean cross_entropy"),
    ):
        with pytest.raises(replay.ReplayError, match=error):
            parse_map(text)
