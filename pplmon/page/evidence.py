"""Rows of a journal as the objects that they were written from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pplmon.alerts import Alert
from pplmon.report.worst import WorstSequence, WorstToken

Kind = TypeVar("Kind", Alert, WorstSequence, WorstToken)


def alert_of(row: Mapping[str, Any]) -> Alert:
    """Return the alert that a row of kind ``alert`` holds."""
    return _made(Alert, {**row, "worst": tokens_of(row), "worst_sequences": sequences_of(row)})


def tokens_of(row: Mapping[str, Any]) -> tuple[WorstToken, ...]:
    """Return the worst tokens of a row."""
    return tuple(_made(WorstToken, fields) for fields in row.get("worst", ()))


def sequences_of(row: Mapping[str, Any]) -> tuple[WorstSequence, ...]:
    """Return the worst sequences of a row."""
    return tuple(_made(WorstSequence, fields) for fields in row.get("worst_sequences", ()))


def _made(kind: type[Kind], given: Mapping[str, Any]) -> Kind:
    """Make an object of the fields that it has: another version's journal may hold more, or fewer."""
    names = {field.name for field in fields(kind)}
    known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if name in names}
    return kind(**known)
