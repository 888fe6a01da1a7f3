"""Use a Lightning logger as a sink: scalars go through the logger, alerts and pictures straight to its backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pplmon.alerts import Alert
from pplmon.report.report import Report
from pplmon.sinks.base import Sink
from pplmon.sinks.tensorboard import TensorBoard
from pplmon.sinks.wandb import WandB
from pplmon.trainers.lightning.other_loggers import Scalars, Texts


class LightningLogger(Sink):
    """One of the trainer's loggers, ``trainer.loggers[number]``. Never opens a run of its own."""

    def __init__(self, logger: Any, number: int = 0) -> None:
        self._logger, self._number = logger, number
        self._backend = _backend(logger)

    def start(self, run: Mapping[str, Any]) -> None:
        """Begin a run: charts and settings, where the backend has room for them."""
        hyperparameters = dict(getattr(self._logger, "hparams", None) or {})
        self._backend.start({**run, **({"hyperparameters": hyperparameters} if hyperparameters else {})})

    @property
    def name(self) -> str:
        """Return which logger it is. Its own name may have to be asked for over the network that just failed."""
        return f"{type(self._logger).__name__} (trainer.loggers[{self._number}])"

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Log the scalars at the report's step, and what else the backend can draw."""
        self._backend.report(report, scalars)

    def alert(self, alert: Alert) -> None:
        """Count the alert, and send it if the backend has alerts, text or tables."""
        self._backend.alert(alert)

    def notice(self, alert: Alert) -> None:
        """Count the alert, and mark it where the backend has room for more than scalars."""
        self._backend.notice(alert)

    def finished(self, report: Report) -> None:
        """Send the run's worst tokens if the backend has text or tables."""
        self._backend.finished(report)

    def close(self) -> None:
        """Flush the logger; the trainer owns it and closes it."""
        self._logger.save()


class _Board(TensorBoard):
    """TensorBoard, whose scalars the logger writes."""

    def __init__(self, logger: Any) -> None:
        super().__init__(writer=logger.experiment)
        self._logger = logger

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._logger.log_metrics(metrics=dict(values), step=step)


class _Run(WandB):
    """A run of W&B, whose rows the logger writes: they carry its own step."""

    def __init__(self, logger: Any) -> None:
        super().__init__(run=logger.experiment)
        self._logger = logger

    def row(self, values: Mapping[str, Any], step: int | None) -> None:
        self._logger.log_metrics(metrics=dict(values), step=step)


def _backend(logger: Any) -> Sink:
    if is_a(logger, "TensorBoardLogger"):
        return _Board(logger)
    if is_a(logger, "WandbLogger"):
        return _Run(logger)
    return Texts(logger) if is_a(logger, "MLFlowLogger") else Scalars(logger)


def is_a(thing: Any, name: str) -> bool:
    """Return True for an instance of a class of this name or of a subclass: Lightning has each class twice."""
    return any(base.__name__ == name for base in type(thing).__mro__)
