"""Compute logits again where a fused loss made none: from the hidden states that go into the head, a few columns at a time.

It takes one more product with the head, and is done only where the user asked for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pplmon.measure.tokens import TokenStats, shifted, token_stats
from pplmon.tally import TokenTally
from pplmon.trainers.capture.modules import unwrapped
from pplmon.trainers.capture.sources.after_head import AfterHead

LEAST_PIECES = 4  # of a batch, so that no tensor is of the size of its logits


class Recomputed(NamedTuple):
    """The hidden states [B, T, H] that go into a model's head, and the head."""

    states: Tensor
    head: nn.Module
    precision: torch.dtype | None  # that autocast had in the model's own call; None without it
    after: AfterHead
    learns: bool  # through the states

    @torch.no_grad()
    def stats(self, targets: Tensor, mask: Tensor | None, tally: TokenTally, shift: bool) -> TokenStats:
        """Return the measurements of targets [B, T], as the tally measures."""
        if self.states.shape[:-1] != targets.shape:
            raise ValueError(
                f"the hidden states {tuple(self.states.shape)} do not fit targets {tuple(targets.shape)}: their logits are not "
                "computed again"
            )
        if shift:
            targets, mask = shifted(targets, mask)
        how = (tally.needs_entropy, tally.kernel)
        pieces, start = [], 0
        try:
            with _without_chance(self.head):
                for states in self.states.tensor_split(self._pieces(), 1):
                    logits, part = self._logits(states), slice(start, start := start + states.shape[1])
                    seen = None if mask is None else mask[:, part]
                    if states.shape[1]:
                        pieces.append(token_stats(logits, targets[:, part], tally.ignore_index, seen, False, *how))
        except RuntimeError as error:  # a head that is cut over ranks, or too little memory: the step goes on
            raise ValueError(f"the logits could not be computed again: {error}") from error
        return TokenStats.join(pieces, shift=shift)

    def _logits(self, states: Tensor) -> Tensor:
        # The cache of an autocast around us would keep weights that nothing is learnt through.
        kind = states.device.type
        with torch.autocast(kind, self.precision, enabled=self.precision is not None, cache_enabled=False):
            return self.after(self.head(states))

    def _pieces(self) -> int:
        """Return into how many pieces to cut the columns: then the logits of one are no larger than the hidden states.

        It is the same for every batch. Each call of a head that is cut over ranks gathers it, and all ranks have to call it equally
        often, however long their rows are.
        """
        width = self.states.shape[2]
        return max(LEAST_PIECES, math.ceil(getattr(self.head, "out_features", 0) / width))


@contextmanager
def _without_chance(head: nn.Module) -> Iterator[None]:
    """Leave out dropout: one more draw of random numbers would change what the training goes on with."""
    training = [module for module in head.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class States:
    """The hidden states of calls that are under way, by the model that goes on with them."""

    def __init__(self) -> None:
        self._models: dict[nn.Module, nn.Module] = {}  # by their inner one, which gives the states
        self._states: dict[nn.Module, tuple[Tensor, torch.dtype | None, bool]] = {}

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
            # Detached: a call that fails between the two would leave its graph here.
            self._states[model] = states.detach(), precision, states.requires_grad
        return model is not None

    def take(self, model: nn.Module) -> Recomputed | None:
        """Return, and forget, what a model's head was to be given."""
        whole = unwrapped(model)
        found = self._states.pop(whole, None)
        head = None if found is None else whole.get_output_embeddings()  # type: ignore[operator]
        if found is None or not isinstance(head, nn.Module):
            return None
        states, precision, learns = found
        return Recomputed(states, head, precision, AfterHead.of(whole.config), learns)


def _first(output: Any) -> Tensor | None:
    found = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
    return found if isinstance(found, Tensor) and found.dim() == 3 else None
