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


@pytest.mark.slow  # test_huggingface has families of each kind
def test_a_few_families_of_each_kind() -> None:
    """Causal ones that shift and such that do not, a decoder of an encoder–decoder family, experts, and states in place of attention."""
    names = (
        "GPT2LMHeadModel XLMWithLMHeadModel BartForCausalLM BertGenerationDecoder MixtralForCausalLM MambaForCausalLM"
    )
    rows = heads.sweep(names.split())
    assert len(rows) == 6 and all(row.agrees for row in rows), rows


def test_every_causal_class_of_the_installed_transformers_is_swept() -> None:
    """Those that ``AutoModelForCausalLM`` makes, by the mapping of the installed release."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    swept = {name for name, _ in heads.heads()}
    assert not set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()) - swept


def test_the_sweep_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head whose loss is no cross-entropy of its logits is not equal, and is in the table; an ordinary one is."""
    ordinary, other = (heads.sweep([name])[0] for name in ("LlamaForCausalLM", "ProphetNetForCausalLM"))
    assert ordinary.agrees and not other.agrees and other.note
    monkeypatch.setattr(heads, "EXCEPTIONS", {})
    assert heads.main(["--only", "ProphetNetForCausalLM"]) == 1
