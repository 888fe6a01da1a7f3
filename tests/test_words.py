"""Docstrings and pages say plainly what a thing does, in the field's own words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "pplmon").rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# A first line that opens so describes around a thing instead of naming it.
RIDDLES = ("What", "Which", "Where", "How", "Who", "When", "Are", "Is", "Whether")
# Not the field's words, and the words to write instead.
NOT_OURS = {
    r"\bsick\b": "non-finite",
    r"\bto the bit\b": "bit-identical",
    r"§": "the page's name",
    r"\bthe contract\b": "the thing that is meant",
}


def docstrings(source: str) -> Iterator[tuple[str, str]]:
    """Every docstring of a module, with the name of what it belongs to."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", "the module"), text


def riddles(source: str) -> list[str]:
    """The docstrings that open with a riddle."""
    return [f"{name}: {text.splitlines()[0]}" for name, text in docstrings(source) if text.split()[0] in RIDDLES]


def foreign(text: str) -> list[str]:
    """The lines that hold a word which is not the field's, with the word to write."""
    lines = text.splitlines()
    return [f"{line.strip()} -> {word}" for line in lines for old, word in NOT_OURS.items() if re.search(old, line)]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_docstring_says_what_the_thing_does(module: Path) -> None:
    """One reading has to do."""
    source = module.read_text(encoding="utf-8")
    assert not riddles(source)
    assert not [(name, line) for name, text in docstrings(source) for line in foreign(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_uses_the_fields_words(page: Path) -> None:
    """A reader who knows the field needs no glossary of ours."""
    assert not foreign(page.read_text(encoding="utf-8"))


def test_a_riddle_would_be_seen() -> None:
    """The tests above can fail."""
    assert riddles('"""What one number is."""\n\ndef f():\n    """Return it."""') == ["the module: What one number is."]
    assert foreign("a sick token\nequal to the bit") == [
        "a sick token -> non-finite",
        "equal to the bit -> bit-identical",
    ]
