"""Loggers that pplmon has no sink for: numbers and counts of alerts everywhere, and what else their backends keep."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from enum import Enum
from typing import Any

from pplmon.alerts import Alert
from pplmon.alerts.markdown import evidence_markdown, step_markdown
from pplmon.alerts.message import few_lines
from pplmon.alerts.text import title
from pplmon.report.report import Report
from pplmon.sinks.alert_counts import AlertCounts
from pplmon.sinks.base import Sink
from pplmon.sinks.dashboards import LOSSES, WORST
from pplmon.sinks.loss_histogram import LossHistogram
from pplmon.sinks.wandb import LEVELS


class Scalars(Sink):
    """Any logger: numbers, and where its backend has them alerts and histograms."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._counts = AlertCounts()

    def start(self, run: Mapping[str, Any]) -> None:
        self._counts.start(run)

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        row: dict[str, Any] = {**scalars, **self._counts.curves()}
        drawn, trackio = LossHistogram.of(report), sys.modules.get("trackio")
        if drawn is not None and trackio is not None and _is_of("trackio", self._experiment):
            key = f"{self._counts.prefix}{report.stage}/{LOSSES}"
            row[key] = trackio.Histogram(np_histogram=(list(drawn.counts), list(drawn.edges)))
        self._logger.log_metrics(metrics=row, step=report.step)

    def alert(self, alert: Alert) -> None:
        self.notice(alert)
        _alert_by_experiment(self._experiment, alert)

    def notice(self, alert: Alert) -> None:
        self._counts.add(alert)

    @property
    def _experiment(self) -> Any:
        return getattr(self._logger, "experiment", None)


class Texts(Scalars):
    """MLflow: a text for each alert and notice, and one of the run's worst, among the run's files."""

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._written = 0

    def notice(self, alert: Alert) -> None:
        super().notice(alert)
        self._written += 1
        step = "" if alert.step is None else f"-step={alert.step}"
        self._write(f"alerts/{self._written:03}{step}", step_markdown([alert]))

    def finished(self, report: Report) -> None:
        self._write(WORST, evidence_markdown(report.worst, report.worst_sequences))

    def _write(self, name: str, text: str) -> None:
        self._experiment.log_text(self._logger.run_id, text, f"{self._counts.key(name)}.md")


def _is_of(package: str, thing: Any) -> bool:
    return any(base.__module__.partition(".")[0] == package for base in type(thing).__mro__)


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
    tell(title=title(alert), text=few_lines(alert), level=level, **step)
