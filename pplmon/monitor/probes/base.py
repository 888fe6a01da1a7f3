"""``Probe``: what a pass asks of a measurement that runs the model by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import nn

from pplmon.report.numbers import Number
from pplmon.tally import TokenTally


class Ranks(NamedTuple):
    """This rank's place among those that run a probe together, and how they agree.

    ``sums`` returns the sums over ranks of a few integers; every rank calls it equally often.
    """

    rank: int = 0
    size: int = 1
    sums: Callable[[list[int]], list[int]] = list


@runtime_checkable
class Probe(Protocol):
    """A measurement of ``PerplexityMonitor(probes=[...])`` and ``Monitor.probe``."""

    declares: tuple[Number, ...]

    def due(self, number: int) -> bool:
        """Return True if it is to run in the pass of this number; the first is 1."""
        ...

    def run(self, model: nn.Module, ranks: Ranks = ...) -> TokenTally:
        """Run the model and return what was counted on this rank. Every rank calls it, and makes as many forwards."""
        ...


def check_probes(probes: Any) -> None:
    """Raise ``TypeError`` unless this is a list of probes."""
    if not isinstance(probes, (list, tuple)) or not all(isinstance(probe, Probe) for probe in probes):
        raise TypeError(f"probes takes a list, as in probes=[pplmon.FreeRunningProbe(ids)], got {probes!r}")
