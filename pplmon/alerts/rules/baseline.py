"""The usual value of a number, how much it varies, and how long its noise lasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import sub
from typing import Any

QUARTILES_TO_SD = 1 / 1.349  # the distance between the quartiles of a normal distribution is 1.349 standard deviations
LEAST_RELATIVE, LEAST_SCALE = 1e-3, 1e-6
HARD_SHARE, HARD_SCALES = 32, 4.0  # one value in 32 may lie farther out than four scales
LEAST_HARD = 3  # so many make a habit: two hard batches among the first hundred do not widen the scale
CLIP = 4.0  # scales; a value farther out enters the mean of its block as if it lay there
LEAST_MEANS, USUAL_MEMORY = 8, 1.5  # changes between block means that tell the memory; the ratio that is usual
OF_LEVEL = 2 / 3  # the least scale, as a part of how much the values of the level vary
FALLS_ON = 1.5  # times the trend that a falling number may follow until it is a drop


class Baseline:
    """Predicts the next value, learnt from the values before the newest ``gap``, and renewed every ``gap / 2``.

    - ``middle`` is the median of a quarter of the window: it has left a jump behind after 48 values.
    - ``scale`` is a robust standard deviation: of the changes from one value to the one ``gap`` later, so that neither a
      trend nor a jump widens it; at least two thirds of that of the newest level, for a period of the gap would show no
      change. Where one value in 32 lies more than four scales out, hard batches are usual, and it is larger.
    - ``memory`` is how much longer a level has to last until it is no chance: the ratio of the variance of the means of half
      a gap to what it were if every value were a new draw, over 1.5; at least 1.
    - ``long_middle`` is the median of four windows, the newest half a window left out, since the last ``forget``.
    """

    def __init__(self, window: int = 128, gap: int = 16) -> None:
        self._gap, self._lag, self._block = gap, max(1, gap), max(1, gap // 2)
        self._level, self._changes = max(4, window // 4), max(4, window)
        self._kept = self._gap + self._changes + self._lag
        self._means_kept = max(LEAST_MEANS, 4 * window // self._block) + 2
        self._young, self._least = 3 * gap // self._block, max(1, 3 * window // 2 // self._block)
        self.least = self._least_then = LEAST_SCALE  # that the scale can be; that it could be at the last renewal
        self._begin()

    def _begin(self) -> None:
        self.middle: float | None = None  # None: too little is known
        self.long_middle: float | None = None
        self.scale = self.scale_below = LEAST_SCALE  # upwards, downwards
        self.falling = 0.0  # where the middle would be by now if it went on falling, and half as fast again
        self.memory = 1.0
        self._narrow = LEAST_SCALE  # the scale where hard batches are not usual
        self._values: list[float] = []
        self._means: list[float] = []
        self._new_means = 0  # since ``forget``
        self._pending = 0  # values since the last renewal

    @property
    def needs(self) -> int:
        """Return how many values come before the first middle."""
        least = self._gap + self._lag + self._level
        return least + -least % self._block  # it is renewed once a block

    def push(self, value: float) -> None:
        """Add one finite value."""
        self._values.append(value)
        self._pending += 1
        if self._pending == self._block:
            self._pending = 0
            del self._values[: -self._kept]
            self._renew()

    def forget(self) -> None:
        """Let ``long_middle`` begin anew: the level has changed, and somebody was told."""
        self._new_means = 0
        self.long_middle = None

    def newest(self, count: int) -> list[float]:
        """Return the last ``count`` values, including the gap."""
        return self._values[-count:]

    def state_dict(self) -> dict[str, Any]:
        """Return its state as plain values."""
        return {
            "values": [*self._values],
            "means": [*self._means],
            "new_means": self._new_means,
            "pending": self._pending,
            **({"least": self._least_then} if self._least_then != LEAST_SCALE else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[float]) -> None:
        """Restore the state that ``state_dict`` returned, or learn from plain values, the state of version 0.1."""
        self._begin()
        if not isinstance(state, Mapping):
            for value in state:
                self.push(value)
            return
        self.least = float(state.get("least", LEAST_SCALE))
        values, self._pending = [*state["values"]], int(state["pending"])
        self._values = values[: len(values) - self._pending]
        self._means, self._new_means = [*state["means"]], int(state["new_means"])
        self._look_back(self._values[: len(self._values) - self._gap])
        self._values = values

    def _renew(self) -> None:
        old = self._values[: len(self._values) - self._gap]
        if old:
            self._expect(old)
            self._means.append(self._mean(old[-self._block :]))
            del self._means[: -self._means_kept]
            self._new_means += 1
            self._remember()

    def _look_back(self, old: Sequence[float]) -> None:
        if old:
            self._expect(old)
            self._remember()

    def _expect(self, old: Sequence[float]) -> None:
        """Tell middle and scale from single values."""
        self._least_then = self.least
        if len(old) < self._lag + self._level:
            return
        newest = old[-self._level :]
        level = sorted(newest)
        self.middle = _median(level)
        changes = sorted(map(sub, old[self._lag :], old))
        trend, hard = _median(changes), min(len(changes), max(LEAST_HARD, len(changes) // HARD_SHARE))
        scale = max(spread(changes) / 2**0.5, LEAST_RELATIVE * abs(self.middle), self.least)
        wide = OF_LEVEL * spread(level)
        if wide > scale:  # seldom; less the trend it may be less
            slope = trend / self._lag
            straight = sorted(value - slope * place for place, value in enumerate(newest))
            scale = max(scale, min(wide, OF_LEVEL * spread(straight)))
        self.scale = max(scale, (changes[-hard] - trend) / HARD_SCALES)
        self.scale_below = max(scale, (trend - changes[hard - 1]) / HARD_SCALES)
        self._narrow = scale
        age = self._level / 2 + self._gap + self._block / 2
        self.falling = self.middle + min(0.0, trend) / self._lag * age * FALLS_ON

    def _mean(self, block: Sequence[float]) -> float:
        if self.middle is not None:
            low, high = self.middle - CLIP * self._narrow, self.middle + CLIP * self._narrow
            if min(block) < low or max(block) > high:
                block = [min(max(value, low), high) for value in block]
        count = len(block)
        return sum([value / count for value in block])  # a sum of perplexities may overflow

    def _remember(self) -> None:
        """Tell the memory and the long middle from block means."""
        if self.middle is None:
            return
        changes = sorted(map(sub, self._means[2:], self._means))
        if len(changes) >= LEAST_MEANS:
            ratio = spread(changes) / self._narrow
            variance = ratio * ratio / 2  # of a mean: a change is of two
            self.memory = max(1.0, self._block * variance / USUAL_MEMORY)
        means = self._means[-self._new_means :] if self._new_means else []
        means = sorted(means[: len(means) - self._young])
        self.long_middle = _median(means) if len(means) >= self._least else None


def _median(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def spread(ordered: Sequence[float]) -> float:
    """Return a robust standard deviation, from the quartiles."""
    return (ordered[len(ordered) * 3 // 4] - ordered[len(ordered) // 4]) * QUARTILES_TO_SD
