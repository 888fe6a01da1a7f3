"""``pplmon.observe``: show logits and targets from inside a module, whether or not a monitor listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

from pplmon.measure.outside_graphs import outside_graphs
from pplmon.measure.tokens import TokenStats


class Listener(Protocol):
    """An object that hears what a module shows."""

    def observe(self, logits: Tensor | TokenStats, targets: Tensor | None = None, **data: Any) -> None:
        """Take in what was shown."""


# By module, and weak on both sides: a run that nobody ended keeps neither its model nor its monitor alive.
_listeners: WeakKeyDictionary[nn.Module, list[ref[Listener]]] = WeakKeyDictionary()


@outside_graphs
def observe(module: nn.Module, logits: Tensor | TokenStats, targets: Tensor | None = None, **data: Any) -> None:
    """Show logits [B, T, V] or [N, V] and targets, or ``TokenStats``, to the monitors of the run that trains ``module``.

    ``module`` is the one that is trained, or any module inside it. Does nothing where no monitor listens. ``data`` are what
    ``TokenTally.update`` takes (mask, document_ids, sample_ids, vocab_shard, …) and ``shift``.
    """
    for listener in _listeners.get(module, ()):
        listening = listener()
        if listening is not None:
            listening.observe(logits, targets, **data)


def listen(module: nn.Module, listener: Listener) -> Callable[[], None]:
    """Tell ``listener`` of what a module and those inside it show; returns a function that ends it."""
    told, parts = ref(listener), list(module.modules())
    for part in parts:
        _listeners[part] = [*(other for other in _listeners.get(part, ()) if other() is not None), told]

    def end() -> None:
        for part in parts:
            _listeners[part].remove(told)

    return end
