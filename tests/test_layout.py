"""The lists of cells hold what is assumed of them elsewhere: a mistake in them is told where it is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from pplmon.report import layout

SOURCE = Path(layout.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"tokens",', '"tokens", *map(str, range(11)),', "33 sums, of which a GPU program takes 32"),
        ('"vocab_size",', '"vocab_size", *map(str, range(7)),', "17 maxima, of which a GPU program takes 16"),
        ('"vocab_size",', '"vocab_size", "tokens",', "two cells have one name"),
        ("SEQUENCE_LOSS, SEQUENCE_TOKENS", "SEQUENCE_TOKENS, SEQUENCE_LOSS", "merged by the same functions"),
        ("CAP_NATS = 2.0**10", "CAP_NATS = 2.0**11", "does not fit a sequence's key"),
    ],
)
def test_a_list_that_breaks_what_others_assume_is_no_module(old: str, new: str, match: str) -> None:
    """One cell too many, a name twice, columns or bounds that do not fit: the import fails, and says why."""
    assert SOURCE.count(old) == 1
    with pytest.raises(AssertionError, match=match):
        exec(SOURCE.replace(old, new), {})


def test_pairs_stand_first() -> None:
    """All wholes, then all fractions in the same order: they are added as two slices."""
    assert tuple(zip(layout.SUMS[layout.WHOLES], layout.SUMS[layout.FRACTIONS])) == layout.PAIRS


def test_a_place_is_found_by_name() -> None:
    """In the list that the cell stands in."""
    assert layout.SUMS[layout.place("tokens")] == "tokens" and layout.MAXIMA[layout.place("vocab_size")] == "vocab_size"
    with pytest.raises(ValueError, match="no sum and no maximum is named 'tokes'; there are nll_whole"):
        layout.place("tokes")
