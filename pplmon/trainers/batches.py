"""The batches of training, or of a pass: what each shows is counted, and compared with the loss that its step gave."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pplmon.doctor.first_batch import print_batch
from pplmon.doctor.loss_agrees import LossGuard
from pplmon.monitor import Monitor
from pplmon.monitor.repeated_rows import Repeated
from pplmon.tally import TokenTally
from pplmon.trainers.capture import Capture
from pplmon.trainers.choosing import Choosing


class Batches:
    """The batches of one stage. With ``show`` the first is printed."""

    def __init__(self, monitor: Monitor, choosing: Choosing, stage: str, show: bool = False) -> None:
        self._monitor, self._choosing, self._stage, self._show = monitor, choosing, stage, show
        self._guard = LossGuard()

    def begin(
        self, capture: Capture, tally: TokenTally, batch: Any, step: int, number: int, repeated: Repeated | None = None
    ) -> None:
        """Begin batch ``number`` of a step or a pass: it is counted in ``tally``, without its repeated rows."""
        if self._monitor.takes_part:
            capture.begin_batch(self._stage, tally, batch, step, number, repeated)
        if not capture.decision.undecided(self._stage):
            self._guard.before(tally)

    def end(
        self,
        capture: Capture,
        tally: TokenTally,
        outputs: Any,
        divided_by: int,
        times: int,
        items: Tensor | float | None,
    ) -> None:
        """End the batch; see ``Session.end_batch``."""
        compares = self._guard.compares or capture.compares
        loss = _loss(outputs, divided_by, times) if compares else None
        capture.end_batch(outputs, loss, divided_by)
        if self._show:
            self._show_first(capture)
        self._choosing.after_batch(self._stage)
        if loss is not None:
            items = capture.items if items is None else items
            # Items are those of all accumulated micro-batches.
            parts = capture.decision.calls_in_loss(self._stage) * (1 if items is None else divided_by)
            loss = loss if parts == 1 else loss / parts
        self._guard.after(tally, loss, items)

    def compare(self, wait: bool = False) -> None:
        """Tell of a loss that does not agree, and look closer at the next batch."""
        gap = self._guard.gap(wait)
        if gap is not None:
            self._choosing.doubt(self._stage, gap)

    def end_window(self) -> None:
        """Go on to the next window of comparisons."""
        self._guard.end_window()

    def _show_first(self, capture: Capture) -> None:
        """Print a batch once, with what is not scored in grey. Waits for the device."""
        measured = capture.decision.first_heard(self._stage)
        if measured is not None:
            self._show = False
            print_batch(measured.tokens, bool(measured.shift), self._monitor.decode)


def _loss(outputs: Any, divided_by: int, times: int) -> Tensor | None:
    """Return the loss of one micro-batch that a step returned, as it was before it was divided and multiplied."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if not isinstance(loss, Tensor):
        return None
    loss = loss.detach() if times == 1 else loss.detach() / times
    return loss * divided_by if divided_by != 1 else loss
