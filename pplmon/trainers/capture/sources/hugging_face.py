"""Take logits from the Hugging Face models inside the module, with the ``labels`` that they were given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pplmon.trainers.capture.batch import Targets, targets_of
from pplmon.trainers.capture.modules import arguments, logits_in, loss_in, unwrapped
from pplmon.trainers.capture.sources.fused_head import Losses, losses_in
from pplmon.trainers.capture.sources.recomputed import Recomputed, States
from pplmon.trainers.capture.sources.source import Called, Found, Source

# Heads named like causal ones that do not shift labels: mostly the decoder of an encoder–decoder family by itself.
_UNSHIFTED_FAMILIES = frozenset(
    "bart bigbird_pegasus blenderbot blenderbot-small cpmant flaubert marian mbart musicgen musicgen_melody mvp pegasus "
    "plbart prophetnet speech_to_text_2 trocr whisper xlm xlnet".split()
)
_CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "DoubleHeadsModel", "ModelWithLMHead")
_CAUSAL_NAMES = ("BertGenerationDecoder",)


class HuggingFace(Source):
    """Hugging Face models. The whole of each is hooked, never its head: many families scale or cap logits after it."""

    def __init__(
        self, targets: Targets | None, shift: bool | None, first_only: bool = False, recompute: bool = False
    ) -> None:
        self._targets, self._shift, self.first_only = targets, shift, first_only
        self._states = States() if recompute else None

    def modules_in(self, module: nn.Module) -> dict[str, nn.Module]:
        """Return the outermost models, told by the name of their class so that transformers need not be imported.

        Those that are trained stand first: a frozen teacher, reference or encoder is not what is watched.
        """
        found = _outermost(module, "")
        models = dict(sorted(found.items(), key=lambda item: not any(p.requires_grad for p in item[1].parameters())))
        if self._states is not None:
            inner = {f"{path} inside": self._states.inner(model) for path, model in models.items()}
            models |= {path: module for path, module in inner.items() if module is not None}
        return models

    def of_call(self, called: Called, batch: Any) -> Found | None:
        """Return a model's logits with its labels, or with the batch's targets where these were named.

        Calls of one model are told apart by whether they were given labels and, in training, whether they are learnt from.
        """
        if self._states is not None and self._states.keep(called.module, called.output):
            return None
        given = arguments(called.module, called.args, called.kwargs)
        moved, labels = given.get("shift_labels"), given.get("labels")
        own = labels if moved is None else moved
        fused = losses_in(called.module, called.output)
        losses: Losses | Recomputed | None = fused
        logits = logits_in(called.output) if fused is None else fused.log_probs
        again = None if self._states is None else self._states.take(called.module)
        if logits is None and own is not None and loss_in(called.output) is not None:
            losses, logits = again, None if again is None else again.states
            if again is None:
                self.without_logits = type(unwrapped(called.module)).__name__
        if logits is None or (own is None and self._targets is None):
            return None  # called for something else, or for its logits alone
        learns = (losses.learns if isinstance(losses, Recomputed) else logits.requires_grad) or not called.training
        frozen = not called.training and not any(p.requires_grad for p in called.module.parameters())
        if own is None and not learns:
            return None  # a teacher, a reference, or generation
        targets = own if own is not None else _named(self._targets, given, batch)
        if not isinstance(targets, Tensor):
            return None
        kept = given.get("logits_to_keep")
        columns = None
        if isinstance(kept, int) and 0 < kept == logits.shape[1] < targets.shape[-1] and targets.dim() == 2:
            columns = slice(targets.shape[1] - kept, targets.shape[1])
        loss = own_loss(called.module, called.output)
        lacks_first = losses is None and _lacks_first(logits, targets) and moved is None and kept in (None, 0)
        if (
            lacks_first
            and loss is not None
            and own is not None
            and self._shift is None
            and shifts_labels(called.module)
        ):
            columns, moved = slice(1, targets.shape[1]), targets
        shift = False if moved is not None else True if fused is not None else self._shift
        words = f"{'' if own is not None else ' without labels'}{'' if learns else ' without a gradient'}"
        return Found(
            logits,
            targets,
            shifts_labels(called.module) if shift is None else shift,
            stated=shift is not None,
            call=f"{called.path or type(unwrapped(called.module)).__name__}{words}",
            rank=2 * (not learns or frozen) + (own is None),
            columns=columns,
            loss=loss,
            items=given.get("num_items_in_batch"),
            input_ids=None if _reads_elsewhere(called.module) else given.get("input_ids"),
            attention_mask=None if _reads_elsewhere(called.module) else given.get("attention_mask"),
            losses=losses,
        )


def model_in(module: nn.Module) -> nn.Module:
    """Return the Hugging Face model in a module if there is one and only one, else the module."""
    found = list(HuggingFace(None, None).modules_in(module).values())
    return found[0] if len(found) == 1 else module


def shifts_labels(module: nn.Module) -> bool:
    """Return True for a decoder-only causal model, which moves its labels by one itself: the default, until a loss tells."""
    model = unwrapped(module)
    name = type(model).__name__
    if _reads_elsewhere(model) or getattr(getattr(model, "config", None), "model_type", "") in _UNSHIFTED_FAMILIES:
        return False
    return name.endswith(_CAUSAL_SUFFIXES) or name in _CAUSAL_NAMES


def own_loss(module: nn.Module, output: Any) -> Tensor | None:
    """Return the loss that a model made of its logits, without the auxiliary loss of its router."""
    loss = loss_in(output)
    if loss is None:
        return None
    auxiliary = output.get("aux_loss") if isinstance(output, Mapping) else None
    weight = getattr(getattr(unwrapped(module), "config", None), "router_aux_loss_coef", None)
    if not isinstance(auxiliary, Tensor) or auxiliary.numel() != 1 or not weight:
        return loss
    added: Tensor = auxiliary.detach().to(loss.device, torch.float64) * weight
    return (loss.double() - added).to(loss.dtype)


def _lacks_first(logits: Tensor, targets: Tensor) -> bool:
    """Tell whether a model left out the logits of its first column, which no label is compared with."""
    return logits.dim() == 3 and targets.dim() == 2 and logits.shape[1] == targets.shape[1] - 1


def _outermost(module: nn.Module, path: str) -> dict[str, nn.Module]:
    # A torch.compile wrapper is hooked itself, outside the graph.
    if any(base.__name__ == "PreTrainedModel" for base in type(unwrapped(module)).__mro__):
        return {path: module}
    found: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        found |= {
            p: m for p, m in _outermost(child, f"{path}.{name}" if path else name).items() if m not in found.values()
        }
    return found


def _reads_elsewhere(module: nn.Module) -> bool:
    return bool(getattr(getattr(unwrapped(module), "config", None), "is_encoder_decoder", False))


def _named(wanted: Targets | None, given: Mapping[str, Any], batch: Any) -> Any:
    """Return the targets that were named: what the call itself was given under this name, else the batch's."""
    own = given.get(wanted) if isinstance(wanted, str) else None
    return own if isinstance(own, Tensor) else targets_of(batch, wanted)
