"""Say in an error about arguments which call of the user's it is about."""

from __future__ import annotations


def name_call(error: TypeError | ValueError, call: str) -> None:
    """Put the line that was called before the text of an error, unless that begins with it."""
    if len(error.args) == 1 and not str(error).startswith(call):
        error.args = (f"{call}: {error}",)
