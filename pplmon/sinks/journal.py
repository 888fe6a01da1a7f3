"""The journal: every number and alert, one JSON object per line in ``<directory>/pplmon.jsonl``.

It needs no service and survives a kill: alerts are on the disk before any other sink has them. Lines are strict
JSON, so NaN and ±inf stand there as the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakSet

from pplmon.alerts import Alert
from pplmon.alerts.usual import read_for_blame
from pplmon.report.declared import learn
from pplmon.report.numbers import CORE
from pplmon.report.report import Report
from pplmon.report.strict_json import plain, revive
from pplmon.sinks.base import Sink
from pplmon.sinks.file_lock import has_another_writer
from pplmon.sinks.journal_bound import Bound, check_bound
from pplmon.sinks.journal_rows import KINDS, sound
from pplmon.sinks.journal_runs import JournalRuns
from pplmon.sinks.json_lines import no_collection, objects
from pplmon.sinks.left_out import LeftOut

FILE_NAME = "pplmon.jsonl"
_BESIDE = ("worst_1pct_loss", "max_token_excess", "relative_cross_entropy", "tokens", "invalid_targets")
SERIES = tuple(dict.fromkeys((*CORE, *_BESIDE)))
_LOSSES = ("loss", "context_losses", "predicted_probability")  # fields of the worst that may be non-finite


class Journal(Sink):
    """A sink that appends to ``<directory>/pplmon.jsonl``; the directory is made on first use.

    ``series`` names the numbers of a ``judged`` row, one of which is written per read-out: keep it compact. ``None``
    takes ``SERIES``, the numbers that the monitor's rules watch, and those that tell which group moved, for ``pplmon replay``. Numbers that
    the user logs are always in it.
    ``prefix`` tells the rows of two monitors in one file apart.
    ``max_megabytes`` bounds the file: beyond it the oldest ``judged`` rows go. A replay begins where they end, exactly.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        series: Sequence[str] | None = None,
        prefix: str = "",
        max_megabytes: float | None = None,
    ) -> None:
        self._path = Path(directory) / FILE_NAME
        self._series = SERIES if series is None else tuple(series)
        self._prefix = prefix
        self._adds_watched = series is None
        most = check_bound(max_megabytes)
        self._bound = None if most is None else Bound(most)
        self.is_bounded = most is not None
        self._others: bool | None = None  # True: another process writes the file, too
        self._file: BinaryIO | None = None
        self._inherited = False  # by a fork of the process that writes

    @property
    def path(self) -> Path:
        """Return the path of the file."""
        return self._path

    @property
    def files(self) -> list[str]:
        """Return the path of the file."""
        return [str(self._path.absolute())]

    def start(self, run: Mapping[str, Any]) -> None:
        """Write the description of the run: versions, settings, rules."""
        if self._adds_watched:
            self._series = tuple(dict.fromkeys((*self._series, *run.get("watched", ()))))
        # A row's "prefix" is this journal's, by which two monitors in one file are told apart.
        self._write({"kind": "run"} | {n: value for n, value in run.items() if n not in ("kind", "prefix")}).flush()

    def judged(self, report: Report) -> None:
        """Write the series that rules watch. It is flushed with the next report or alert."""
        groups = read_for_blame(report) if self._adds_watched else ()
        more = (*groups, *report.own)
        series = dict.fromkeys((*self._series, *more)) if more else self._series
        numbers = {name: value for name in series if (value := report.numbers.get(name)) is not None}
        lacking = {"ranks_missing": report.ranks_missing} if report.ranks_missing else {}
        self._write({"kind": "judged", "step": report.step, "stage": report.stage, **lacking, "numbers": numbers})

    def remember(self, step: int, memory: Callable[[], Mapping[str, Any]]) -> None:
        """Hold the bound, once a step is judged: mark now and then what rules remember, and cut the file at such a mark."""
        if self._bound is None or self._file is None:
            return
        size = self._file.tell()
        if self._bound.marks(size):
            self._write({"kind": "mark", "step": step, "memory": memory()})
        if self._bound.cuts(size) and not self._others:
            for journal in list(_open):  # of another monitor in this process
                if journal.path.absolute() == self._path.absolute():
                    journal.close()
            self._bound.cut(self._path, self._prefix)

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Write every number and the evidence, even if fewer are logged elsewhere."""
        self._write({"kind": "report"} | _report_fields(report)).flush()

    def alert(self, alert: Alert) -> None:
        """Write an alert through to the disk, because the run may crash next."""
        fields = _known(asdict(alert))
        for name in ("worst", "worst_sequences"):
            fields[name] = [_known(row) for row in fields[name]]
        self._write({"kind": "alert"} | fields)
        self.flush()

    def finished(self, report: Report) -> None:
        """Write the run's worst, as kind ``worst``."""
        self._write({"kind": "worst"} | _report_fields(report)).flush()

    def local(self, report: Report, rank: int, kind: str = "local") -> None:
        """Write the totals that one rank could not merge, to ``pplmon.rank{r}.jsonl`` beside the journal.

        Kind ``merged`` is a window of all ranks, kept because the writing rank may be lost.
        """
        if self._inherited:
            return
        own = _open_to_append(self._own_path(rank))
        with own:
            own.write(_line({"kind": kind, "rank": rank} | _report_fields(report)))
            own.flush()
            os.fsync(own.fileno())

    def flush_buffer(self) -> None:
        """Hand what is buffered to the system, so that a forked child inherits none of it."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.flush()

    def let_go(self) -> None:
        """Write nothing any more that this process inherited from the one that forked it."""
        self._inherited, self._file = True, None

    def flush(self) -> None:
        """Write what is buffered through to the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def move_to_own(self, rank: int) -> None:
        """Write everything to ``pplmon.rank{r}.jsonl`` from here on: another rank's is the journal."""
        self.close()
        self._path = self._own_path(rank)

    def _own_path(self, rank: int) -> Path:
        return self._path.with_name(f"pplmon.rank{rank}.jsonl")

    def close(self) -> None:
        """Close the file. A later write opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _write(self, row: Mapping[str, Any]) -> BinaryIO:
        if self._inherited:
            return io.BytesIO()
        line = _line({**row, "prefix": self._prefix} if self._prefix else row)
        try:
            if self._file is None:
                self._file = _open_to_append(self._path)
                _open.add(self)
                self._look_for_others()
            self._file.write(line)
        except OSError:  # a full disk may have torn the line: the next write opens the file anew, and ends it
            with contextlib.suppress(OSError):
                self.close()
            raise
        return self._file

    def _look_for_others(self) -> None:
        assert self._file is not None
        told, self._others = self._others, has_another_writer(self._file)
        if self._others and not told:
            warnings.warn(
                f"pplmon: another process is writing {self._path} at this moment: the rows of both are in one file, and pages and "
                "replays take those of one for the other's. Give each process a directory of its own.",
                RuntimeWarning,
                stacklevel=2,
            )


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


def _write_before_fork() -> None:
    """Leave nothing buffered that a forked child would write a second time."""
    for journal in list(_open):
        journal.flush_buffer()


def _forget_in_child() -> None:
    """Leave the files to the process that opened them."""
    for journal in list(_open):
        journal.let_go()


_open: WeakSet[Journal] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_write_before_fork, after_in_child=_forget_in_child)


_STRICT = json.JSONEncoder(allow_nan=False)


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        text = _STRICT.encode(row)  # as most are, at a tenth of the time
    except (TypeError, ValueError):
        text = _STRICT.encode(plain(row))
    return text.encode() + b"\n"


def _report_fields(report: Report) -> dict[str, Any]:
    first, counts = report.histogram.eighths()
    return {
        "step": report.step,
        "stage": report.stage,
        "numbers": report.as_dict(),
        "worst": [_known(asdict(token)) for token in report.worst],
        "worst_sequences": [_known(asdict(sequence)) for sequence in report.worst_sequences],
        **({"histogram": {"first": first, "counts": counts}} if counts else {}),
        **({"saturated": True} if report.saturated else {}),
        **({"ranks_missing": report.ranks_missing} if report.ranks_missing else {}),
    }


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _open_to_append(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+b")  # noqa: SIM115 - open for as long as the run
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":  # a kill tore the last line: end it, or ours would be lost with it
            file.write(b"\n")
    return file


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
