"""Turn ids into text by a user's ``decode``, and contain what it does wrong: an id that it does not know costs its own text."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]


class Texts:
    """The texts of ids. A ``decode`` that raises, or gives no ``str``, is warned of once for each way to fail."""

    def __init__(self, decode: Decode) -> None:
        if not callable(decode):
            raise TypeError(f"decode is a callable, ids -> str, got {decode!r}; write decode=tokenizer.decode")
        self.decode = decode
        self._told: set[str] = set()

    def of(self, identity: int) -> str | None:
        """Return the text of one id, ``None`` where ``decode`` does not give it."""
        return self._call([identity], tell=True)

    def of_all(self, ids: Sequence[int]) -> str | None:
        """Return the text of ids, in which one without text stands as ``<id>``; ``None`` where none has any."""
        whole = self._call(list(ids), tell=False)
        if whole is not None or not ids:
            return whole
        pieces = [self.of(identity) for identity in ids]
        if all(piece is None for piece in pieces):
            return None
        return "".join(f"<{identity}>" if piece is None else piece for identity, piece in zip(ids, pieces))

    def _call(self, ids: list[int], tell: bool) -> str | None:
        try:
            text = self.decode(ids)
        except Exception as error:  # a tokenizer may raise anything for an id beyond its vocabulary
            if tell:
                self._tell(type(error).__name__, f"decode failed for {ids}: {type(error).__name__}: {error}")
            return None
        if isinstance(text, str):
            return text
        if tell:
            kind = type(text).__name__
            self._tell(
                kind, f"decode has to return a str, got {kind} for {ids}; give decode=lambda ids: tokenizer.decode(ids)"
            )
        return None

    def _tell(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(f"pplmon: {text}. Such ids are shown without their text.", RuntimeWarning, stacklevel=2)
