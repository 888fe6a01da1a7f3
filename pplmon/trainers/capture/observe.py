"""``pplmon.observe``: pass logits and targets from inside a module to the monitors, if there are any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

from pplmon.measure.outside_graphs import outside_graphs
from pplmon.measure.tokens import TokenStats


class Listener(Protocol):
    """An object that receives what a module passes to ``observe``."""

    def observe(self, logits: Tensor | TokenStats, targets: Tensor | None = None, **data: Any) -> None:
        """Receive one call of ``pplmon.observe``."""


# By module, and weak on both sides: a run that was never ended keeps neither its model nor its monitor alive.
_listeners: WeakKeyDictionary[nn.Module, list[ref[Listener]]] = WeakKeyDictionary()


@outside_graphs
def observe(module: nn.Module, logits: Tensor | TokenStats, targets: Tensor | None = None, **data: Any) -> None:
    """Pass logits [B, T, V] or [N, V] and targets, or ``TokenStats``, to the monitors of ``module``'s run.

    ``module`` is the one that is trained, or any module inside it. Does nothing without a monitor. ``data`` are
    arguments of ``TokenTally.update`` (mask, document_ids, sample_ids, vocab_shard, …) and ``shift``.
    """
    for listener in _listeners.get(module, ()):
        listening = listener()
        if listening is not None:
            listening.observe(logits, targets, **data)


def listen(module: nn.Module, listener: Listener) -> Callable[[], None]:
    """Pass ``observe`` calls of a module, and of those inside it, to ``listener``; return a function that ends it."""
    told, parts = ref(listener), list(module.modules())
    for part in parts:
        _listeners[part] = [*(other for other in _listeners.get(part, ()) if other() is not None), told]

    def end() -> None:
        for part in parts:
            _listeners[part].remove(told)

    return end
