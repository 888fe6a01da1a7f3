"""A monitor that also tells a Lightning ``Trainer``: its callbacks, its progress bar, and its loggers under free keys."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from pplmon.monitor import Monitor
from pplmon.report.report import Report
from pplmon.trainers.lightning import private_names as facts
from pplmon.trainers.lightning.loaders import TrainerPass


class TrainerMonitor(Monitor):
    """The monitor of one run of a ``Trainer``."""

    def __init__(self, trainer: Any, replicated: bool, **settings: Any) -> None:
        self.trainer = trainer  # the handlers that the constructor binds ask for these two
        self.log_dir = trainer.log_dir or trainer.default_root_dir  # on every rank: asking is a collective
        super().__init__(**settings)
        # Of several data-parallel groups (tensor-parallel replicas) one writes; a group of the user's writes by itself.
        self._link.may_write = trainer.is_global_zero or not replicated
        self._held: list[tuple[Report, str, str]] = []
        self._renamed: set[str] = set()

    def publish(self, report: Report, head: str, tail: str = "") -> None:
        """Give the numbers to callbacks at once, and to the loggers when no key of the module's can be missed."""
        if not self._link.takes_part:
            return
        if not self._abandoned:
            self._tell_callbacks(report, head, tail)
        self._held.append((report, head, tail))
        if report.stage == "train":
            self._send_held()

    def send_held(self) -> None:
        """Send the reports that were held back to the sinks, now that it is known which keys the module logs itself."""
        for report, head, tail in self._held:
            self._tell_callbacks(report, head, tail)
        self._send_held()

    def _send_held(self) -> None:
        held, self._held = self._held, []
        for report, head, tail in held:
            if self.writes:
                scalars = self.keys(report, head, tail)
                self._delivery.report(report, {self._key(key): value for key, value in scalars.items()})

    @property
    def takes_part(self) -> bool:
        """False on a rank outside the group of the tally."""
        return self._link.takes_part

    def open_pass(self, stage: str, loaders: list[Any]) -> TrainerPass:
        """Begin a pass over these loaders."""
        opened = TrainerPass(stage, self._link.pattern, loaders)
        self._pass = opened
        return opened

    def release(self) -> None:
        """Let go of files; the trainer may go on with another pass."""
        self.send_held()
        self._delivery.close()

    def close(self) -> Report | None:
        """Send what was held back, too."""
        self.send_held()
        return super().close()

    def abandon(self, seconds: float = 10.0) -> None:
        """Send what was held back, too. The trainer's metrics are left alone: reading them may be a collective."""
        self._send_held()
        super().abandon(seconds)

    def _tell_callbacks(self, report: Report, head: str, tail: str) -> None:
        metrics, bar = self.trainer.callback_metrics, self.trainer.progress_bar_metrics
        own = facts.module_keys(self.trainer)
        for name, value in report.as_dict().items():
            key = f"{head}{name}{tail}"
            if key in own:
                self._rename(key)
            metrics[self._key(key)] = torch.tensor(float(value), dtype=torch.float64)
            if name == "perplexity" and not tail:
                bar[self._key(key)] = float(value)

    def _key(self, key: str) -> str:
        return f"pplmon/{key}" if key in self._renamed else key

    def _rename(self, key: str) -> None:
        if not self._renamed:
            warnings.warn(
                f"pplmon: the module logs {key!r} itself. pplmon's own is logged as 'pplmon/{key}' (the same for any other "
                'such key); set PerplexityMonitor(prefix="...") to choose another name.',
                stacklevel=2,
            )
        self._renamed.add(key)
