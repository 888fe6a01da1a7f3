"""``pplmon.observe``: what a module says in its own step, whether or not a monitor listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pplmon.measure.tokens import TokenStats


def observe(module: nn.Module, logits: Tensor | TokenStats, targets: Tensor | None = None, **data: Any) -> None:
    """Show logits [B, T, V] or [N, V] and targets, or ``TokenStats``, to the monitors of the module's trainer; does nothing without one.

    ``data`` are what ``TokenTally.update`` takes (mask, document_ids, sample_ids, vocab_shard, …) and ``shift``.
    """
    # In a compiled step the compiler sees this branch taken; elsewhere its switch would cost more than all the rest here.
    tell = _outside_the_graph(_tell_monitors) if torch.compiler.is_compiling() else _tell_monitors
    tell(module, logits, targets, data)


def _tell_monitors(
    module: nn.Module, logits: Tensor | TokenStats, targets: Tensor | None, data: dict[str, Any]
) -> None:
    # A LightningModule raises where it has no trainer, so its private attribute is asked.
    for callback in getattr(getattr(module, "_trainer", None), "callbacks", ()):
        take = getattr(callback, "observe_tokens", None)
        if take is not None:
            take(logits, targets, **data)


_disabled: dict[Callable[..., None], Callable[..., None]] = {}


def keep_out_of_graphs() -> None:
    """Prepare ``observe`` for a module under torch.compile, before its first compiled call."""
    _disabled.setdefault(_tell_monitors, torch.compiler.disable(_tell_monitors))  # type: ignore[no-untyped-call]


def _outside_the_graph(function: Callable[..., None]) -> Callable[..., None]:
    """Keep a function out of a compiled step. Known from the first ``attach`` on: importing the compiler takes a second."""
    return _disabled.get(function, function)
