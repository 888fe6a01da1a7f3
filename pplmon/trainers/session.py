"""Watch one run of any trainer: ``Session`` turns the events of its loop into counting, judging and logging.

The code that connects a trainer calls ``begin_batch`` and ``end_batch`` around every batch, ``step_to`` after an
optimizer step, ``begin_pass`` and ``end_pass`` around validation, and ``close``, or ``abandon`` after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pplmon.monitor import Monitor
from pplmon.monitor.evaluation import Pass
from pplmon.monitor.publish import Places
from pplmon.report.report import Report
from pplmon.report.texts import Decode
from pplmon.sinks.base import Sink
from pplmon.trainers.batches import Batches
from pplmon.trainers.capture import Capture, listen_to_numbers
from pplmon.trainers.choosing import Choosing
from pplmon.trainers.passes import PassUnderWay
from pplmon.trainers.settings import Settings
from pplmon.trainers.watched_window import WatchedWindow

EPOCH_NUMBERS = ("cross_entropy", "perplexity", "token_accuracy", "max_token_loss")


class Session:
    """Watches one run of a trainer, by calls for every batch, step and pass.

    Args:
        settings: the user's settings.
        model: the module that is trained; its logits are looked for in it.
        sinks: the places to show numbers and alerts.
        every_n_steps: optimizer steps in a logged window where the user named none; 0 and ``None`` log none.
        device: the device of the tally before there are logits.
        group: the group of ranks with different data, unless the user named one; ``None`` is all ranks.
        decode: ids -> str where the user named none.
        places: the trainer's own places for numbers.
        monitor: one that a loop made with settings of its own, in place of all of these.
    """

    def __init__(
        self,
        settings: Settings,
        model: nn.Module,
        sinks: Iterable[Sink] = (),
        every_n_steps: int | None = None,
        device: torch.device | None = None,
        group: Any = None,
        decode: Decode | None = None,
        places: Places | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        self.settings = settings
        self.monitor = monitor or settings.monitor(sinks, every_n_steps, device, group, decode, places)
        self.window = WatchedWindow(self.monitor)
        self._choosing = Choosing(self.monitor)
        self._batches = Batches(self.monitor, self._choosing, "train", settings.show and self.monitor.writes)
        self._micro_batch, self._in_batch = 0, False
        self._at: int | None = None  # the step that the batch under way belongs to
        self._pass: PassUnderWay | None = None
        self.closed = False
        self._stop_numbers: Callable[[], None] | None = None
        self.listen_to(model)

    def listen_to(self, model: nn.Module) -> None:
        """Look for logits in a model from here on. It has to happen before the model's first compiled call."""
        given = self.settings
        self._capture = Capture(
            given.logits, given.targets, given.shift, given.wire, given.first_only, given.recompute_logits
        )
        self._capture.attach(model)
        self._model = model
        self._choosing.listen(self._capture.decision)
        self._stop_hearing_numbers()
        self._stop_numbers = listen_to_numbers(model, self)

    def stop_listening(self) -> None:
        """Remove the hooks, and forget a pass that was not ended."""
        self._detach()
        self._pass = None

    def _detach(self) -> None:
        self._capture.detach()
        self._stop_hearing_numbers()

    def _stop_hearing_numbers(self) -> None:
        stop, self._stop_numbers = self._stop_numbers, None
        if stop is not None:
            stop()

    @property
    def listening(self) -> bool:
        """Return True while a model is hooked."""
        return self._capture.attached

    @property
    def should_stop(self) -> bool:
        """Return True once the run is to stop: at the same step on all ranks."""
        return self.monitor.should_stop

    # Numbers of the user's own.

    def log(self, name: str, value: Tensor | float) -> None:
        """Log a number for the optimizer step under way (see ``Monitor.log``)."""
        self.monitor.log(name, value, self.step_under_way)

    def log_grad_norm(self, parameters: Iterable[nn.Parameter]) -> None:
        """Log the norm of all gradients if the user asked for it. To be called before they are clipped."""
        if self.settings.grad_norm:
            self.monitor.log_grad_norm(parameters, self.step_under_way)

    @property
    def step_under_way(self) -> int:
        """Return the optimizer step under way, 0-based; those that are held back are closed."""
        return self.monitor.current_step + self._choosing.held if self._at is None else self._at

    # Batches and steps.

    def begin_batch(self, batch: Any, step: int | None = None, loader: int = 0) -> None:
        """Begin a micro-batch of the optimizer step ``step`` (0-based; ``None``: the next), or a batch of a pass.

        In a pass ``step`` is the one in the batch's addresses, and ``loader`` the number of the batch's loader.
        """
        monitor = self.monitor
        if self._pass is not None:
            self._pass.begin_batch(self._capture, batch, monitor.last_step if step is None else step, loader)
            return
        self._at = step
        step = monitor.current_step if step is None else step
        monitor.see(step, self._micro_batch, batch)
        monitor.mark_batch(empty=not self._micro_batch and monitor.cadence.reads_out(monitor.last_step))
        self._in_batch = True
        self._batches.begin(self._capture, monitor.tally, batch, step, self._micro_batch)

    def end_batch(
        self, outputs: Any = None, divided_by: int = 1, times: int = 1, items: Tensor | float | None = None
    ) -> None:
        """Count the batch. ``outputs`` are what its step returned: the loss or a dict.

        The loss was divided by ``divided_by``, for accumulation, and multiplied by ``times``, for ranks. It is a sum that is
        divided by ``items``; ``None``: by the number that a model was told, else by its tokens.
        """
        if self._pass is not None:
            self._pass.end_batch(self._capture, outputs, times, items)
            return
        self._batches.end(self._capture, self.monitor.tally, outputs, divided_by, times, items)
        self._micro_batch += 1
        self._in_batch = False

    def step_to(self, step: int | None = None) -> Report | None:
        """Close an optimizer step. Returns, one step late, the report of the window that closed, else ``None``.

        While it is not chosen which logits and shift to count, in the first steps, nothing is read out.
        """
        self._micro_batch, self._at = 0, None
        step = self.monitor.current_step + self._choosing.held if step is None else step
        self._batches.compare()
        report = self._choosing.step_to(step)
        if report is not None:
            self._batches.end_window()
        return report

    def log_window(self) -> Report | None:
        """Log the open window now, and return its report; ``None`` where it is empty. Every rank calls it, and waits."""
        self._choosing.finish("train")
        return self.monitor.log_window()

    def begin_epoch(self, batches: int | None) -> None:
        """Begin an epoch of so many batches; ``None`` if that is not known."""
        self.monitor.begin_epoch(batches)

    def end_epoch(self, ends: bool = True) -> None:
        """Publish the numbers of the epoch, which ``ends`` with this rank's last batch. Every rank calls it."""
        with self.monitor.at_epoch_end(ends):
            self._choosing.finish("train")
            self._capture.conclude("train")
            report = self.monitor.end_epoch().report(self.monitor.last_step, "train")
        numbers = {name: report.numbers[name] for name in EPOCH_NUMBERS}
        kept = Report(report.step, "train_epoch", numbers, ranks_missing=self.monitor.ranks_missing)
        self.monitor.publisher.publish(kept, f"{self.monitor.prefix}train/", "_epoch")
        self.window.show()

    # A pass.

    @property
    def in_pass(self) -> bool:
        """Return True between ``begin_pass`` and ``end_pass``."""
        return self._pass is not None

    def begin_pass(
        self,
        stage: str,
        loaders: Sequence[Any] = (None,),
        ends_epoch: bool = False,
        part: str | None = None,
    ) -> Pass:
        """Begin a whole pass over val or test data; batches up to ``end_pass`` are counted separately, for each loader.

        The rows that a given loader repeats are found; ``None`` stands for an unknown loader, unless accelerate knows it.
        ``ends_epoch`` is True after this rank's last batch of an epoch. ``part`` names the data set, where each of several
        has a pass.
        """
        with self.monitor.at_epoch_end(ends_epoch):
            self._choosing.finish("train")
            self.monitor.catch_up()  # an alert must not wait for the pass to end, whose rows say how many tokens came before
            if self.monitor.current_step:
                self.window.show()
        self._pass = PassUnderWay(self.monitor, self._choosing, stage, loaders, ends_epoch, part)
        return self._pass.opened

    def end_pass(self, step: int | None = None) -> Report:
        """Publish the pass at ``step`` and return its report over all loaders. Every rank calls it."""
        if self._pass is None:
            raise RuntimeError("end_pass was called without begin_pass")
        with self.monitor.at_epoch_end(self._pass.ends_epoch):
            self._choosing.finish(self._pass.opened.stage)
            ended, self._pass = self._pass, None
            at = self.monitor.last_step if step is None else step
            report = ended.end(self._capture, self.settings.probes, self._model, at)
        ended.compare()
        return report

    def give_up_pass(self) -> None:
        """End a pass after an exception: what it counted goes to this rank's own journal."""
        self._pass = None
        self.monitor.give_up_pass()

    # The end.

    def settle(self) -> None:
        """Choose what training counts, by what there is: what follows needs the numbers. Every rank calls it."""
        self._choosing.finish("train")

    def state_dict(self, repeats_batch: bool = False) -> dict[str, Any]:
        """Return everything that a resumed run needs, as plain values. Every rank calls it, and gets the same.

        ``repeats_batch`` is for a state that is saved in the middle of a batch, which the resumed trainer repeats.
        """
        self.settle()
        return self.monitor.state_dict(repeats_batch and self._in_batch)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state, on any number of ranks. Every rank loads the same one."""
        self.monitor.load_state_dict(state)

    def close(self) -> Report | None:
        """Log the last, shorter window, let go of files, and return the last report. Every rank calls it."""
        self._choosing.finish("train")
        self._capture.conclude("train")
        self.closed = True
        last = self.monitor.close()
        self._batches.compare(wait=True)
        self._batches.end_window()
        self._batches.compare(wait=True)
        return last

    def give_up(self) -> None:
        """Leave the model alone after an exception; what was measured counts. Nothing is sent to other ranks."""
        self._choosing.give_up()
        self._detach()

    def abandon(self) -> None:
        """End after an exception: leave the model alone and write what is held back. Nothing is sent to other ranks."""
        self.give_up()
        self.monitor.abandon()

    def release(self) -> None:
        """Remove hooks and close files; another pass may follow."""
        self._detach()
        self.monitor.release()
