"""A Lightning logger as a sink: scalars go through the logger, the rest straight to its backend where it has more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pplmon.alerts import Alert
from pplmon.report import Report
from pplmon.sinks.base import Sink
from pplmon.sinks.tensorboard import TensorBoard
from pplmon.sinks.wandb import WandB


class LightningLogger(Sink):
    """One of the trainer's loggers. Never opens a run of its own."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._board, self._run = _backend(logger)

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Log the scalars at the report's step."""
        self._logger.log_metrics(metrics=dict(scalars), step=report.step)
        if self._board is not None:
            self._board.layout(scalars)
        if self._run is not None:
            self._run.best(scalars)

    def alert(self, alert: Alert) -> None:
        """Show the alert where the backend can show one."""
        if self._board is not None:
            self._board.alert(alert)
        if self._run is not None:
            self._run.alert(alert)

    def finished(self, report: Report) -> None:
        """Show the run's worst where the backend can show text or tables."""
        if self._board is not None:
            self._board.finished(report)
        if self._run is not None:
            self._run.finished(report)

    def close(self) -> None:
        """Write what the logger holds back; the trainer owns it and closes it."""
        self._logger.save()


def _backend(logger: Any) -> tuple[TensorBoard | None, WandB | None]:
    if is_a(logger, "TensorBoardLogger"):
        return TensorBoard(writer=logger.experiment), None
    if is_a(logger, "WandbLogger"):
        return None, WandB(run=logger.experiment)
    return None, None


def is_a(thing: Any, name: str) -> bool:
    """True for an instance of a class of this name or of a subclass: Lightning has each class twice."""
    return any(base.__name__ == name for base in type(thing).__mro__)
