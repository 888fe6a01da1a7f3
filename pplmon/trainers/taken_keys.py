"""Give way to the keys that a user's own code logs: pplmon's number of that key is logged as ``pplmon/{key}``."""

from __future__ import annotations

import warnings


class TakenKeys:
    """The keys that are taken; the first is told of. ``owner`` logs them, ``call`` is where a user sets ``prefix``."""

    def __init__(self, owner: str, call: str) -> None:
        self._owner, self._call = owner, call
        self._taken: set[str] = set()

    def give_way(self, key: str) -> None:
        """Log our number under another key than this one from here on."""
        if not self._taken:
            warnings.warn(
                f"pplmon: the {self._owner} logs {key!r} itself. pplmon's own is logged as {self.free(key, taken=True)!r} (the "
                f'same for any other such key); set {self._call}prefix="...") to choose another name.',
                stacklevel=2,
            )
        self._taken.add(key)

    def free(self, key: str, taken: bool | None = None) -> str:
        """Return the key, or another one if it is taken."""
        return f"pplmon/{key}" if taken or key in self._taken else key
