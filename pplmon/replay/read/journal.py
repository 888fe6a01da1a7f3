"""Read a journal as a series: the judged rows of every process that wrote it, with its rules and its alerts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pplmon.replay.read.columns import Place
from pplmon.replay.read.reader import Reader
from pplmon.replay.read.series import Given, ReplayError, Row, Segment, Series
from pplmon.replay.read.text import head, lines, unpacked_name
from pplmon.report.declared import learn
from pplmon.report.strict_json import revive
from pplmon.sinks.journal import FILE_NAME
from pplmon.sinks.journal_rows import sound
from pplmon.sinks.json_lines import no_collection, objects
from pplmon.sinks.left_out import LeftOut


class JournalReader(Reader):
    """Reads pplmon's own journal, whose rows have steps and names of numbers already."""

    kind = "journal"
    pattern = FILE_NAME
    expects = ".jsonl (a journal)"
    order = 10

    def matches(self, file: Path) -> bool:
        name = unpacked_name(file)
        own = name.startswith("pplmon.") and name.endswith(".jsonl")
        return own or (name.endswith(".jsonl") and any("kind" in row for row in objects(head(file), LeftOut())))

    def read(self, path: Path, mapped: Mapping[str, Place], step: str | None) -> Series:
        if mapped or step:
            raise ReplayError(
                f"{path} is a journal: its numbers have their names already, --map and --step are for logs"
            )
        return read_journal_file(path)


def read_journal_file(path: Path) -> Series:
    """Read a journal's file.

    Every row counts, also those that a resumed run repeated: the rules saw them. (``sinks.read_journal`` keeps the last.)

    Raises:
        ReplayError: there is no judged row in it.
    """
    segments: list[Segment] = []
    live: list[dict[str, Any]] = []
    reported: set[tuple[str, str]] = set()
    left_out = LeftOut()
    with no_collection():
        for row in sound(objects(lines(path), left_out), left_out):
            kind = row["kind"]
            if kind == "run":
                learn(row.get("declared"))
                segments.append(_segment(row))
            elif kind == "judged":
                if not segments:  # the file begins in the middle of a run
                    segments.append(Segment())
                segments[-1].rows.append(Row(row["step"], row["stage"], _revived(row["numbers"])))
            elif kind == "alert":
                live.append(_revived(row))
            elif kind == "report":
                reported.update((row["stage"], name) for name in row["numbers"])
    if not any(segment.rows for segment in segments):
        raise ReplayError(
            f"{path} has no row of kind 'judged'. A pplmon.sinks.Journal gets one at every read-out: is this another file, "
            "or did the run end before its first step?"
        )
    return Series(path, "journal", segments, live, frozenset(reported), notes=left_out.notes())


def _segment(row: dict[str, Any]) -> Segment:
    rules, resumed_at, memory = row.get("alerts"), row.get("resumed_at"), row.get("memory")
    return Segment(
        rules=tuple(map(str, rules)) if isinstance(rules, list) else None,
        resumed_at=resumed_at if isinstance(resumed_at, int) else None,
        memory=memory if isinstance(memory, dict) else None,
    )


def _revived(fields: dict[str, Any]) -> Given:
    given = Given(fields)
    revive(given)
    return given
