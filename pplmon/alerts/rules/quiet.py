"""The quiet time of a rule after an alert, for each severity by itself, and hard values that repeat within it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping


class Quiet:
    """Holds back alerts of one kind for ``length`` judged values after one of it; other kinds are not held back."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._until: dict[str, int] = {}

    def over(self, kind: str, now: int) -> bool:
        """Return True if an alert of this kind may be raised at judged value ``now``."""
        return now >= self._until.get(kind, 0)

    def begin(self, now: int, *kinds: str) -> None:
        """Hold back these kinds from now on."""
        self._until.update(dict.fromkeys(kinds, now + self._length))

    def state_dict(self) -> dict[str, int]:
        """Return the end of the quiet time of each kind."""
        return dict(self._until)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self._until = {kind: int(until) for kind, until in state.items()}


class Repeats:
    """Finds the ``wanted``-th hard value within ``within`` judged ones; ``None``: never."""

    def __init__(self, wanted: int | None, within: int) -> None:
        self._wanted, self._within = wanted, within
        self._seen: deque[int] = deque()

    def add(self, now: int) -> bool:
        """Count a hard value judged at ``now``; return True if it is the ``wanted``-th, after which the count begins anew."""
        if self._wanted is None:
            return False
        self._seen.append(now)
        while now - self._seen[0] > self._within:
            self._seen.popleft()
        enough = len(self._seen) >= self._wanted
        if enough:
            self._seen.clear()
        return enough

    def state(self) -> list[int]:
        """Return the places of the hard values."""
        return [*self._seen]

    def restore(self, state: Iterable[int]) -> None:
        """Restore the state that ``state`` returned."""
        self._seen = deque(int(now) for now in state)
