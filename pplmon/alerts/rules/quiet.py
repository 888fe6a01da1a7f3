"""How long a rule is quiet after it alerted, for each severity by itself, and what repeats within that time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping


class Quiet:
    """After an alert of one kind no other of it for ``length`` judged values; other kinds are not held back by it."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._until: dict[str, int] = {}

    def over(self, kind: str, now: int) -> bool:
        """Say whether an alert of this kind may be raised at judged value ``now``."""
        return now >= self._until.get(kind, 0)

    def begin(self, now: int, *kinds: str) -> None:
        """Be quiet about these kinds."""
        self._until.update(dict.fromkeys(kinds, now + self._length))

    def state_dict(self) -> dict[str, int]:
        """Return until when it is quiet about each kind."""
        return dict(self._until)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self._until = {kind: int(until) for kind, until in state.items()}


class Repeats:
    """Tells the ``wanted``-th hard value within ``within`` judged ones; ``None``: never."""

    def __init__(self, wanted: int | None, within: int) -> None:
        self._wanted, self._within = wanted, within
        self._seen: deque[int] = deque()

    def add(self, now: int) -> bool:
        """Take in that the value judged at ``now`` was hard; say whether it is one too many. Then it counts anew."""
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
        """Return when the hard values were."""
        return [*self._seen]

    def restore(self, state: Iterable[int]) -> None:
        """Restore the state that ``state`` returned."""
        self._seen = deque(int(now) for now in state)
