"""The journal: every number and alert, one JSON object per line in ``<directory>/pplmon.jsonl``.

It needs no service and survives a kill: alerts are on the disk before any other sink has them. Lines are strict
JSON, so NaN and ±inf stand there as the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pplmon.alerts import Alert
from pplmon.alerts.usual import read_for_blame
from pplmon.report.numbers import CORE
from pplmon.report.report import Report
from pplmon.report.strict_json import plain
from pplmon.sinks.base import Sink
from pplmon.sinks.journal_bound import Bound, check_bound
from pplmon.sinks.journal_file import JournalFile, close_all, open_to_append

FILE_NAME = "pplmon.jsonl"
_BESIDE = ("worst_1pct_loss", "max_token_excess", "relative_cross_entropy", "tokens", "invalid_targets")
SERIES = tuple(dict.fromkeys((*CORE, *_BESIDE)))


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
        self._file = JournalFile(Path(directory) / FILE_NAME)
        self._series = SERIES if series is None else tuple(series)
        self._prefix = prefix
        self._adds_watched = series is None
        most = check_bound(max_megabytes)
        self._bound = None if most is None else Bound(most)
        self.is_bounded = most is not None

    @property
    def path(self) -> Path:
        """Return the path of the file."""
        return self._file.path

    @property
    def files(self) -> list[str]:
        """Return the path of the file."""
        return [str(self.path.absolute())]

    def start(self, run: Mapping[str, Any]) -> None:
        """Write the description of the run: versions, settings, rules."""
        self._file.write()  # what was judged before, by the series of then
        if self._adds_watched:
            self._series = tuple(dict.fromkeys((*self._series, *run.get("watched", ()))))
        # A row's "prefix" is this journal's, by which two monitors in one file are told apart.
        self._file.write(self._line({"kind": "run"} | {n: v for n, v in run.items() if n not in ("kind", "prefix")}))
        self._file.flush()

    def judged(self, report: Report) -> None:
        """Take the series that rules watch. It is written with the next report or alert, or some read-outs later."""
        self._file.later(partial(self._judged_line, report))

    def _judged_line(self, report: Report) -> bytes:
        groups = read_for_blame(report) if self._adds_watched else ()
        more = (*groups, *report.own)
        series = dict.fromkeys((*self._series, *more)) if more else self._series
        numbers = {name: value for name in series if (value := report.numbers.get(name)) is not None}
        lacking = {"ranks_missing": report.ranks_missing} if report.ranks_missing else {}
        return self._line({"kind": "judged", "step": report.step, "stage": report.stage, **lacking, "numbers": numbers})

    def remember(self, step: int, memory: Callable[[], Mapping[str, Any]]) -> None:
        """Hold the bound, once a step is judged: mark now and then what rules remember, and cut the file at such a mark."""
        size = None if self._bound is None else self._file.size()
        if self._bound is None or size is None:
            return
        if self._bound.marks(size):
            self._file.write(self._line({"kind": "mark", "step": step, "memory": memory()}))
        if self._bound.cuts(size) and not self._file.is_shared:
            close_all(self.path)  # another monitor of this process may write it
            self._bound.cut(self.path, self._prefix)

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Write every number and the evidence, even if fewer are logged elsewhere."""
        self._file.write(self._line({"kind": "report"} | _report_fields(report)))
        self._file.flush()

    def alert(self, alert: Alert) -> None:
        """Write an alert through to the disk, because the run may crash next."""
        fields = _known(asdict(alert))
        for name in ("worst", "worst_sequences"):
            fields[name] = [_known(row) for row in fields[name]]
        self._file.write(self._line({"kind": "alert"} | fields))
        self._file.sync()

    def finished(self, report: Report) -> None:
        """Write the run's worst, as kind ``worst``."""
        self._file.write(self._line({"kind": "worst"} | _report_fields(report)))
        self._file.flush()

    def local(self, report: Report, rank: int, kind: str = "local") -> None:
        """Write the totals that one rank could not merge, to ``pplmon.rank{r}.jsonl`` beside the journal.

        Kind ``merged`` is a window of all ranks, kept because the writing rank may be lost.
        """
        if self._file.is_inherited:
            return
        own = open_to_append(self._own_path(rank))
        with own:
            own.write(_line({"kind": kind, "rank": rank} | _report_fields(report)))
            own.flush()
            os.fsync(own.fileno())

    def flush(self) -> None:
        """Write what is buffered through to the disk."""
        self._file.sync()

    def move_to_own(self, rank: int) -> None:
        """Write everything to ``pplmon.rank{r}.jsonl`` from here on: another rank's is the journal."""
        self.close()
        self._file = JournalFile(self._own_path(rank))

    def close(self) -> None:
        """Close the file. A later write opens it again."""
        self._file.close()

    def _own_path(self, rank: int) -> Path:
        return self.path.with_name(f"pplmon.rank{rank}.jsonl")

    def _line(self, row: Mapping[str, Any]) -> bytes:
        return _line({**row, "prefix": self._prefix} if self._prefix else row)


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
