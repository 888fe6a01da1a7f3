"""Finds the journals that a page is made of, and reads each run from them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from pplmon.alerts import Alert
from pplmon.page.distribution import Distribution, distribution
from pplmon.page.evidence import alert_of
from pplmon.page.table import Table
from pplmon.replay.read.sources import given, locate
from pplmon.report.declared import is_drawn
from pplmon.report.numbers import CATALOGUE, Value
from pplmon.sinks import read_journal
from pplmon.sinks.dashboards import CHARTS
from pplmon.sinks.journal import FILE_NAME

STAGES = ("train", "val", "test")
LOADER = re.compile(r"dataloader_idx_\d+")
MOST_RUNS = 16  # lines beyond that cannot be told apart
HIGHEST = ("max_sequence_loss", "max_token_loss", "worst_1pct_loss")  # numbers whose highest values are compared
_DRAWN = tuple(dict.fromkeys((*(name for chart in CHARTS for name in chart.names), *HIGHEST, "tokens_seen")))

Row = Mapping[str, Any]  # of a journal


@dataclass(frozen=True)
class Run:
    """One run, as read from its journal."""

    name: str  # tells it from the other runs of the page
    path: Path  # the journal
    written: datetime  # when last
    settings: Row  # of its last process
    tables: dict[str, Table]  # by stage: every read-out, and what only logged windows know
    windows: dict[str, list[Row]]  # by stage: the reports
    alerts: list[Alert]
    worst: Row | None  # the worst of the whole run, once it is over

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return 1 + max((table.steps[-1] for table in self.tables.values() if table.steps), default=-1)

    @cached_property
    def distribution(self) -> Distribution | None:
        """The loss of all tokens over time, where the journal has histograms."""
        return distribution(self.windows.get("train", []))

    def parts(self, stage: str) -> list[str]:
        """The stage, and the stage of each data set where each of several has a pass ("val/wiki"), that have a table."""
        return [name for name in self.tables if name == stage or name.startswith(f"{stage}/")]

    @property
    def own_numbers(self) -> list[str]:
        """Numbers that are not pplmon's: of extras, and logged by the user."""
        return sorted({n for table in self.tables.values() for n in table.columns} - CATALOGUE.keys())


def find(places: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the journals at ``places``: files, or directories that hold one, or several at any depth.

    Raises:
        ReplayError: nothing is there that is a journal.
        ValueError: there are more than a page can compare.
    """
    found: dict[Path, None] = {}
    for place in map(given, places):
        below = [] if (place / FILE_NAME).is_file() or not place.is_dir() else sorted(place.rglob(FILE_NAME))
        for path in below or [_journal(place)]:
            found[path] = None
    if len(found) > MOST_RUNS:
        raise ValueError(f"{len(found)} runs are too many for one page: name at most {MOST_RUNS} of them")
    return list(found)


def left_out(places: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the journals below directories that have one of their own, which ``find`` takes alone."""
    own = [place for place in map(Path, places) if (place / FILE_NAME).is_file()]
    return [path for place in own for path in sorted(place.rglob(FILE_NAME)) if path != place / FILE_NAME]


def read_runs(journals: Sequence[Path], named: str | None = None) -> list[Run]:
    """Return the last run of each journal, or of a single journal the run that is named.

    Two monitors that share a file are two runs, told apart by their prefix.

    Raises:
        ValueError: the journal has no run of that name, or there are several journals.
    """
    if named is not None and len(journals) != 1:
        raise ValueError(
            f"a run's name is one of a single journal, got {len(journals)} journals and the name {named!r}"
        )
    runs = []
    for path, name in zip(journals, names(journals)):
        rows = read_journal(path, named)
        name = name if named is None else f"{name}, run {named}"
        prefixes = dict.fromkeys(row.get("prefix", "") for row in rows) or {"": None}
        for prefix in prefixes:
            own = [row for row in rows if row.get("prefix", "") == prefix]
            runs.append(_run(own, path, name if len(prefixes) == 1 else f"{name} {prefix or '(no prefix)'}"))
    return runs


def names(journals: Sequence[Path]) -> list[str]:
    """Return a short name for each: its directory, without the part that all share."""
    folders = [path.absolute().parent for path in journals]
    if len(folders) == 1:
        return ["/".join(folders[0].parts[-2:]).lstrip("/")]
    shared = Path(os.path.commonpath(folders))
    return [folder.relative_to(shared).as_posix() if folder != shared else folder.name for folder in folders]


def _journal(place: Path) -> Path:
    reader, path = locate(place)
    if reader.kind != "journal":
        raise ValueError(
            f"{path} is no journal: a page is made from {FILE_NAME}, which pplmon.sinks.Journal writes (under Lightning always)"
        )
    return path


def _run(rows: Sequence[Row], path: Path, name: str) -> Run:
    judged: dict[str, list[Row]] = {stage: [] for stage in STAGES}
    windows: dict[str, list[Row]] = {stage: [] for stage in STAGES}
    for row in rows:
        if _is_of_part(row):
            judged.setdefault(row["stage"], []), windows.setdefault(row["stage"], [])
    alerts: list[Alert] = []
    settings: Row = {}
    worst: Row | None = None
    for row in rows:
        kind = row["kind"]
        if kind == "judged" and row["stage"] in judged:
            judged[row["stage"]].append(row)
        elif kind == "report" and row["stage"] in windows:
            windows[row["stage"]].append(row)
        elif kind == "alert":
            alerts.append(alert_of(row))
        elif kind == "worst":
            worst = row
        elif kind == "run":
            settings, worst = row, None  # it goes on
    watched = {alert.metric for alert in alerts if alert.metric is not None}
    tables = {stage: _table(judged[stage], windows[stage], watched) for stage in judged}
    return Run(
        name=name,
        path=path,
        written=datetime.fromtimestamp(path.stat().st_mtime, tz=timezone.utc).astimezone(),
        settings=settings,
        tables={stage: table for stage, table in tables.items() if table.steps},
        windows={stage: sorted(found, key=lambda row: row["step"]) for stage, found in windows.items() if found},
        alerts=sorted(alerts, key=lambda alert: -1 if alert.step is None else alert.step),
        worst=worst,
    )


def _is_of_part(row: Row) -> bool:
    """Return True for a row of one of several data sets; a pass over several loaders is drawn as a whole."""
    stage, slash, part = str(row.get("stage", "")).partition("/")
    return row["kind"] in ("judged", "report") and bool(slash) and stage in STAGES and not LOADER.fullmatch(part)


def _table(judged: Sequence[Row], windows: Sequence[Row], watched: set[str]) -> Table:
    """One row a step: what was read out there, and what only the window that ends there knows.

    What is read out at every step is drawn as read out: a window's value of it covers many steps.
    """
    merged: dict[int, Mapping[str, Value]] = {row["step"]: row["numbers"] for row in judged}
    read_out: Mapping[str, Value] = judged[-1]["numbers"] if judged else {}
    first = min(merged, default=0)  # windows before it have the only values: a bounded journal lost its oldest rows
    for row in windows:
        own = {n: value for n, value in row["numbers"].items() if n not in read_out or row["step"] < first}
        merged[row["step"]] = {**own, **merged.get(row["step"], {})}
    known = {*read_out, *(windows[-1]["numbers"] if windows else ())}
    lines = {name for name in known - CATALOGUE.keys() if not is_drawn(name)}
    return Table.of(merged, dict.fromkeys((*_DRAWN, *sorted(lines | watched))))
