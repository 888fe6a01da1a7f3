"""Repeat what a Hugging Face model does to its logits after the head: some families scale them, some cap them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

# The setting by which a family multiplies its logits, or divides them; a family is the beginning of a ``model_type``.
_FACTORS = {
    "cohere": "logit_scale",
    "falcon_h1": "lm_head_multiplier",
    "hyperclovax": "logits_scaling",
    "muse_glimmer": "output_multiplier",
}
_DIVISORS = {"granite": "logits_scaling"}
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


class AfterHead(NamedTuple):
    """The scale and the cap of a model's logits."""

    factor: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> AfterHead:
        """Read them from a model's config, or from that of the text model in it."""
        text = config.get_text_config(decoder=True)
        factor = _setting(text, _FACTORS) / _setting(text, _DIVISORS)
        caps = [cap for name in _CAPS if (cap := getattr(text, name, None))]
        return cls(factor, caps[0] if caps else None)

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the logits as the model would."""
        logits = logits if self.factor == 1.0 else logits * self.factor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def _setting(config: Any, by_family: dict[str, str]) -> float:
    names = [name for family, name in by_family.items() if str(config.model_type).startswith(family)]
    return float(getattr(config, names[0], 1.0)) if names else 1.0
