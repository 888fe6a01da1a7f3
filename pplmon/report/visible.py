"""Text that is safe to print: whatever it was made from, no escape sequence is left in it."""

from __future__ import annotations


def visible(text: str) -> str:
    """Return ``text`` with every unprintable character except the newline replaced by its escape.

    So no escape sequence reaches a terminal, and a lone surrogate does not break UTF-8.
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
