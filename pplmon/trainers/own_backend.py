"""Show alerts and evidence in a W&B run or a TensorBoard writer that the trainer opened and logs its scalars to."""

from __future__ import annotations

from collections.abc import Mapping

from pplmon.alerts import Alert
from pplmon.report.report import Report
from pplmon.sinks.base import Sink
from pplmon.sinks.tensorboard import TensorBoard
from pplmon.sinks.wandb import WandB


class OwnBackend(Sink):
    """A backend of the trainer's own. Scalars reach it through the trainer, all else goes straight to it."""

    def __init__(self, board: TensorBoard | None = None, run: WandB | None = None) -> None:
        self._board, self._run = board, run

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Keep the charts and the best values up to date."""
        if self._board is not None:
            self._board.layout(scalars)
        if self._run is not None:
            self._run.best(scalars)

    def alert(self, alert: Alert) -> None:
        """Send the alert, with its evidence as text or tables."""
        for backend in self._backends():
            backend.alert(alert)

    def notice(self, alert: Alert) -> None:
        """Mark the alert where the backend has room for more than scalars."""
        for backend in self._backends():
            backend.notice(alert)

    def finished(self, report: Report) -> None:
        """Send the run's worst tokens as text or tables."""
        for backend in self._backends():
            backend.finished(report)

    def _backends(self) -> list[Sink]:
        return [backend for backend in (self._board, self._run) if backend is not None]
