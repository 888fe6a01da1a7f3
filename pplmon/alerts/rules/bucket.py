"""A leaky bucket: many values that are a little too high count as one that is far too high."""

from __future__ import annotations

from typing import Any


class Bucket:
    """Gains the height of each value above what is usual, at most ``clip``, and leaks ``leak`` a value."""

    def __init__(self, clip: float, leak: float) -> None:
        self.clip, self.leak = clip, leak
        self.fill = 0.0
        self.before = (0.0, 1.0)  # what was usual (middle, scale) when it began to fill

    def add(self, height: float, middle: float, scale: float) -> float:
        """Add one value's height, in scales; return the fill."""
        fill = self.fill + min(height, self.clip) - self.leak
        if not fill > 0.0:  # nor NaN, the height of a number beyond what floats can tell apart
            fill = 0.0
        elif self.fill == 0.0:
            self.before = (middle, scale)
        self.fill = fill
        return fill

    def empty(self) -> None:
        """Empty it."""
        self.fill = 0.0

    def state(self) -> list[Any]:
        """Return what it holds, as plain values."""
        return [self.fill, *self.before]

    def restore(self, state: list[Any]) -> None:
        """Restore the state that ``state`` returned."""
        self.fill, self.before = float(state[0]), (float(state[1]), float(state[2]))
