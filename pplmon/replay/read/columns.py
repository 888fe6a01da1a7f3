"""Choose the columns of a log that hold numbers: log keys under any prefix, usual names, and those the user maps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pplmon.replay.read.loss_names import known_name
from pplmon.replay.read.series import Given, ReplayError, Row
from pplmon.report.declared import check_name, find
from pplmon.report.log_keys import split_key
from pplmon.sinks.left_out import LeftOut

STAGES = ("train", "val", "test")
Place = tuple[str, str]  # stage, name
_UNDECLARED = re.compile(r"(?:.*/)?(train|val|test)/([^/]+/.+)")  # of an extra that declares nothing; it has a "/"
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")


def parse_map(text: str) -> tuple[str, Place]:
    """Read ``column=name`` or ``column=stage/name``.

    Raises:
        ReplayError: it has another form, or no number has that name.
    """
    column, equals, target = text.rpartition("=")
    if not equals or not column or not target:
        raise ReplayError(
            f"--map wants COLUMN=NUMBER, as in loss=cross_entropy or loss=val/cross_entropy; got {text!r}"
        )
    stage, slash, name = target.partition("/")
    if not slash or stage not in STAGES:
        stage, name = "train", target
    try:
        check_name(name)
    except ValueError as error:
        raise ReplayError(f"--map {text}: {error}") from None
    return column, (stage, name)


def choose(columns: Sequence[str], mapped: Mapping[str, Place]) -> tuple[dict[str, Place], list[str]]:
    """Return the number that each column holds, and notes for the user about the choice.

    Raises:
        ReplayError: a mapped column is not there.
    """
    for column in mapped:
        if column not in columns:
            near = get_close_matches(column, columns, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ReplayError(f"--map names the column {column!r}, which is not there: {hint}{_list(columns)}")
    places: dict[Place, list[str]] = {}
    for column in columns:
        place = mapped.get(column) or _ours(column) or known_name(column)
        if place is not None:
            places.setdefault(place, []).append(column)
    notes: list[str] = []
    chosen: dict[str, Place] = {}
    for place, rivals in places.items():
        # The user's mapping first; then our key, which has another name beside a like key of the module.
        rivals.sort(key=lambda c: (c not in mapped, not c.startswith("pplmon/"), _ours(c) is None, len(c)))
        chosen[rivals[0]] = place
        if len(rivals) > 1:
            others = ", ".join(map(repr, rivals[1:]))
            notes.append(f"{'/'.join(place)} is read from {rivals[0]!r}, not from {others}; --map chooses another.")
    if not chosen and len(columns) == 1:
        chosen[columns[0]] = ("train", "cross_entropy")
        notes.append(f"The only column, {columns[0]!r}, is taken for cross_entropy; --map says otherwise.")
    for column, (stage, name) in chosen.items():
        if column not in mapped and _ours(column) is None and column in places.get((stage, name), ()):
            notes.append(f"{column!r} is taken for {stage}/{name}; --map says otherwise.")
        if name == "perplexity" and (stage, "cross_entropy") not in chosen.values():
            notes.append(f"{stage}/cross_entropy is the logarithm of {column!r}.")
    return chosen, notes


def rows_of(
    cells: Iterable[tuple[int, Mapping[str, Any]]], chosen: Mapping[str, Place], left_out: LeftOut
) -> list[Row]:
    """Return rows by step, train before val: the last of a repeated value counts (a resumed run repeats steps)."""
    found: dict[tuple[int, int], Given] = {}
    taken = set(chosen.values())
    from_perplexity = {stage for stage, name in taken if name == "perplexity" and (stage, "cross_entropy") not in taken}
    for step, values in cells:
        for column, (stage, name) in chosen.items():
            value = number(values.get(column))
            if value is None:
                if values.get(column) not in (None, ""):
                    left_out.add(f"a value of {column!r} that is no number", values[column])
                continue
            numbers = found.setdefault((step, STAGES.index(stage)), Given())
            if name in numbers:
                left_out.add("a value whose step stands there once more, as after a resume; the later one counts", step)
            numbers[name] = value
            if name == "perplexity" and stage in from_perplexity:
                numbers["cross_entropy"] = math.log(value) if value > 0 else math.nan
    return [Row(step, STAGES[stage], numbers) for (step, stage), numbers in sorted(found.items(), key=lambda i: i[0])]


def number(value: Any) -> float | int | None:
    """Return a cell as a number, a decimal comma among them; ``None`` where there is none. "NaN" and "inf" are values."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None
    if isinstance(value, float):
        return value
    if not isinstance(value, str):
        return None
    text = value.strip()
    if _INTEGER.fullmatch(text):
        return int(text)
    if _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    try:
        return float(text)
    except ValueError:
        return None


def _ours(column: str) -> Place | None:
    """Return the place of a number under pplmon's own name."""
    if find(column) is not None:
        return "train", column
    key = split_key(column)
    if key is not None:
        return (key.stage, key.name) if find(key.name) is not None and key.loader is None else None
    extra = _UNDECLARED.fullmatch(column)
    return None if extra is None or "dataloader_idx_" in column else (extra[1], extra[2])


def _list(columns: Sequence[str]) -> str:
    shown = ", ".join(map(repr, columns[:30]))
    return f"there are {shown}{' …' if len(columns) > 30 else ''}" if columns else "there is none"
