"""What modules say: the logits in an output, and how a Hugging Face model treats its labels."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pplmon.measure.tokens import held_rows

# Heads named like causal ones that score labels as given: the decoder of an encoder–decoder family by itself, mostly.
_UNSHIFTED_FAMILIES = frozenset(
    "bart bigbird_pegasus blenderbot blenderbot-small cpmant marian mbart musicgen musicgen_melody mvp pegasus plbart "
    "speech_to_text_2 trocr whisper xlnet".split()
)
_CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def hugging_face_model(module: nn.Module) -> nn.Module | None:
    """Return the outermost ``PreTrainedModel``, told by its name so that transformers need not be imported."""
    for child in module.modules():
        # A torch.compile wrapper is hooked itself, outside the graph.
        if any(base.__name__ == "PreTrainedModel" for base in type(unwrapped(child)).__mro__):
            return child
    return None


def shifts_labels(module: nn.Module) -> bool:
    """True for a decoder-only causal model, which moves its labels by one itself."""
    model = unwrapped(module)
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "model_type", "") in _UNSHIFTED_FAMILIES:
        return False
    return type(model).__name__.endswith(_CAUSAL_SUFFIXES)


def labels_given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the ``labels`` that a call was given, by name or by place."""
    if "labels" in kwargs or not args:
        return kwargs.get("labels")
    try:
        return inspect.signature(unwrapped(module).forward).bind_partial(*args, **kwargs).arguments.get("labels")
    except TypeError:
        return None


def logits_in(output: Any, has_loss: bool = False) -> Tensor | None:
    """Return the logits: a tensor, ``.logits``, ``["logits"]``, or a tuple's first (its second, after a loss)."""
    if isinstance(output, (tuple, list)) and not hasattr(output, "logits"):
        after_loss = has_loss and len(output) > 1 and isinstance(output[0], Tensor) and output[0].dim() == 0
        output = output[int(after_loss)] if output else None
    elif isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    else:
        output = getattr(output, "logits", output)
    return output if isinstance(output, Tensor) and output.is_floating_point() and output.dim() in (2, 3) else None


def fitted(logits: Tensor, targets: Tensor) -> Tensor | None:
    """Return logits that fit the targets, flat ones [B·T, V] viewed as [B, T, V]; ``None`` where they do not fit.

    A DTensor fits where the rows that this rank holds do.
    """
    if tuple(targets.shape) in (held_rows(logits), tuple(logits.shape[:-1])):
        return logits
    if logits.dim() == 2 and targets.dim() == 2 and logits.shape[0] == targets.numel():
        return torch.unflatten(logits, 0, tuple(targets.shape))
    return None


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside a torch.compile wrapper."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module
