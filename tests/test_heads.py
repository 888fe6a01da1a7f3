"""Every causal head of the installed transformers shows its own loss, or the table says why it does not."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("transformers")
from benchmarks import heads


@pytest.mark.slow
def test_every_head_that_can_be_built_shows_its_own_loss() -> None:
    """A sweep over classes, not a list of them."""
    built = [row for row in heads.sweep() if not math.isnan(row.loss)]
    assert len(built) >= 100
    assert not [row for row in built if not row.agrees and row.name not in heads.EXCEPTIONS]


def test_the_sweep_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head whose loss is no cross-entropy of its logits is not equal, and is in the table; an ordinary one is."""
    ordinary, other = (heads.sweep([name])[0] for name in ("LlamaForCausalLM", "ProphetNetForCausalLM"))
    assert ordinary.agrees and not other.agrees and other.note
    monkeypatch.setattr(heads, "EXCEPTIONS", {})
    assert heads.main(["--only", "ProphetNetForCausalLM"]) == 1
