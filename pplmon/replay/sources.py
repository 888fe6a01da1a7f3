"""Find out what a path is (a journal, TensorBoard's, W&B's or a CSV file) and read it as a series."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pplmon.replay.columns import Place, choose, rows_of
from pplmon.replay.journal import read_journal_file
from pplmon.replay.series import ReplayError, Segment, Series
from pplmon.replay.wandb_file import read_run
from pplmon.sinks.journal import FILE_NAME

# What each kind's files are called, the most exact kind first.
PATTERNS = {"journal": FILE_NAME, "wandb": "*.wandb", "tensorboard": "events.out.tfevents.*", "csv": "metrics.csv"}
STEPS = ("trainer/global_step", "step", "global_step", "_step", "Step")  # columns that count steps, the best first

Cells = Iterable[tuple[int, Mapping[str, Any]]]


def read(path: str | Path, mapped: Mapping[str, Place] | None = None, step: str | None = None) -> Series:
    """Read a run from its file or its directory.

    Args:
        path: a journal, a TensorBoard directory or event file, a W&B offline run or its ``.wandb`` file, or a CSV file.
        mapped: column -> (stage, name), for columns that have other names than ours.
        step: the column that counts optimizer steps; ``None`` finds it.

    Raises:
        ReplayError: nothing is there to be read, or not what is needed.
    """
    kind, found = locate(Path(path))
    if kind == "journal":
        if mapped or step:
            raise ReplayError(
                f"{found} is a journal: its numbers have their names already, --map and --step are for logs"
            )
        return read_journal_file(found)
    try:
        columns, cells = {"wandb": _wandb, "tensorboard": _tensorboard, "csv": _csv}[kind](found, step)
    except ReplayError:
        raise
    except ValueError as error:
        raise ReplayError(str(error)) from None
    chosen, notes = choose(columns, mapped or {})
    rows = rows_of(cells, chosen)
    if not rows:
        have = f"its columns are {', '.join(columns)}; say --map loss=cross_entropy" if columns else "it is empty"
        raise ReplayError(f"{found} has no number of pplmon's: {have}")
    inside = found.parent / "files" / FILE_NAME
    if kind == "wandb" and inside.is_file():
        notes.append(f"A journal lies beside it, which replays exactly: {inside}")
    return Series(found, kind, [Segment(rows)], columns=tuple(columns), notes=notes)


def locate(path: Path) -> tuple[str, Path]:
    """Return which kind of source a path is, and the file (TensorBoard: the directory) to read.

    Raises:
        ReplayError: there is none, or there are several.
    """
    if not path.exists():
        raise ReplayError(f"{path} does not exist; give a run's directory or file (pplmon.jsonl, *.wandb, *.csv)")
    if path.is_file():
        return _kind_of(path), path
    for within in ("", "**/"):  # what lies in the directory itself, else below it
        for kind, pattern in PATTERNS.items():
            found = sorted(path.glob(within + pattern))
            places = sorted({file.parent for file in found}) if kind == "tensorboard" else found
            if len(places) == 1:
                return kind, places[0]
            if places:
                some = "".join(f"\n  {place}" for place in places[:8]) + ("\n  …" if len(places) > 8 else "")
                raise ReplayError(f"{path} holds {len(places)} runs ({kind}); give one of them:{some}")
    files = ", ".join(PATTERNS.values())
    raise ReplayError(f"{path} holds none of {files}, at any depth; give a run's directory, or a .csv file by its name")


def _kind_of(file: Path) -> str:
    if file.suffix == ".jsonl":
        return "journal"
    if file.suffix in (".wandb", ".csv"):
        return file.suffix[1:]
    if ".tfevents." in file.name:
        return "tensorboard"
    raise ReplayError(f"{file} is of no known kind: expected .jsonl (a journal), .wandb, .csv or events.out.tfevents.*")


def _tensorboard(path: Path, step: str | None) -> tuple[list[str], Cells]:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    if step:
        raise ReplayError("TensorBoard's events have steps of their own: leave --step out")
    board = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()  # 0 keeps every point
    tags = board.Tags()["scalars"]
    return tags, ((event.step, {tag: event.value}) for tag in tags for event in board.Scalars(tag))


def _wandb(path: Path, step: str | None) -> tuple[list[str], Cells]:
    history = read_run(path).history
    columns = list(dict.fromkeys(name for row in history for name in row))
    column = _step_column(columns, step, path)
    return [name for name in columns if name not in STEPS], _by_step(history, column)


def _csv(path: Path, step: str | None) -> tuple[list[str], Cells]:
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if any(row.values())]
    columns = [name for name in reader.fieldnames or () if name]
    if not columns or not rows:
        raise ReplayError(
            f"{path} is empty: expected a line of column names, one of them 'step', and a line for each step"
        )
    column = _step_column(columns, step, path)
    return [name for name in columns if name not in (column, "epoch")], _by_step(rows, column)


def _step_column(columns: list[str], wanted: str | None, path: Path) -> str:
    names = (wanted,) if wanted else STEPS
    found = next((name for name in names if name in columns), None)
    if found is None:
        raise ReplayError(
            f"{path} has no column {' or '.join(map(repr, names))} that counts steps; name it with --step. It has "
            f"{', '.join(columns) or 'none'}"
        )
    return found


def _by_step(rows: Iterable[Mapping[str, Any]], column: str) -> Cells:
    for row in rows:
        step = _whole(row.get(column))
        if step is not None:  # else a row of something else
            yield step, row


def _whole(value: Any) -> int | None:
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
