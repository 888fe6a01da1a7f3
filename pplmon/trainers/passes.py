"""A pass over validation or test data, between its begin and its end: its batches, by loader, and its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pplmon.monitor import Monitor
from pplmon.monitor.probes import Probe
from pplmon.monitor.repeated_rows import RepeatedRows
from pplmon.report.report import Report
from pplmon.trainers.batches import Batches
from pplmon.trainers.capture import Capture
from pplmon.trainers.capture.sources.hugging_face import model_in
from pplmon.trainers.choosing import Choosing


class PassUnderWay:
    """One pass: each loader's batches are counted separately, without the rows that the loader repeats."""

    def __init__(
        self,
        monitor: Monitor,
        choosing: Choosing,
        stage: str,
        loaders: Sequence[Any],
        ends_epoch: bool,
        part: str | None,
    ) -> None:
        self.opened = monitor.begin_pass(stage, len(loaders), part=part)
        self.ends_epoch = ends_epoch  # it is after the last batch of an epoch
        self._monitor = monitor
        self._batches = Batches(monitor, choosing, stage)
        self._repeated = RepeatedRows(loaders)
        self._loader = 0  # of the batch under way

    def begin_batch(self, capture: Capture, batch: Any, step: int, loader: int) -> None:
        """Begin a loader's next batch; ``step`` is the one in its addresses."""
        number, self._loader = self.opened.begin_batch(loader), loader
        repeated = self._repeated.in_batch(self.opened, loader) if self._monitor.takes_part else None
        self._batches.begin(capture, self.opened.tallies[loader], batch, step, number, repeated)

    def end_batch(self, capture: Capture, outputs: Any, times: int, items: Tensor | float | None) -> None:
        """End the batch; see ``Session.end_batch``. Nothing is accumulated in a pass."""
        self._batches.end(capture, self.opened.tallies[self._loader], outputs, 1, times, items)
        self._repeated.note(self._loader, capture.left_out)

    def end(self, capture: Capture, probes: Sequence[Probe], model: nn.Module, step: int) -> Report:
        """Run the probes, publish the pass at ``step``, and return its report over all loaders. Every rank calls it."""
        capture.conclude(self.opened.stage)
        for probe in probes:
            self._monitor.probe(probe, model_in(model))
        self._repeated.record(self.opened)
        return self._monitor.finish(self.opened, step)

    def compare(self) -> None:
        """Tell of a loss that does not agree, once the pass was waited for."""
        self._batches.end_window()
        self._batches.compare(wait=True)
