"""The interface that every source of logits has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from pplmon.trainers.capture.batch import Targets, first_tensor, targets_of
from pplmon.trainers.capture.sources.fused_head import Losses
from pplmon.trainers.capture.sources.recomputed import Recomputed


class Called(NamedTuple):
    """A call of a hooked module."""

    path: str  # of the module, in the one that is trained
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    training: bool  # in a training step


class Found(NamedTuple):
    """Logits, the targets that they are to predict, and what may show whether the two belong together."""

    logits: Tensor
    targets: Tensor
    shift: bool | None  # logits at t predict the target at t+1; None: as the tally says
    stated: bool = False  # by the user, or by the model's own arguments: evidence does not change it
    call: str = ""  # the call in words; of one source, calls of one name are counted together
    rank: int = 0  # of two calls the lower counts
    guess: bool = False  # of columns that nobody named
    columns: slice | None = None  # of the batch that the targets are, where they are a part of it
    loss: Tensor | None = None  # what the same call made of its logits
    items: Tensor | float | None = None  # what that loss is divided by, where it is not the tokens
    input_ids: Tensor | None = None  # what a causal model read
    attention_mask: Tensor | None = None
    # Of a head that made no logits; ``logits`` are what it has in their place.
    losses: Losses | Recomputed | None = None


class Source:
    """One source of logits: modules that are hooked, or what a step returns. It gives ``None`` where it sees none."""

    one_call = False  # its targets are the batch's, so that two calls would count each of them twice
    first_only = False  # further calls of a batch are a reference's
    explicit = False  # the user shows what is meant, call by call
    without_logits: str | None = None  # a model that gave a loss and none

    def modules_in(self, module: nn.Module) -> dict[str, nn.Module]:
        """Return the modules inside ``module`` whose calls this source wants to see, by path."""
        return {}

    def of_call(self, called: Called, batch: Any) -> Found | None:
        """Return what a call of a hooked module gave."""
        return None

    def of_step(self, outputs: Any, batch: Any) -> Found | None:
        """Return logits and targets from a finished step."""
        return None


def targets_beside(outputs: Mapping[str, Any], batch: Any, wanted: Targets | None) -> Tensor | None:
    """Return the targets: from the batch if the user named them, else from beside the logits, else from the batch."""
    beside = first_tensor(outputs) if wanted is None else None
    return targets_of(batch, wanted) if beside is None else beside
