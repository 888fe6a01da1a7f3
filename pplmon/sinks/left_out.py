"""``LeftOut``: counts what a reader passed over, so that nothing is lost in silence."""

from __future__ import annotations

SHOWN = 60  # characters of an example


class LeftOut:
    """Counts what was left out of a file, by kind, with the first example of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, what: str, example: object = "") -> None:
        """Count one more of ``what``, "a row without a step" say; the first ``example`` is kept."""
        self._counts[what] = self._counts.get(what, 0) + 1
        if what not in self._first:
            text = str(example)
            self._first[what] = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"

    def notes(self) -> list[str]:
        """Return one sentence for each kind."""
        return [f"Left out {count:,} ×: {what}{self._example(what)}." for what, count in self._counts.items()]

    def _example(self, what: str) -> str:
        first = self._first[what]
        return f" (the first: {first})" if first else ""
