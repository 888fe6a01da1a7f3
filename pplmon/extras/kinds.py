"""The kind of a token, told by its own text alone: of source code, and of prose."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Sequence

CODE = ("name", "keyword", "number", "operator", "space", "other", "special")
TEXT = ("word", "capitalised", "number", "punctuation", "space", "other", "special")
# Of Python, and of C, C++, C#, Go, Java, JavaScript, Rust.
KEYWORDS = frozenset(keyword.kwlist) | frozenset(
    """
    abstract auto bool boolean break byte case catch char const constexpr continue default defer delete do double else enum
    export extends extern false final finally float fn for func function goto if impl implements inline instanceof int
    interface let long match mod mut namespace new null nullptr override package private protected public pub register return
    short signed sizeof static struct super switch template this throw throws trait true try type typedef typename typeof
    union unsigned using var virtual void volatile where while yield
    """.split()
)
_EDGES = re.compile(r"^\W+|\W+$")
_NUMBER = re.compile(r"\d[\w.,]*")
_WORD = re.compile(r"[^\W\d_]+(['’-][^\W\d_]+)*")


def sort(
    vocabulary: Sequence[bytes | None], names: tuple[str, ...], kind: Callable[[str], str]
) -> tuple[list[int], tuple[str, ...]]:
    """Return the class of each id, and the names: "special" of what stands for no text, "other" of parts of characters."""
    return [names.index(_kind(piece, kind)) for piece in vocabulary], names


def kind_of_code(text: str) -> str:
    """Return name, keyword, number, operator, space or other. Signs around one word do not count: ``.get(`` is a name."""
    core = _EDGES.sub("", text)
    if not core:
        return "operator" if text.strip() else "space"
    if core.isidentifier():
        return "keyword" if core in KEYWORDS else "name"
    return "number" if _NUMBER.fullmatch(core) else "other"


def kind_of_text(text: str) -> str:
    """Return word, capitalised, number, punctuation, space or other; signs around one word do not count."""
    core = _EDGES.sub("", text)
    if not core.strip("_"):
        return "punctuation" if text.strip() else "space"
    if _WORD.fullmatch(core):
        return "capitalised" if core[0].isupper() else "word"
    return "number" if _NUMBER.fullmatch(core) else "other"


def _kind(piece: bytes | None, kind: Callable[[str], str]) -> str:
    if piece is None:
        return "special"
    try:
        return kind(piece.decode())
    except UnicodeDecodeError:
        return "other"
