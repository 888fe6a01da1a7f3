"""TensorBoard: scalars, the losses of all tokens as histograms, a page of custom charts, reliability diagrams, and alerts as text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pplmon.alerts import Alert
from pplmon.alerts.markdown import evidence_markdown, step_markdown
from pplmon.alerts.text import escaped
from pplmon.alerts.words import SENTENCE, shown
from pplmon.report.declared import select
from pplmon.report.report import Report
from pplmon.report.strict_json import plain
from pplmon.sinks.alert_counts import AlertCounts
from pplmon.sinks.base import Sink
from pplmon.sinks.dashboards import CHARTS, COUNTS, EXTRAS, LABELS, LOSSES, WORST, Chart, any_part
from pplmon.sinks.loss_histogram import LossHistogram
from pplmon.sinks.reliability_diagram import RELIABILITY, Diagram


class TensorBoard(Sink):
    """Writes to ``log_dir``, or to a given ``writer`` (a ``SummaryWriter``; Lightning's ``logger.experiment``)."""

    def __init__(self, log_dir: str | os.PathLike[str] | None = None, writer: Any = None) -> None:
        if (log_dir is None) == (writer is None):
            raise ValueError("TensorBoard takes exactly one of log_dir and writer: give a directory or a SummaryWriter")
        self._log_dir = log_dir
        self._writer = writer
        self._counts = AlertCounts()
        self._of_step: list[Alert] = []  # the alerts of the last step that had one

    @property
    def writer(self) -> Any:
        """Return the ``SummaryWriter``; pplmon's own is made on first use."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._log_dir))
        return self._writer

    @property
    def files(self) -> list[str]:
        """Return pplmon's own directory; that of a given writer is known to whoever made it."""
        return [] if self._log_dir is None else [str(Path(self._log_dir).absolute())]

    def start(self, run: Mapping[str, Any]) -> None:
        """Write the charts, and the settings as text."""
        self._counts.start(run)
        declared = [row["name"] for row in run.get("declared", ())]
        names = select(run.get("logged_numbers", "all"))
        self.writer.add_custom_scalars(custom_scalars(self._counts.prefix, names, declared, self.tags))
        self.writer.add_text(self._counts.key("settings"), _settings(run), run.get("resumed_at") or 0)

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Write one window's scalars and histogram at its last step, and a pass's reliability diagram. Epochs have tags of their own, apart from windows."""
        if report.stage == "train_epoch":
            scalars = {_epoch_tag(key): value for key, value in scalars.items()}
        self.scalars({**scalars, **self._counts.curves()}, report.step)
        drawn = LossHistogram.of(report)
        if drawn is not None:
            tag = f"{self._counts.prefix}{report.stage}/{LOSSES}"
            edges, counts = list(drawn.edges[1:]), list(drawn.counts)
            sums = drawn.edges[0], drawn.edges[-1], drawn.tokens, drawn.total, drawn.squares
            self.writer.add_histogram_raw(tag, *sums, edges, counts, report.step)
        diagram = Diagram.of_pass(report)
        if diagram is not None:
            tag = f"{self._counts.prefix}{report.stage}/{RELIABILITY}"
            self.writer.add_image(tag, diagram.pixels(), report.step, dataformats="HWC")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars; a subclass may hand them to whoever writes the other scalars of the run."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)

    def tags(self, prefix: str, stage: str, name: str) -> str:
        """Return the regular expression of a number's tags; a subclass may know those of whoever writes them."""
        return _regex(prefix, stage, name)

    def alert(self, alert: Alert) -> None:
        """Write all alerts of the step as one text, and count them, then flush: a crash may be next.

        TensorBoard keeps one text a step, the last: so each further alert of a step writes those before it again.
        """
        self._counts.add(alert)
        if self._of_step and (self._of_step[0].step, self._of_step[0].stage) != (alert.step, alert.stage):
            self._of_step = []
        self._of_step.append(alert)
        step = alert.step or 0
        self.writer.add_text(self._counts.key("alerts"), step_markdown(self._of_step), step)
        self.scalars(self._counts.curves(), step)
        self.writer.flush()

    def finished(self, report: Report) -> None:
        """Write the run's worst as text."""
        text = evidence_markdown(report.worst, report.worst_sequences)
        self.writer.add_text(self._counts.key(WORST), text, report.step)

    def close(self) -> None:
        """Close pplmon's own writer; only flush one that was given."""
        if self._writer is None:
            return
        self._writer.flush()
        if self._log_dir is not None:
            self._writer.close()
            self._writer = None


def custom_scalars(
    prefix: str = "",
    names: Sequence[str] | None = None,
    declared: Sequence[str] = (),
    tags: Callable[[str, str, str], str] | None = None,
) -> dict[str, dict[str, list[Any]]]:
    """Return the layout for ``SummaryWriter.add_custom_scalars``: charts of the numbers ``names``, ``None`` being all.

    One number a chart: TensorBoard draws all curves of a run in one colour, and an axis that leaves outliers out hides a
    spike beside a calm curve. Log keys begin with ``prefix``. Of extras, which ``declared`` numbers with braces in their
    names, the parts of the tokens stand in one chart, by their names. ``tags`` returns the regular expression of a number's
    tags from prefix, stage and name.
    """
    regex = tags or _regex
    charts = {title: ["Multiline", [f"^pplmon/{re.escape(prefix)}{name}$"]] for name, title in COUNTS.items()}
    for chart in CHARTS:
        for name in chart.names:
            for stage in chart.stages if names is None or name in names else ():
                charts[_title(chart, name, stage)] = ["Multiline", [regex(prefix, stage, name)]]
    for chart in EXTRAS:
        for name in filter(declared.__contains__, chart.names):
            for stage in chart.stages:
                charts[_title(chart, name, stage)] = ["Multiline", [regex(prefix, stage, name)]]
    return {"pplmon": charts}


def _title(chart: Chart, name: str, stage: str) -> str:
    which = f"{chart.title}: {LABELS[name]}" if len(chart.names) > 1 else chart.title
    of = f", {stage}" if len(chart.stages) > 1 else ""
    return f"{which}{of} ({chart.unit})" if chart.unit else f"{which}{of}"


def _regex(prefix: str, stage: str, name: str) -> str:
    part = "" if stage == "train" else "(?:/.+)?"  # of several loaders or data sets each has a curve
    return rf"^(?:pplmon/)?{re.escape(prefix)}{stage}/{any_part(name)}{part}$"


def _epoch_tag(key: str) -> str:
    """Return ``train_epoch/perplexity`` for ``train/perplexity_epoch``: one dot an epoch would fill the page of windows."""
    head, _, name = key.rpartition("train/")
    return f"{head}train_epoch/{name.removesuffix('_epoch')}"


def _settings(run: Mapping[str, Any]) -> str:
    """Return settings as a list."""
    hidden = ("memory", "kind", "raised")
    told = {name: value for name, value in run.items() if name not in hidden and value not in (None, [], {})}
    return "\n".join(
        f"- **{escaped(name)}**: {escaped(shown(_value(value), SENTENCE))}" for name, value in told.items()
    )


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else json.dumps(plain(value))
