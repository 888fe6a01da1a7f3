"""Read a journal as a series: the judged rows of every process that wrote it, with its rules and its alerts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pplmon.replay.read.columns import Place as Column
from pplmon.replay.read.reader import Reader
from pplmon.replay.read.series import Given, ReplayError, Row, Segment, Series
from pplmon.replay.read.text import head, lines, unpacked_name
from pplmon.report.declared import learn
from pplmon.report.strict_json import revive
from pplmon.sinks.journal import FILE_NAME
from pplmon.sinks.journal_rows import sound
from pplmon.sinks.journal_runs import JournalRuns, Place
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

    def read(self, path: Path, mapped: Mapping[str, Column], step: str | None) -> Series:
        if mapped or step:
            raise ReplayError(
                f"{path} is a journal: its numbers have their names already, --map and --step are for logs"
            )
        return read_journal_file(path)

    def read_run(self, path: Path, run: str) -> Series:
        return read_journal_file(path, run)


def read_journal_file(path: Path, run: str | None = None) -> Series:
    """Read the last run of a journal's file, or the one of this name.

    Every row counts, also those that a resumed run repeated: the rules saw them. (``sinks.read_journal`` keeps the last.)

    Raises:
        ReplayError: there is no judged row in it, or no run of this name.
    """
    runs = JournalRuns()
    found: dict[Place, list[Segment]] = {}
    live: dict[Place, list[dict[str, Any]]] = {}
    reported: dict[Place, set[tuple[str, str]]] = {}
    left_out = LeftOut()
    with no_collection():
        for row in sound(objects(lines(path), left_out), left_out):
            kind, place = row["kind"], runs.of(row)
            segments = found.setdefault(place, [])
            if kind == "run":
                learn(row.get("declared"))
                segments.append(_segment(row))
            elif kind == "cut":  # what goes before is no longer there: begin with what the rules remembered
                rules = segments[-1].rules if segments else None
                segments[:] = [Segment(rules=rules, memory=row["memory"], cut_at=row["step"])]
                live.pop(place, None)
            elif kind == "judged":
                if not segments:  # the file begins in the middle of a run
                    segments.append(Segment())
                segments[-1].rows.append(Row(row["step"], row["stage"], _revived(row["numbers"])))
            elif kind == "alert":
                live.setdefault(place, []).append(_revived(row))
            elif kind == "report":
                reported.setdefault(place, set()).update((row["stage"], name) for name in row["numbers"])
    try:
        wanted = runs.chosen(run)
    except ValueError as error:
        raise ReplayError(f"--run: {error}") from None
    chosen = [place for place in found if place in wanted]
    segments = [segment for place in chosen for segment in found[place]]
    if not any(segment.rows for segment in segments):
        raise ReplayError(
            f"{path} has no row of kind 'judged'. A pplmon.sinks.Journal gets one at every read-out: is this another file, "
            "did the run end before its first step, or were its rows taken out, by max_megabytes?"
        )
    notes = left_out.notes()
    notes += [_which(runs, run)] if len(runs.names) > len(chosen) else []
    notes += [_cut(segment.cut_at) for segment in segments if segment.cut_at is not None]
    alerts = [row for place in chosen for row in live.get(place, ())]
    numbers = frozenset(pair for place in chosen for pair in reported.get(place, ()))
    return Series(path, "journal", segments, alerts, numbers, notes=notes)


def _which(runs: JournalRuns, run: str | None) -> str:
    names = ", ".join(runs.names)
    which = "this is the last one" if run is None else f"this is {run}"
    return f"The journal holds {len(runs.names)} runs; {which}. --run NAME takes one of {names}."


def _cut(step: int) -> str:
    return (
        f"The journal was kept within max_megabytes: rows judged up to step {step} are gone. The run's own rules go on from what "
        "they remembered there, so that what is left is replayed exactly; rules of --rule begin anew."
    )


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
