"""Compare the noise of one number in two runs: on one order of the data it is nearly the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import sub
from typing import Any

from pplmon.alerts.rules.baseline import spread

WINDOW = 128  # changes from one value to the next that tell it
LEAST, EVERY = 64, 16  # so many before it is told; values between two looks
# Correlations: from ALIKE on the difference is quieter by a third or more; below UNLIKE it is noisier than the run itself.
ALIKE, UNLIKE = 0.8, 0.5


class Noise:
    """The changes from one value to the next in two runs, and how they correlate.

    Attributes:
        correlation: of the newest changes, robust: a few values far out do not count; ``None`` while too few are known.
        alike: the two runs show the same noise, as on one order of the data.
        own: the robust standard deviation of one value of this run, without its trend.
        difference: that of the difference of the two.
    """

    def __init__(self) -> None:
        self.correlation: float | None = None
        self.alike = False
        self.own = self.difference = 0.0
        self._pairs: list[tuple[float, float]] = []
        self._new = 0

    def add(self, value: float, earlier: float) -> bool:
        """Add a value of each run; return True if the correlation was told anew."""
        self._pairs.append((value, earlier))
        self._new += 1
        if self._new < EVERY or len(self._pairs) <= LEAST:
            return False
        self._new = 0
        del self._pairs[: -WINDOW - 1]
        self._look()
        return True

    def _look(self) -> None:
        ours, theirs = (_changes(column) for column in zip(*self._pairs))
        one, two = spread(sorted(ours)), spread(sorted(theirs))
        self.own, self.difference = one / 2**0.5, spread(sorted(map(sub, ours, theirs))) / 2**0.5
        if not one or not two:  # a number that hardly ever changes tells nothing
            self.correlation, self.alike = 0.0, False
            return
        plus = spread(sorted(a / one + b / two for a, b in zip(ours, theirs))) ** 2
        minus = spread(sorted(a / one - b / two for a, b in zip(ours, theirs))) ** 2
        self.correlation = (plus - minus) / (plus + minus)
        self.alike = self.correlation > (UNLIKE if self.alike else ALIKE)

    def state_dict(self) -> dict[str, Any]:
        """Return its state as plain values."""
        told = None if self.correlation is None else [self.correlation, self.own, self.difference]
        return {"pairs": [*map(list, self._pairs)], "new": self._new, "told": told, "alike": self.alike}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self.alike = bool(state["alike"])
        self._pairs, self._new = [(float(a), float(b)) for a, b in state["pairs"]], int(state["new"])
        if state["told"] is not None:
            self.correlation, self.own, self.difference = map(float, state["told"])


def _changes(values: Sequence[float]) -> list[float]:
    return [*map(sub, values[1:], values)]
