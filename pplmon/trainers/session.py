"""Watch one run of any trainer: ``Session`` turns the events of its loop into counting, judging and logging.

The code that connects a trainer calls ``begin_batch`` and ``end_batch`` around every batch, ``step_to`` after an
optimizer step, ``begin_pass`` and ``end_pass`` around validation, and ``close``, or ``abandon`` after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pplmon.doctor.first_batch import print_batch
from pplmon.doctor.loss_agrees import LossGuard
from pplmon.monitor import Monitor
from pplmon.monitor.evaluation import Pass
from pplmon.monitor.publish import Places
from pplmon.monitor.repeated_rows import RepeatedRows
from pplmon.report.declared import find
from pplmon.report.report import Report
from pplmon.report.texts import Decode
from pplmon.sinks.base import Sink
from pplmon.trainers.capture import Capture, listen_to_numbers
from pplmon.trainers.capture.sources.hugging_face import model_in
from pplmon.trainers.choosing import Choosing
from pplmon.trainers.settings import Settings

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
        self.monitor = monitor or Monitor(
            every_n_steps=(every_n_steps if settings.every_n_steps is None else settings.every_n_steps) or None,
            judge_every_n_steps=settings.judge_every_n_steps,
            numbers=settings.numbers,
            prefix=settings.prefix,
            tally=settings.pattern(device, group),
            sinks=sinks,
            alerts=settings.rules(),
            on_alert=settings.on_alert,
            min_severity=settings.min_severity,
            grad_norm=settings.grad_norm,
            reference=settings.reference,
            decode=settings.decode or decode,
            places=places,
        )
        more = settings.pass_pattern(self.monitor.tally) if monitor is None else None
        if more is not None:
            self.monitor.also_measure_in_passes(more)
        self._guard, self._pass_guard = LossGuard(), LossGuard()
        self._micro_batch = 0
        self._at: int | None = None  # the step that the batch under way belongs to
        self._pass: Pass | None = None
        self._repeated = RepeatedRows()
        self._loader = 0
        self._ends_epoch = False  # the pass under way is after the last batch of an epoch
        self._choosing = Choosing(self.monitor)
        self.closed, self._in_batch = False, False
        self._shown = False  # something, to callbacks that watch a window
        self._shows = settings.show and self.monitor.writes
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
        self._choosing.listen(self._capture)
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

    def wait_for(self, keys: Iterable[str]) -> None:
        """Read each logged window at its own step if one of these keys, which a callback watches, is a window's."""
        head = f"{self.monitor.prefix}train/"
        named = [key.removeprefix("pplmon/") for key in keys]  # so one is renamed that the module logs itself
        ours = [key.removeprefix(head) for key in (*keys, *named) if key.startswith(head)]
        self.monitor.wait_for_window = any(find(name) is not None for name in ours)

    @property
    def watched(self) -> bool:
        """Return True if a callback watches the numbers of a window."""
        return self.monitor.wait_for_window

    def show_watched(self, asked: bool = True) -> None:
        """Show callbacks the open window where they watch one: after the first step, and whenever one asks.

        A callback may ask before a window closes; later it would find the last one. Every rank calls it, and waits.
        """
        if self.watched and (asked or not self._shown):
            report = self.monitor.so_far()
            if report is not None:
                self.monitor.publisher.show(report, f"{self.monitor.prefix}train/")
                self._shown = True

    def begin_batch(self, batch: Any, step: int | None = None, loader: int = 0) -> None:
        """Begin a micro-batch of the optimizer step ``step`` (0-based; ``None``: the next), or a batch of a pass.

        In a pass ``step`` is the one in the batch's addresses, and ``loader`` the number of the batch's loader.
        """
        monitor = self.monitor
        if self._pass is not None:
            self._begin_pass_batch(self._pass, batch, monitor.last_step if step is None else step, loader)
            return
        self._at = step
        step = monitor.current_step if step is None else step
        if monitor.takes_part:
            self._capture.begin_batch("train", monitor.tally, batch, step, self._micro_batch)
        monitor.see(step, self._micro_batch, batch)
        monitor.mark_batch(empty=not self._micro_batch and monitor.cadence.reads_out(monitor.last_step))
        self._in_batch = True
        if not self._capture.undecided("train"):
            self._guard.before(monitor.tally)

    def end_batch(
        self, outputs: Any = None, divided_by: int = 1, times: int = 1, items: Tensor | float | None = None
    ) -> None:
        """Count the batch. ``outputs`` are what its step returned: the loss or a dict.

        The loss was divided by ``divided_by``, for accumulation, and multiplied by ``times``, for ranks. It is a sum that is
        divided by ``items``; ``None``: by the number that a model was told, else by its tokens.
        """
        training = self._pass is None
        loss = _loss(outputs, divided_by if training else 1, times)  # nothing is accumulated in a pass
        self._capture.end_batch(outputs, loss, divided_by if training else 1)
        if self._shows and training:
            self._show_first_batch()
        stage = "train" if self._pass is None else self._pass.stage
        self._choosing.after_batch(stage)
        items = self._capture.items if items is None else items
        if items is not None and loss is not None and training and divided_by != 1:
            loss = loss / divided_by  # they are those of all accumulated micro-batches
        calls = self._capture.calls_in_loss(stage)
        if loss is not None and calls > 1:
            loss = loss / calls
        if self._pass is not None:
            self._repeated.note(self._loader, self._capture.left_out)
            self._pass_guard.after(self._pass.tallies[self._loader], loss, items)
            return
        self._guard.after(self.monitor.tally, loss, items)
        self._micro_batch += 1
        self._in_batch = False

    def _show_first_batch(self) -> None:
        """Print a batch once, with what is not scored in grey. Waits for the device."""
        measured = self._capture.first_heard("train")
        if measured is None:
            return
        self._shows = False
        print_batch(measured.tokens, bool(measured.shift), self.monitor.decode)

    def step_to(self, step: int | None = None) -> Report | None:
        """Close an optimizer step. Returns, one step late, the report of the window that closed, else ``None``.

        While it is not chosen which logits and shift to count, in the first steps, nothing is read out.
        """
        self._micro_batch, self._at = 0, None
        step = self.monitor.current_step + self._choosing.held if step is None else step
        self._doubt("train", self._guard)
        report = self._choosing.step_to(step)
        if report is not None:
            self._guard.end_window()
        return report

    def log_window(self) -> Report | None:
        """Log the open window now, and return its report; ``None`` where it is empty. Every rank calls it, and waits."""
        self._choosing.finish("train")
        return self.monitor.log_window()

    def _doubt(self, stage: str, guard: LossGuard, wait: bool = False) -> None:
        """Tell of a loss that does not agree, and look closer at the next batch."""
        gap = guard.gap(wait)
        if gap is not None:
            self._choosing.doubt(stage, gap)

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
        self.show_watched()

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
        self._ends_epoch = ends_epoch
        with self.monitor.at_epoch_end(ends_epoch):
            self._choosing.finish("train")
            self.monitor.catch_up()  # an alert must not wait for the pass to end, whose rows say how many tokens came before
            if self.monitor.current_step:
                self.show_watched()
        self._pass = opened = self.monitor.begin_pass(stage, len(loaders), part=part)
        self._pass_guard = LossGuard()
        self._repeated = RepeatedRows(loaders)
        return opened

    def _begin_pass_batch(self, opened: Pass, batch: Any, step: int, loader: int) -> None:
        number, self._loader = opened.begin_batch(loader), loader
        if self.monitor.takes_part:
            repeated = self._repeated.in_batch(opened, loader)
            self._capture.begin_batch(opened.stage, opened.tallies[loader], batch, step, number, repeated)
        if not self._capture.undecided(opened.stage):
            self._pass_guard.before(opened.tallies[loader])

    def end_pass(self, step: int | None = None) -> Report:
        """Publish the pass at ``step`` and return its report over all loaders. Every rank calls it."""
        if self._pass is None:
            raise RuntimeError("end_pass was called without begin_pass")
        with self.monitor.at_epoch_end(self._ends_epoch):
            self._choosing.finish(self._pass.stage)
            opened, self._pass = self._pass, None
            self._capture.conclude(opened.stage)
            for probe in self.settings.probes:
                self.monitor.probe(probe, model_in(self._model))
            self._repeated.record(opened)
            report = self.monitor.finish(opened, self.monitor.last_step if step is None else step)
        self._pass_guard.end_window()
        self._doubt(opened.stage, self._pass_guard, wait=True)  # the pass was waited for
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
        self._doubt("train", self._guard, wait=True)
        self._guard.end_window()
        self._doubt("train", self._guard, wait=True)
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


def _loss(outputs: Any, divided_by: int, times: int) -> Tensor | None:
    """Return the loss of one micro-batch that a step returned, as it was before it was divided and multiplied."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if not isinstance(loss, Tensor):
        return None
    loss = loss.detach() if times == 1 else loss.detach() / times
    return loss * divided_by if divided_by != 1 else loss
