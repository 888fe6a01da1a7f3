"""Rises that call a person: hard values that follow each other, a level that stays up, a slow drift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pplmon.alerts.rules.baseline import Baseline
from pplmon.alerts.rules.bucket import Bucket
from pplmon.alerts.rules.quiet import Repeats

ONE_VALUE = 0.6  # of the limit: what one value fills at most, so that one alone calls nobody


class Rise(NamedTuple):
    """A rise that calls a person."""

    what: str  # in words that go before the value
    middle: float  # what was usual when it began
    scale: float
    threshold: float  # in the metric's unit


class Rises:
    """Three buckets and a count of hard values, filled by every value that is judged.

    - A *jump*: the bucket gains a value's height in scales, at most 60 % of ``limit``, and leaks ``leak``.
    - A level that *stays* up: a value counts 2.5 at most, and 1 leaks. Its limit is 0.8 of the other, times the memory of the
      noise: where neighbours are alike, a level has to last longer until it is no chance.
    - A *drift*: the height above the long middle, which a rise of some hundred values has not yet carried along. A value
      counts 6 at most, and 3 leak.
    - *Repeats*: so many hard values, each more than ``hard`` scales high, within ``within`` judged ones.
    """

    def __init__(self, leak: float, limit: float, hard: float, repeats: int | None, within: int) -> None:
        self._limit, self._hard = limit, hard
        self._jump = Bucket(leak + ONE_VALUE * limit, leak)
        self._stay, self._drift = Bucket(2.5, 1.0), Bucket(6.0, 3.0)
        self._repeats = Repeats(repeats, within)
        self._least = min(leak, self._stay.leak)  # a value no higher adds nothing
        self._empty = True

    def look(self, now: int, value: float, height: float, middle: float, base: Baseline) -> Rise | None:
        """Add one value; return the rise that it completes."""
        scale = base.scale
        long_middle = value if base.long_middle is None else base.long_middle
        if self._empty and height <= self._least and value - long_middle <= self._drift.leak * scale:
            return None  # as most are
        jump = self._jump.add(height, middle, scale)
        stay = self._stay.add(height, middle, scale)
        drift = self._drift.add((value - long_middle) / scale, long_middle, scale)
        self._empty = not (jump or stay or drift)
        if jump > self._limit:
            return self._rise("jumped to", self._jump)
        patience = self._limit * base.memory
        if stay > 0.8 * patience:
            return self._rise("stays up:", self._stay)
        if drift > patience:
            return self._rise("drifted up to", self._drift)
        if height > self._hard and self._repeats.add(now):
            return Rise("jumped again, to", middle, scale, middle + self._hard * scale)
        return None

    def empty(self) -> None:
        """Empty every bucket."""
        for bucket in self._buckets():
            bucket.empty()
        self._empty = True

    def state_dict(self) -> dict[str, Any]:
        """Return the contents of the buckets and the places of hard values."""
        return {"buckets": [bucket.state() for bucket in self._buckets()], "repeats": self._repeats.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        for bucket, saved in zip(self._buckets(), state["buckets"], strict=True):
            bucket.restore(saved)
        self._empty = not any(bucket.fill for bucket in self._buckets())
        self._repeats.restore(state["repeats"])

    def _buckets(self) -> tuple[Bucket, ...]:
        return self._jump, self._stay, self._drift

    def _rise(self, what: str, bucket: Bucket) -> Rise:
        middle, scale = bucket.before
        return Rise(what, middle, scale, middle + bucket.leak * scale)
