"""Add pplmon's numbers to the rows that a ``Trainer`` logs, so that each of its ``report_to`` targets gets them once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Trainer

from pplmon.trainers.taken_keys import TakenKeys


class Rows:
    """The numbers of a window on their way into a row: that of the trainer's own loss, or one of their own."""

    def __init__(self, trainer: Any, prefix: str) -> None:
        self._trainer, self._prefix = trainer, prefix
        self._waiting: dict[str, float] = {}
        self._keys = TakenKeys("trainer", "pplmon.watch(trainer, ")

    def put(self, numbers: Mapping[str, float]) -> None:
        """Keep numbers for the next row."""
        self.send()
        self._waiting = dict(numbers)

    def send(self) -> None:
        """Log what still waits as a row of its own: the trainer had none at this step."""
        waiting, self._waiting = self._waiting, {}
        if waiting:
            row: dict[str, float] = {}
            self.add(row, "", waiting)
            # Not by a method of a subclass: TRL's would add its own numbers here, and lack them in its own row.
            Trainer.log(self._trainer, row)

    def log(self, log: Any, logs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Log a row of the trainer's, by ``log``, with what waits for it."""
        waiting, self._waiting = self._waiting, {}
        self.add(logs, "", waiting)
        result = log(logs, *args, **kwargs)
        for name, value in waiting.items():
            if logs.get(self._key("", name)) != value:  # a subclass added its own of this name on the way
                self._keys.give_way(self._key("", name))
        return result

    def add(self, row: dict[str, Any], head: str, numbers: Mapping[str, float]) -> None:
        """Add numbers to a row, under the keys ``{head}{prefix}{name}``; one that is there already keeps its place."""
        for name, value in numbers.items():
            if f"{head}{self._prefix}{name}" in row:
                self._keys.give_way(f"{self._prefix}{name}")
            row[self._key(head, name)] = value

    def _key(self, head: str, name: str) -> str:
        return f"{head}{self._keys.free(f'{self._prefix}{name}')}"
