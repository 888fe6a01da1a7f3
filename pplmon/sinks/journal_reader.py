"""Read a journal back: the rows of one of its runs, without what a resumed run repeated."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pplmon.report.declared import learn
from pplmon.report.strict_json import revive
from pplmon.sinks.journal import FILE_NAME
from pplmon.sinks.journal_rows import KINDS, sound
from pplmon.sinks.journal_runs import JournalRuns
from pplmon.sinks.json_lines import no_collection, objects
from pplmon.sinks.left_out import LeftOut

_LOSSES = ("loss", "context_losses", "predicted_probability")  # fields of the worst that may be non-finite


def read_journal(path: str | os.PathLike[str], run: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of one run of a journal (the file, or its directory), with non-finite numbers as floats again.

    It is the last run, or the one that is named: the ``run`` of its row of kind "run".

    A resumed run repeats steps: of the rows for the same step and stage (alerts: and the same rule) the last is kept,
    where it stands. An incomplete line, left by a kill, is skipped; one warning counts rows and numbers that are damaged.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    torn, damaged = LeftOut(), LeftOut()
    runs = JournalRuns()
    with open(path, encoding="utf-8-sig", errors="replace") as file, no_collection():
        for number, row in enumerate(sound(objects(file, torn), damaged)):
            learn(row.get("declared"))  # what extras of the run measured, in a process that may not know them
            key = (runs.of(row), *_identity(row, number))
            kept.pop(key, None)  # so that the new one comes at its own place
            kept[key] = row
    if notes := damaged.notes():
        warnings.warn(f"pplmon: {path} is damaged. {' '.join(notes)}", stacklevel=2)
    chosen = runs.chosen(run)
    return [_revived(row) for (place, *_), row in kept.items() if place in chosen]


def _identity(row: Mapping[str, Any], number: int) -> tuple[Any, ...]:
    """Return the fields by which a row repeats another."""
    address = (row["kind"], row.get("prefix"), row.get("stage"), row.get("step"))
    if row["kind"] in ("judged", "report", "worst"):
        return address
    if row["kind"] == "alert":
        # Two rules of one kind may fire at one step: on two metrics, or at two thresholds.
        return (*address, row["rule"], row.get("metric"), row.get("threshold"))
    return (row["kind"], number)


def _revived(row: dict[str, Any]) -> dict[str, Any]:
    if row["kind"] not in KINDS:  # the description of a run, or of a later version
        return row
    revive(row, ("value", "threshold"))
    revive(row.get("numbers", {}))
    for evidence in (*row.get("worst", ()), *row.get("worst_sequences", ())):
        revive(evidence, _LOSSES)  # by name: "NaN" may well be the text of a token
    return row
