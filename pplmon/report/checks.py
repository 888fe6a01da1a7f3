"""Check settings that several rooms take: each error says what was expected, what came, and the likely fix."""

from __future__ import annotations

from typing import Any


def is_integer(value: Any) -> bool:
    """Return True for an int that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def at_least(name: str, value: Any, least: int = 1, note: str = "") -> int:
    """Return ``value`` if it is an integer of at least ``least``, else raise; ``note`` may say what it counts."""
    if not is_integer(value) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}{note and f' ({note})'}, got {value!r}")
    return int(value)


def check_number(name: str, value: Any) -> float:
    """Return ``value`` as a float if it is a number that a float can hold, else raise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}: {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number of at most 1.8e308, got an integer beyond it") from None


def check_cadence(name: str, value: Any) -> None:
    """Raise for anything but a number of optimizer steps of at least 1."""
    if not is_integer(value):
        raise TypeError(f"{name} must be an integer number of optimizer steps, got {value!r}")
    if value <= 0:
        raise ValueError(f"{name} must be at least 1 optimizer step, got {value}")


def invalid_targets(count: int, size: int, example: int, ignore_index: int | None) -> str:
    """Return the text of the error for targets outside a vocabulary of ``size`` ids; −1 where that is not known."""
    return (
        f"{count} targets are outside the vocabulary{f' [0, {size})' if size >= 0 else ''}, for example {example}; "
        f"ignore_index is {ignore_index}. Does the tokenizer fit the model, and is padding marked by "
        "ignore_index or left out by mask?"
    )
