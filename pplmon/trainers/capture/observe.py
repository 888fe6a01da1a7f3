"""``pplmon.observe`` and ``pplmon.log``: pass logits, or a number, from inside a module to the monitors, if there are any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

from pplmon.measure.outside_graphs import outside_graphs
from pplmon.measure.tokens import TokenStats


class Listener(Protocol):
    """An object that receives what a module passes to ``observe``."""

    def observe(self, logits: Tensor | TokenStats, targets: Tensor | None = None, **data: Any) -> None:
        """Receive one call of ``pplmon.observe``."""


class Logger(Protocol):
    """An object that receives the numbers that a module logs."""

    def log(self, name: str, value: Tensor | float) -> None:
        """Receive one call of ``pplmon.log``."""


Kind = TypeVar("Kind")


class Listening(Generic[Kind]):
    """The listeners of a module. Weak on both sides: a run that was never ended keeps neither its model nor its monitor alive."""

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[nn.Module, list[ref[Kind]]] = WeakKeyDictionary()

    def to(self, module: nn.Module) -> Iterator[Kind]:
        """Yield those who listen to a module."""
        for known in self._of.get(module, ()):
            listener = known()
            if listener is not None:
                yield listener

    def begin(self, module: nn.Module, listener: Kind) -> Callable[[], None]:
        """Let ``listener`` hear a module and those inside it; return a function that ends it."""
        told = ref(listener)
        # A torchmetrics Metric inside has another hash after each update, so it would not be found again.
        parts = [part for part in module.modules() if type(part).__hash__ is object.__hash__]
        for part in parts:
            self._of[part] = [*(other for other in self._of.get(part, ()) if other() is not None), told]

        def end() -> None:
            for part in parts:
                self._of[part] = [other for other in self._of.get(part, ()) if other is not told]

        return end


_of_logits: Listening[Listener] = Listening()
_of_numbers: Listening[Logger] = Listening()
listen, listen_to_numbers = _of_logits.begin, _of_numbers.begin


@outside_graphs
def observe(module: nn.Module, logits: Tensor | TokenStats, targets: Tensor | None = None, **data: Any) -> None:
    """Pass logits [B, T, V] or [N, V] and targets, or ``TokenStats``, to the monitors of ``module``'s run.

    ``module`` is the one that is trained, or any module inside it. Does nothing without a monitor. ``data`` are
    arguments of ``TokenTally.update`` (mask, document_ids, sample_ids, vocab_shard, …) and ``shift``.
    """
    for listener in _of_logits.to(module):
        listener.observe(logits, targets, **data)


@outside_graphs
def log(module: nn.Module, name: str, value: Tensor | float) -> None:
    """Pass a number of your own, such as "optim/lr", to the monitors of ``module``'s run (see ``Monitor.log``).

    Called in a training step, or anywhere before the optimizer step ends. Does nothing without a monitor.
    """
    for logger in _of_numbers.to(module):
        logger.log(name, value)
