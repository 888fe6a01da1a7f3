"""The registry of known names: pplmon's own numbers, and those that extras have declared.

An extra declares its numbers once (name, unit, meaning, range). From then on rules, ``numbers=[...]``, log readers and
summaries know them; a journal carries them into processes that have never seen the extra.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any

from pplmon.report.formulas import INF
from pplmon.report.numbers import CATALOGUE, CORE, Number

_NAME = re.compile(r"[A-Za-z_]\w*(/[^/]+)*")


@dataclass(frozen=True)
class Declared:
    """One declared number.

    Attributes:
        number: its name, unit, meaning and range.
        extra: the extra that measures it, as a user writes it: "pplmon.Entropy()".
        owner: the class that declared it, by its full name; "" if it was read from a journal.
    """

    number: Number
    extra: str
    owner: str = ""


# Known without an extra: a Monitor that is given gradients logs it.
GRAD_NORM = Number("optim/grad_norm", "", "the norm of all gradients of an optimizer step, before clipping")
_declared: dict[str, Declared] = {GRAD_NORM.name: Declared(GRAD_NORM, "grad_norm=True", "pplmon")}


def declare(numbers: Iterable[Number], extra: str, owner: str) -> None:
    """Make numbers known everywhere. The same owner may declare them again, as in a notebook cell that is run twice.

    Args:
        numbers: the numbers to declare.
        extra: the extra that measures them, as a user writes it.
        owner: the declaring class, by its full name.

    Raises:
        ValueError: a name is one of pplmon's own, or has another meaning already. TypeError: not a ``Number``.
    """
    for number in numbers:
        before = _declared.get(check_number(number).name)
        if number.name in CATALOGUE:
            raise ValueError(
                f"{extra} declares {number.name!r}, which is a number of pplmon's own; choose another name"
            )
        if before is None or before.owner in ("", owner):
            _declared[number.name] = Declared(number, extra, owner)
        elif before.number != number:
            raise ValueError(
                f"{extra} declares {number.name!r} as {_said(number)}, but {before.extra} has it as {_said(before.number)}; "
                "one name has one meaning: choose another"
            )


def check_number(number: Any) -> Number:
    """Return a number whose name can stand in a log key, or raise."""
    if not isinstance(number, Number):
        raise TypeError(
            f'an extra declares pplmon.Number("name", "unit", "meaning"), got {type(number).__name__}: {number!r}'
        )
    if not isinstance(number.name, str) or not _NAME.fullmatch(number.name):
        raise ValueError(
            f"{number.name!r} cannot be the name of a number: letters, digits and _, then parts behind a / where there are any"
        )
    return number


def find(name: str) -> Number | None:
    """Return the declaration that a name belongs to, or ``None``."""
    own = CATALOGUE.get(name)
    if own is not None:
        return own
    declared = _find(name)
    return None if declared is None else declared.number


def measured_by(name: str) -> str | None:
    """Return the extra that measures a number, as a user writes it; ``None`` where no extra declared the name."""
    declared = _find(name)
    return None if declared is None else declared.extra


def fits(name: str, pattern: str) -> bool:
    """Return True if a name equals the declared one, with any text in place of its braces."""
    if name == pattern:
        return True
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(
        have == want or (want.startswith("{") and want.endswith("}") and bool(have))
        for have, want in zip(parts, wanted)
    )


def is_drawn(name: str) -> bool:
    """Return True for a point of a picture, which is no curve of its own."""
    return "/" in name and any(fits(name, pattern) for pattern, declared in _declared.items() if declared.number.drawn)


def known() -> tuple[str, ...]:
    """Return every known name, pplmon's own first."""
    return (*CATALOGUE, *_declared)


def check_name(name: str) -> None:
    """Raise ``ValueError`` for an unknown name. One with "/" passes: an extra may give it without declaring it."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a number is a str, got {type(name).__name__}")
    if find(name) is None and "/" not in name:
        near = get_close_matches(name, known(), n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"unknown number {name!r}: {hint}known are {', '.join(known())}")


def select(numbers: str | Sequence[str]) -> tuple[str, ...] | None:
    """Resolve ``numbers="core" | "all" | [names]`` to names; ``None`` stands for all."""
    if numbers == "all":
        return None
    if numbers == "core":
        return CORE
    if isinstance(numbers, str):
        raise ValueError(f'numbers must be "core", "all" or a list of names, got {numbers!r}; write [{numbers!r}]')
    for name in numbers:
        check_name(name)
    return tuple(numbers)


def as_rows(numbers: Iterable[Number]) -> list[dict[str, Any]]:
    """Return declarations as plain values for a journal, without fields that have their default."""
    usual = {field.name: field.default for field in fields(Number) if field.default is not MISSING}
    rows = []
    for number in numbers:
        row = {name: value for name, value in asdict(number).items() if name not in usual or value != usual[name]}
        rows.append(row | {"extra": measured_by(number.name)})
    return rows


def learn(rows: Any) -> None:
    """Declare the numbers in rows from ``as_rows``. Names known here keep their meaning; malformed rows are skipped."""
    for row in rows if isinstance(rows, list) else ():
        number = _number(row) if isinstance(row, Mapping) else None
        if number is not None and number.name not in CATALOGUE:
            _declared.setdefault(number.name, Declared(number, str(row.get("extra") or "an extra")))


def _number(row: Mapping[str, Any]) -> Number | None:
    name, unit, meaning = (str(row.get(part, "")) for part in ("name", "unit", "meaning"))
    try:
        low, high = float(row.get("low", 0.0)), float(row.get("high", INF))
        best, drawn = row.get("best"), bool(row.get("drawn"))
        return check_number(Number(name, unit, meaning, low=low, high=high, best=best, drawn=drawn))
    except (TypeError, ValueError, OverflowError):
        return None


def _find(name: str) -> Declared | None:
    exact = _declared.get(name)
    if exact is not None or "/" not in name:
        return exact
    return next((declared for pattern, declared in _declared.items() if fits(name, pattern)), None)


def _said(number: Number) -> str:
    return f"{number.meaning!r} in {number.unit or 'no unit'} from {number.low:g} to {number.high:g}"
