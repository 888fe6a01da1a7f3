"""A rolling median and MAD: the usual value of a number, and how much it usually varies."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable

MAD_TO_SD = 1.4826  # of a normal distribution
LEAST_RELATIVE, LEAST_SCALE = 1e-3, 1e-6


class Baseline:
    """The ``window`` values before the newest ``gap``, so that a recent spike does not enter its own baseline.

    Kept sorted, so that a step costs a few microseconds whatever the window.
    """

    def __init__(self, window: int, gap: int) -> None:
        self._size, self._gap = window, gap
        self._new: deque[float] = deque()
        self._old: deque[float] = deque()
        self._sorted: list[float] = []

    @property
    def armed(self) -> bool:
        """Return True once half a window is known."""
        return len(self._old) >= self._size // 2

    def push(self, value: float) -> None:
        """Add one finite value."""
        self._new.append(value)
        if len(self._new) <= self._gap:
            return
        entering = self._new.popleft()
        self._old.append(entering)
        insort(self._sorted, entering)
        if len(self._old) > self._size:
            del self._sorted[bisect_left(self._sorted, self._old.popleft())]

    def median(self) -> float:
        """Return the median of the window."""
        values, half = self._sorted, len(self._sorted) // 2
        return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2

    def scale(self, middle: float) -> float:
        """Return a robust standard deviation, never so small that rounding would look like a spike."""
        half = len(self._sorted) // 2
        upper = self._distance(middle, half)
        mad = upper if len(self._sorted) % 2 else (self._distance(middle, half - 1) + upper) / 2
        return max(MAD_TO_SD * mad, LEAST_RELATIVE * abs(middle), LEAST_SCALE)

    def newest(self, count: int) -> list[float]:
        """Return the last ``count`` values, including the gap."""
        return [*self._old, *self._new][-count:]

    def values(self) -> list[float]:
        """Return every value that is kept, the oldest first."""
        return [*self._old, *self._new]

    def restore(self, values: Iterable[float]) -> None:
        """Begin anew with these values."""
        self._new, self._old, self._sorted = deque(), deque(), []
        for value in values:
            self.push(value)

    def _distance(self, middle: float, rank: int) -> float:
        """Return the ``rank``-th smallest distance from ``middle``, by a search in the two sorted halves beside it."""
        values = self._sorted
        start = bisect_right(values, middle)
        low, high = max(0, rank + 1 - (len(values) - start)), min(rank + 1, start)
        while low < high:  # how many of the rank + 1 smallest distances lie to the left
            left = (low + high) // 2
            if middle - values[start - 1 - left] < values[start + rank - left] - middle:
                low = left + 1
            else:
                high = left
        from_left = middle - values[start - low] if low else 0.0
        taken_right = rank + 1 - low
        from_right = values[start + taken_right - 1] - middle if taken_right else 0.0
        return max(from_left, from_right)
