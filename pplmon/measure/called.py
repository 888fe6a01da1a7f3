"""Say in an error about arguments which call of the user's it is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def called(call: str) -> Iterator[None]:
    """Put the line that was called before the text of a ValueError or TypeError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if len(error.args) == 1 and not str(error).startswith(call):
            error.args = (f"{call}: {error}",)
        raise
