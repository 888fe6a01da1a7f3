"""Compute logits again where a fused loss made none: from the hidden states that go into the head, a few columns at a time.

It takes one more product with the head, and is done only where the user asked for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pplmon.measure.tokens import TokenStats, shifted, token_stats
from pplmon.tally import TokenTally
from pplmon.trainers.capture.modules import unwrapped

LEAST_CHUNKS = 4  # of a batch, so that no tensor is of the size of its logits


class Recomputed(NamedTuple):
    """The hidden states [B, T, H] that go into a model's head, and the head."""

    states: Tensor
    head: nn.Module
    precision: torch.dtype | None  # that autocast had in the model's own call; None without it
    softcap: float | None

    def stats(self, targets: Tensor, mask: Tensor | None, tally: TokenTally, shift: bool) -> TokenStats:
        """Return the measurements of targets [B, T], as the tally measures."""
        if self.states.shape[:-1] != targets.shape:
            raise ValueError(
                f"the hidden states {tuple(self.states.shape)} do not fit targets {tuple(targets.shape)}: their logits are not "
                "computed again"
            )
        if shift:
            targets, mask = shifted(targets, mask)
        wide = self._columns()
        how = (tally.needs_entropy, tally.kernel)
        pieces = []
        try:
            for start in range(0, targets.shape[1], wide):
                part = slice(start, start + wide)
                seen = None if mask is None else mask[:, part]
                logits = self._logits(self.states[:, part])
                pieces.append(token_stats(logits, targets[:, part], tally.ignore_index, seen, False, *how))
        except RuntimeError as error:  # a head that is cut over ranks, or too little memory: the step goes on
            raise ValueError(f"the logits could not be computed again: {error}") from error
        return TokenStats.join(pieces, shift=shift)

    @torch.no_grad()
    def _logits(self, states: Tensor) -> Tensor:
        # The cache of an autocast around us would keep weights that nothing is learnt through.
        kind = states.device.type
        on = torch.autocast(kind, self.precision, enabled=self.precision is not None, cache_enabled=False)
        with on:
            logits: Tensor = self.head(states.detach())
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def _columns(self) -> int:
        """Return how many columns at a time have logits no larger than the hidden states."""
        length, width = self.states.shape[1:]
        size = getattr(self.head, "out_features", width * LEAST_CHUNKS)
        return max(1, min(length * width // size, length // LEAST_CHUNKS))


class States:
    """The hidden states of calls that are under way, by the model that goes on with them."""

    def __init__(self) -> None:
        self._models: dict[nn.Module, nn.Module] = {}  # by their inner one, which gives the states
        self._states: dict[nn.Module, tuple[Tensor, torch.dtype | None]] = {}

    def inner(self, model: nn.Module) -> nn.Module | None:
        """Return the module inside a model with a head that gives its hidden states."""
        whole = unwrapped(model)
        found = getattr(whole, "base_model", None)
        if not isinstance(found, nn.Module) or found is whole:
            return None
        self._models[found] = whole
        return found

    def keep(self, module: nn.Module, output: Any) -> bool:
        """Keep what an inner module gave; return False for a model itself."""
        model = self._models.get(module)
        states = _first(output)
        if model is not None and states is not None:
            kind = states.device.type
            precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            self._states[model] = states, precision
        return model is not None

    def take(self, model: nn.Module) -> Recomputed | None:
        """Return, and forget, what a model's head was to be given."""
        whole = unwrapped(model)
        states, precision = self._states.pop(whole, (None, None))
        head = whole.get_output_embeddings() if states is not None else None  # type: ignore[operator]
        if states is None or not isinstance(head, nn.Module):
            return None
        config: Any = whole.config
        cap = getattr(getattr(config, "text_config", config), "final_logit_softcapping", None)
        return Recomputed(states, head, precision, cap)


def _first(output: Any) -> Tensor | None:
    found = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
    return found if isinstance(found, Tensor) and found.dim() == 3 else None
