"""Strict JSON, which has no NaN and no infinity: they are written as strings and read back as numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def finite_or_text(value: float) -> float | str:
    """Return a finite ``value`` as it is, others as "NaN", "Infinity" or "-Infinity", which strict JSON can hold."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def plain(value: Any) -> Any:
    """Return ``value`` as strict JSON can hold it: non-finite floats, and objects of other types, as strings."""
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return finite_or_text(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    # A rule of the user's own may put a tensor of one element into its alert.
    return plain(value.item()) if hasattr(value, "item") else str(value)


def revive(fields: dict[str, Any], names: Iterable[str] | None = None) -> None:
    """Make "NaN", "Infinity" and "-Infinity" floats again, in place: in these fields, and in the lists among them.

    ``None`` takes every field. Name fields where others may hold a user's text, which could be "NaN".
    """
    for name, value in fields.items() if names is None else [(n, fields[n]) for n in names if n in fields]:
        if value.__class__ is str:
            if value in NON_FINITE:
                fields[name] = NON_FINITE[value]
        elif value.__class__ is list:
            fields[name] = [NON_FINITE.get(v, v) if v.__class__ is str else v for v in value]
