"""Show reports in a Lightning ``Trainer``: to callbacks, to the progress bar, and to loggers under free keys."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch

from pplmon.monitor.publish import Places
from pplmon.report.declared import is_drawn
from pplmon.report.report import Report
from pplmon.trainers.lightning import private_names as facts
from pplmon.trainers.taken_keys import TakenKeys


class TrainerPlaces(Places):
    """The places of one ``Trainer``. A number whose key the module logs itself gets another key.

    Outside training the module's keys are known only after its hooks have run, so reports are held until then.
    """

    def __init__(self, trainer: Any, own_group: bool) -> None:
        self.trainer = trainer
        self.log_dir = facts.directory_of(trainer)  # on every rank: asking is a collective
        # Of several data-parallel groups (tensor-parallel replicas) one writes; a group of the user's writes by itself.
        self.may_write = trainer.is_global_zero or own_group
        self._keys = TakenKeys("module", "PerplexityMonitor(")
        self._lacks = False

    def show(self, report: Report, head: str, tail: str) -> None:
        """Pass the numbers to callbacks, and the perplexity to the progress bar."""
        metrics, bar = self.trainer.callback_metrics, self.trainer.progress_bar_metrics
        own = facts.module_keys(self.trainer)
        for name, value in report.as_dict().items():
            if is_drawn(name):
                continue
            key = report.key(name, head, tail)
            if key in own:
                self._keys.give_way(key)
            metrics[self.key(key)] = torch.tensor(float(value), dtype=torch.float64)
            if name == "perplexity" and not tail:
                bar[self.key(key)] = float(value)

    def lack(self, report: Report, head: str, tail: str) -> None:
        """Give NaN to callbacks in place of numbers that lack ranks, and say so once."""
        if not self._lacks:
            warnings.warn(
                f"pplmon: {head}… lacks {report.ranks_missing} lost rank(s) from here on. Callbacks that monitor such a key find NaN; "
                "what is left of the ranks is in the loggers under rank{r}/… and in their own journals.",
                stacklevel=2,
            )
        self._lacks = True
        for name in report.as_dict():
            self.trainer.callback_metrics[self.key(report.key(name, head, tail))] = torch.tensor(
                float("nan"), dtype=torch.float64
            )

    def holds(self, report: Report) -> bool:
        """Return True for all reports but the windows of training."""
        return report.stage != "train"

    def key(self, key: str) -> str:
        """Return the key, or another one if the module logs this key itself."""
        return self._keys.free(key)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context of the trainer's precision."""
        context: AbstractContextManager[Any] = self.trainer.precision_plugin.forward_context()
        return context
