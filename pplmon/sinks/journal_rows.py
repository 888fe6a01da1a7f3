"""Check rows of a journal, which a disk or an editor may have damaged: one that lacks what its readers need is no row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from math import fsum
from types import NoneType, UnionType
from typing import Any, TypeGuard, get_args, get_origin, get_type_hints

from pplmon.alerts import Alert
from pplmon.alerts.alert import SEVERITIES
from pplmon.report.strict_json import NON_FINITE
from pplmon.report.worst import WorstSequence, WorstToken
from pplmon.sinks.left_out import LeftOut

LARGEST = 2**63  # integers are of 64 bits
HIGHEST_BUCKET = 255 << 3  # of a histogram's eighths of an octave: the first that is no finite loss
_NUMBERS = ("judged", "report", "worst", "local", "merged")  # kinds with a step, a stage and numbers
KINDS = (*_NUMBERS, "alert")  # what is checked; a row of another kind is taken as it is

Check = Callable[[Any], bool]


def problem(row: dict[str, Any]) -> str | None:
    """Return why a row of a journal cannot be read; ``None`` for one that can."""
    kind = row.get("kind")
    if kind.__class__ is not str:
        return "a row whose kind is no text"
    if "prefix" in row and row["prefix"].__class__ is not str:
        return "a row whose prefix is no text"
    if kind in _NUMBERS:
        return _of_numbers(row)
    if kind == "alert" and not _fits(Alert)(row):
        return "an alert that lacks a rule or a text, or has a field of another type"
    return None


def sound(rows: Iterable[dict[str, Any]], left_out: LeftOut) -> Iterator[dict[str, Any]]:
    """Yield the rows of a journal that can be read, without numbers that are none; count the others."""
    for row in rows:
        if _is_usual(row):
            yield row
            continue
        if "kind" not in row:
            continue
        why = problem(row)
        if why is not None:
            left_out.add(why)
            continue
        if row["kind"] in _NUMBERS:
            for name in clean(row["numbers"]):
                left_out.add("a number that is none", name)
        yield row


def clean(numbers: dict[str, Any]) -> list[str]:
    """Take out what is no number, in place, and return the names of that."""
    bad = [name for name, value in numbers.items() if value is not None and not _is_number(value)]
    for name in bad:
        del numbers[name]
    return bad


def _is_usual(row: dict[str, Any]) -> bool:
    """Return True for a sound judged row without a number that is text, as nearly all rows are: at a fifth of the time."""
    if len(row) != 4 or row.get("kind") != "judged":
        return False
    step, stage, numbers = row.get("step", -1), row.get("stage"), row.get("numbers")
    if (
        step.__class__ is not int
        or not 0 <= step < LARGEST
        or stage.__class__ is not str
        or not isinstance(numbers, dict)
    ):
        return False
    try:
        fsum(numbers.values())
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _of_numbers(row: dict[str, Any]) -> str | None:
    step = row.get("step", -1)
    if not _is_integer(step) or step < 0:
        return "a row whose step is no whole number of at least 0"
    if row.get("stage").__class__ is not str:
        return "a row whose stage is no text"
    if row.get("numbers").__class__ is not dict:
        return "a row whose numbers are no object"
    for name, kind in (("worst", WorstToken), ("worst_sequences", WorstSequence)):
        if name in row and not (isinstance(row[name], list) and all(map(_fits(kind), row[name]))):
            return f"a row whose {name} are no list of objects with fields of their types"
    if "histogram" in row and not _is_histogram(row["histogram"]):
        return "a row whose histogram is none"
    return None


def _is_number(value: Any) -> bool:
    if value.__class__ is str:
        return value in NON_FINITE
    return value.__class__ is float or _is_integer(value)


def _is_integer(value: Any) -> TypeGuard[int]:
    return value.__class__ is int and -LARGEST <= value < LARGEST


def _is_histogram(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("counts"), list) or not value["counts"]:
        return False
    first, counts = value.get("first"), value["counts"]
    return (
        _is_integer(first)
        and 0 <= first < HIGHEST_BUCKET - len(counts)
        and all(_is_integer(count) and count >= 0 for count in counts)
    )


@cache
def _fits(kind: type) -> Check:
    """Return the check of an object that was written from this dataclass: it has what has no default, and types fit."""
    hints = get_type_hints(kind)
    checks = {field.name: _check(hints[field.name]) for field in fields(kind)}
    needed = [field.name for field in fields(kind) if field.default is MISSING]

    def check(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and all(name in value for name in needed)
            and value.get("severity", "info") in SEVERITIES
            and all(name not in checks or checks[name](item) for name, item in value.items())
        )

    return check


def _check(hint: Any) -> Check:
    """Return the check of one field, from its annotation."""
    if get_origin(hint) is UnionType:
        checks = [_check(one) for one in get_args(hint)]
        return lambda value: any(check(value) for check in checks)
    if get_origin(hint) is tuple:
        each = _check(get_args(hint)[0])
        return lambda value: isinstance(value, list) and all(map(each, value))
    if is_dataclass(hint) and isinstance(hint, type):
        return _fits(hint)
    return {float: _is_number, int: _is_integer, NoneType: lambda v: v is None}.get(hint, lambda v: v.__class__ is str)
