"""Use a Lightning logger as a sink: scalars go through the logger, alerts and tables straight to its backend."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from enum import Enum
from typing import Any

from pplmon.alerts import Alert
from pplmon.alerts.text import alert_markdown, title
from pplmon.report.report import Report
from pplmon.sinks.base import Sink
from pplmon.sinks.tensorboard import TensorBoard
from pplmon.sinks.wandb import LEVELS, WandB


class LightningLogger(Sink):
    """One of the trainer's loggers, ``trainer.loggers[number]``. Never opens a run of its own."""

    def __init__(self, logger: Any, number: int = 0) -> None:
        self._logger, self._number = logger, number
        self._board, self._run = _backend(logger)

    @property
    def name(self) -> str:
        """Return which logger it is. Its own name may have to be asked for over the network that just failed."""
        return f"{type(self._logger).__name__} (trainer.loggers[{self._number}])"

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Log the scalars at the report's step."""
        self._logger.log_metrics(metrics=dict(scalars), step=report.step)
        if self._board is not None:
            self._board.layout(scalars)
        if self._run is not None:
            self._run.best(scalars)

    def alert(self, alert: Alert) -> None:
        """Send the alert if the backend has alerts, text or tables."""
        if self._board is not None:
            self._board.alert(alert)
        if self._run is not None:
            self._run.alert(alert)
        if self._board is None and self._run is None:
            _alert_by_experiment(getattr(self._logger, "experiment", None), alert)

    def notice(self, alert: Alert) -> None:
        """Mark the alert where the backend has room for more than scalars."""
        for backend in (self._board, self._run):
            if backend is not None:
                backend.notice(alert)

    def finished(self, report: Report) -> None:
        """Send the run's worst tokens if the backend has text or tables."""
        if self._board is not None:
            self._board.finished(report)
        if self._run is not None:
            self._run.finished(report)

    def close(self) -> None:
        """Flush the logger; the trainer owns it and closes it."""
        self._logger.save()


def _backend(logger: Any) -> tuple[TensorBoard | None, WandB | None]:
    if is_a(logger, "TensorBoardLogger"):
        return TensorBoard(writer=logger.experiment), None
    if is_a(logger, "WandbLogger"):
        return None, WandB(run=logger.experiment)
    return None, None


def is_a(thing: Any, name: str) -> bool:
    """Return True for an instance of a class of this name or of a subclass: Lightning has each class twice."""
    return any(base.__name__ == name for base in type(thing).__mro__)


def _alert_by_experiment(experiment: Any, alert: Alert) -> None:
    """Call ``experiment.alert(title, text, level)`` where there is such a method, as in wandb and trackio."""
    tell = getattr(experiment, "alert", None)
    if not callable(tell):
        return
    known = inspect.signature(tell).parameters
    level: Any = LEVELS[alert.severity]
    usual = known["level"].default if "level" in known else None
    if isinstance(usual, Enum):  # trackio wants a member of its own enum, which has the same names
        level = type(usual)[level]
    step = {"step": alert.step} if "step" in known and alert.step is not None else {}
    tell(title=title(alert), text=alert_markdown(alert), level=level, **step)
