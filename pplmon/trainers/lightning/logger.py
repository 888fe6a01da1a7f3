"""Use a Lightning logger as a sink: scalars go through the logger, alerts and tables straight to its backend."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from enum import Enum
from typing import Any

from pplmon.alerts import Alert
from pplmon.alerts.text import alert_markdown, title
from pplmon.report.report import Report
from pplmon.sinks.tensorboard import TensorBoard
from pplmon.sinks.wandb import LEVELS, WandB
from pplmon.trainers.own_backend import OwnBackend


class LightningLogger(OwnBackend):
    """One of the trainer's loggers. Never opens a run of its own."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        super().__init__(*_backend(logger))

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Log the scalars at the report's step."""
        self._logger.log_metrics(metrics=dict(scalars), step=report.step)
        super().report(report, scalars)

    def alert(self, alert: Alert) -> None:
        """Send the alert if the backend has alerts, text or tables."""
        super().alert(alert)
        if not self._backends():
            _alert_by_experiment(getattr(self._logger, "experiment", None), alert)

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
