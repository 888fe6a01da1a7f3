"""The answer of a command: one JSON object for programs, words for people, and an exit code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    """Every exit code of every command."""

    FINE = 0  # done, and nothing is wrong
    FOUND = 1  # done, and something is wrong: the doctor has findings, the demo's corrupted step was not found
    FAILED = 2  # not done: wrong usage, input that cannot be read, a service that cannot be reached


@dataclass(frozen=True)
class Answer:
    """One answer of a command, as JSON and in words: only the one that the user asked for is made."""

    values: Callable[[], Mapping[str, Any]]  # returns the JSON object
    show: Callable[[], None]  # prints it in words
    code: Exit = Exit.FINE


class CommandError(Exception):
    """A command cannot do what it was asked to. The text says why, in a line."""
