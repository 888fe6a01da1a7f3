"""The page of faults: every test that it names is there, and its example runs."""

from __future__ import annotations

import re

from tests.launch import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def names_there() -> set[str]:
    """The names of all tests."""
    files = (ROOT / "tests").glob("test_*.py")
    return {
        name
        for path in files
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }


def faults() -> list[list[str]]:
    """The rows of the table of faults."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")
    ]
    return [row for row in rows if len(row) == 4 and row[1].startswith("`test_")]


def test_every_fault_names_a_test_that_is_there() -> None:
    """At least fifteen faults, each with what happens and what is lost."""
    assert len(faults()) >= 15
    assert {row[1].strip("`") for row in faults()} <= names_there()
    assert all(all(row) for row in faults())


def test_every_test_that_the_pages_name_is_there() -> None:
    """In the text, too."""
    assert set(re.findall(r"`(test_\w+)`", PAGE)) <= names_there()
