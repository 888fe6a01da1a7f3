"""Ranks agree on what to count before anything is shown, in real processes."""

from __future__ import annotations

import pytest

from pplmon.testing import run_on_ranks
from tests.evidence_tasks import vote

SHIFTED, PLAIN = 24.0, 27.0  # tokens of a rank's batch


@pytest.mark.parametrize(
    ("kinds", "tokens", "words"),
    [
        (("shifted", "shifted"), 2 * SHIFTED, "with shift=True"),
        (("shifted", "empty"), SHIFTED, "with shift=True"),
        (("empty", "shifted"), SHIFTED, "with shift=True"),
        (("shifted", "other"), 2 * SHIFTED, "with shift=True"),
        (("plain", "plain"), 2 * PLAIN, ""),
        (("shifted", "plain"), 2 * PLAIN, "do not agree"),
    ],
)
def test_ranks_count_alike(kinds: tuple[str, str], tokens: float, words: str) -> None:
    """A rank without tokens or without a loss of its own follows; where losses disagree, the default holds with a warning."""
    found = run_on_ranks(vote, 2, kinds, timeout_s=120)
    for shown, _ in found:
        assert shown and set(shown) == {tokens}
    told = found[0][1]  # the first rank speaks
    assert any(words in line for line in told) if words else not told
