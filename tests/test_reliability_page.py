"""The page of faults: every test that it names is there, and its example runs."""

from __future__ import annotations

import re

from tests.launch import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def bodies_of_tests() -> dict[str, str]:
    """The source of each test, by its name."""
    found = {}
    for path in (ROOT / "tests").glob("test_*.py"):
        for body in re.split(r"^def ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            found[body.split("(")[0]] = body
    return found


def rows_of(head: str) -> list[str]:
    """The rows of the table that begins so."""
    return PAGE.split(head)[1].split("\n\n")[0].splitlines()[2:]


def faults() -> list[list[str]]:
    """The rows of the table of faults."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows_of("| fault |")]


def test_every_fault_names_a_test_that_is_there() -> None:
    """At least fifty faults, each with its test, with what happens and with what is lost."""
    assert len(faults()) >= 50
    assert all(len(row) == 4 and all(row) for row in faults())
    assert [row for row in faults() if row[1].strip("`") not in bodies_of_tests()] == []


def test_every_test_that_the_pages_name_is_there() -> None:
    """In the text, too."""
    assert set(re.findall(r"`(test_\w+)`", PAGE)) <= set(bodies_of_tests())


def test_every_kind_of_fault_between_ranks_has_three_cases_with_a_bound_and_a_sum() -> None:
    """Each of them asserts how long a rank waited, and that all that is on disk adds up to what was fed."""
    bodies = bodies_of_tests()
    kinds = [re.findall(r"`(test_\w+)`(?: × (\d+))?", row) for row in rows_of("| kind |")]
    assert len(kinds) == 9
    assert all(sum(int(times or 1) for _, times in cases) >= 3 for cases in kinds)
    for name in (name for cases in kinds for name, _ in cases):
        assert re.search(r"(seconds|\)) < [\d.]+", bodies[name]) and "on_disk(" in bodies[name], name
