"""TensorBoard: scalars, one page of custom charts, and alerts as text with their worst tokens."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pplmon.alerts import Alert
from pplmon.alerts.text import alert_markdown, evidence_markdown
from pplmon.report.log_keys import split_key
from pplmon.report.report import Report
from pplmon.sinks.base import Sink

# Chart → the stages and the numbers in it. Losses and perplexities never share a chart: their scales differ.
CHARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "token loss (nats)": (("train",), ("cross_entropy", "token_loss_p99", "worst_1pct_loss", "max_token_loss")),
    "sequence loss (nats per token)": (("train",), ("cross_entropy", "max_sequence_loss")),
    "perplexity": (("train", "val"), ("perplexity",)),
    "accuracy": (("train", "val"), ("token_accuracy", "inverse_perplexity", "mean_target_probability")),
    "non-finite tokens": (("train", "val"), ("nonfinite_tokens",)),
}


class TensorBoard(Sink):
    """Writes to ``log_dir``, or to a given ``writer`` (a ``SummaryWriter``; Lightning's ``logger.experiment``).

    ``layout`` and ``alert`` can be called alone, where something else writes the scalars.
    """

    def __init__(self, log_dir: str | os.PathLike[str] | None = None, writer: Any = None) -> None:
        if (log_dir is None) == (writer is None):
            raise ValueError("TensorBoard takes exactly one of log_dir and writer: give a directory or a SummaryWriter")
        self._log_dir = log_dir
        self._writer = writer
        self._laid_out = False

    @property
    def writer(self) -> Any:
        """Return the ``SummaryWriter``; pplmon's own is made on first use."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._log_dir))
        return self._writer

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Write one window's scalars at its last step, and with the first train window the charts."""
        self.layout(scalars)
        for key, value in scalars.items():
            self.writer.add_scalar(key, value, report.step)

    def layout(self, scalars: Iterable[str]) -> None:
        """Write the custom charts once, as soon as ``scalars`` (by log key) hold train keys, which give the prefix."""
        prefixes = [key.prefix for key in map(split_key, scalars) if key is not None and key.stage == "train"]
        if self._laid_out or not prefixes:
            return
        self._laid_out = True
        # The shortest: a key that clashed with one of the module's own has "pplmon/" before the prefix.
        self.writer.add_custom_scalars(custom_scalars(min(prefixes, key=len)))

    def alert(self, alert: Alert) -> None:
        """Write an alert as text, and flush: a crash within TensorBoard's two minutes would lose it otherwise."""
        self.writer.add_text("pplmon/alerts", alert_markdown(alert), alert.step)
        self.writer.flush()

    def finished(self, report: Report) -> None:
        """Write the run's worst as text."""
        self.writer.add_text("pplmon/worst_of_run", evidence_markdown(report), report.step)

    def close(self) -> None:
        """Close pplmon's own writer; only flush one that was given."""
        if self._writer is None:
            return
        self._writer.flush()
        if self._log_dir is not None:
            self._writer.close()
            self._writer = None


def custom_scalars(prefix: str = "") -> dict[str, dict[str, list[Any]]]:
    """Return the layout for ``SummaryWriter.add_custom_scalars``, for log keys that begin with ``prefix``."""
    charts = {title: ["Multiline", [_regex(prefix, *chart)]] for title, chart in CHARTS.items()}
    return {"pplmon": charts}


def _regex(prefix: str, stages: tuple[str, ...], names: tuple[str, ...]) -> str:
    start = rf"^(?:pplmon/)?{re.escape(prefix)}(?:{'|'.join(stages)})"
    return rf"{start}/(?:{'|'.join(names)})(?:/dataloader_idx_\d+)?$"
