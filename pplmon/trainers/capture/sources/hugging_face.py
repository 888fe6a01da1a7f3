"""Take logits from a Hugging Face model inside the module, with the ``labels`` that it was given."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from pplmon.trainers.capture.batch import Targets, targets_of
from pplmon.trainers.capture.modules import logits_in, unwrapped
from pplmon.trainers.capture.sources.source import Found, Source

# Heads named like causal ones that do not shift labels: mostly the decoder of an encoder–decoder family by itself.
_UNSHIFTED_FAMILIES = frozenset(
    "bart bigbird_pegasus blenderbot blenderbot-small cpmant marian mbart musicgen musicgen_melody mvp pegasus plbart "
    "speech_to_text_2 trocr whisper xlnet".split()
)
_CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


class HuggingFace(Source):
    """A Hugging Face model. The whole of it is hooked, never its head: many families scale or cap logits after it."""

    def __init__(self, targets: Targets | None, shift: bool | None) -> None:
        self._targets, self._shift = targets, shift

    def module_in(self, module: nn.Module) -> nn.Module | None:
        """Return the outermost ``PreTrainedModel``, found by class name so that transformers need not be imported."""
        for child in module.modules():
            # A torch.compile wrapper is hooked itself, outside the graph.
            if any(base.__name__ == "PreTrainedModel" for base in type(unwrapped(child)).__mro__):
                return child
        return None

    def of_call(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, batch: Any
    ) -> Found | None:
        """Return the model's logits with its labels, or with the batch's targets if the user named these."""
        labels = labels_given(module, args, kwargs)
        if labels is None and self._targets is None:
            return None  # called for something else, or for its logits alone
        logits = logits_in(output, has_loss=labels is not None)
        targets = targets_of(batch, self._targets) if labels is None else labels
        if logits is None or targets is None:
            return None
        return Found(logits, targets, shifts_labels(module) if self._shift is None else self._shift)


def shifts_labels(module: nn.Module) -> bool:
    """Return True for a decoder-only causal model, which moves its labels by one itself."""
    model = unwrapped(module)
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "model_type", "") in _UNSHIFTED_FAMILIES:
        return False
    return type(model).__name__.endswith(_CAUSAL_SUFFIXES)


def labels_given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the ``labels`` of a call, by keyword or by position."""
    if "labels" in kwargs or not args:
        return kwargs.get("labels")
    try:
        return inspect.signature(unwrapped(module).forward).bind_partial(*args, **kwargs).arguments.get("labels")
    except TypeError:
        return None
