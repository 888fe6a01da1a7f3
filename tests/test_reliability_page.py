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
    table = PAGE.split("| fault |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_every_fault_names_a_test_that_is_there() -> None:
    """At least fifty faults, each with its test, with what happens and with what is lost."""
    assert len(faults()) >= 50
    assert all(len(row) == 4 and all(row) for row in faults())
    assert [row for row in faults() if row[1].strip("`") not in names_there()] == []


def test_every_test_that_the_pages_name_is_there() -> None:
    """In the text, too."""
    assert set(re.findall(r"`(test_\w+)`", PAGE)) <= names_there()
