"""``PerplexityCallback``, the callback for the Hugging Face ``Trainer``: its events call a session.

A callback sees no inputs, no loss and no ``trainer.log``: ``Bound`` takes these where they are, once ``pplmon.watch`` has
bound the callback to its trainer.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback

from pplmon.extras.groups import Groups
from pplmon.trainers.hugging_face import facts
from pplmon.trainers.hugging_face.bound import Bound
from pplmon.trainers.hugging_face.checkpoint import save
from pplmon.trainers.hugging_face.sinks import OwnPlaces, own_sinks, sinks_beside
from pplmon.trainers.session import Session
from pplmon.trainers.settings import Settings


class PerplexityCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """A callback that measures exact perplexity, accuracy and worst tokens in a Hugging Face ``Trainer``, and raises alerts.

    ``pplmon.watch(trainer)`` makes one and binds it; a bound one adds its numbers to what the trainer logs. In
    ``callbacks=[…]`` alone it has the train numbers and sinks of its own.

    Args:
        settings: by name, those of ``PerplexityMonitor``. ``every_n_steps=None`` is the trainer's own logging, ``decode=None``
            the trainer's ``processing_class``.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = Settings.of("hugging_face", settings)
        if self._settings.grad_norm:
            raise ValueError(
                "grad_norm=True is for loops: this trainer logs grad_norm, before clipping, by itself; leave it out"
            )
        self._bound: Bound | None = None
        self._session: Session | None = None
        self._step: int | None = None  # the optimizer step under way, 0-based; None between steps

    @property
    def prefix(self) -> str:
        """Return what is put before every log key."""
        return self._settings.prefix

    @property
    def groups(self) -> bool:
        """Return True if an extra measures groups of rows apart."""
        tally = self._settings.tally
        return tally is not None and any(isinstance(extra, Groups) for extra in tally.extras)

    @property
    def is_bound(self) -> bool:
        """Return True once ``pplmon.watch`` has bound it to its trainer."""
        return self._bound is not None

    def bind(self, trainer: Any) -> None:
        """Take inputs, losses and rows of numbers from a trainer; ``pplmon.watch`` calls it."""
        self._bound = Bound(trainer, self)

    # A run.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the session of this run, where the checkpoint was written that it goes on from."""
        if self._bound is None:
            warnings.warn(
                "pplmon: a PerplexityCallback by itself has the train numbers only, and not in the trainer's logs. For those, "
                "and for evaluation, bind it: pplmon.watch(trainer)",
                stacklevel=2,
            )
        session = self.begin(args, state, kwargs["model"], kwargs["processing_class"])
        if self._bound is not None:
            facts.mend_direction(args)
            self._bound.resume(session)

    def begin(self, args: Any, state: Any, model: Any, processing_class: Any) -> Session:
        """Begin a session; a run that ended in an exception may have left one."""
        self.end()
        bound, settings = self._bound, self._settings
        if bound is not None:
            settings = replace(settings, first_only=bound.has_reference)
            if settings.logits is None and settings.targets is None:
                settings = replace(settings, targets=bound.popped_labels)
        sinks = (
            own_sinks(args, self.prefix)
            if bound is None
            else sinks_beside(args, self.prefix, bound.callbacks, bound.heads)
        )
        self._session = session = Session(
            settings,
            model,
            sinks,
            facts.logging_steps(args, state),
            device=args.device,
            decode=facts.decoder_of(processing_class),
            places=OwnPlaces(args.output_dir),
        )
        session.monitor.wait_for_window = bound is not None  # the trainer waits for its own loss at the same step
        return session

    def end(self) -> None:
        """Leave the model alone, and forget the session."""
        if self._session is not None:
            self._session.release()
        self._session, self._step = None, None

    # Steps.

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin an optimizer step."""
        self._step = state.global_step
        if self._bound is not None:
            self._bound.rows.send()
        else:
            self._running().begin_batch({}, self._step)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a micro-batch that nobody else ends."""
        if self._bound is None:
            self._running().end_batch()
            self._running().begin_batch({}, self._step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Close the optimizer step, and stop if an alert asked for it."""
        session = self._running()
        if self._bound is None:
            session.end_batch()
        report = session.step_to(self._step)
        self._step = None
        if self._bound is not None:
            self._bound.show(report)
        control.should_training_stop = control.should_training_stop or session.should_stop
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the window of an epoch, where the trainer logs once an epoch."""
        if facts.logs_by_epoch(args) and self._settings.every_n_steps is None:
            report = self._running().log_window()
            if self._bound is not None:
                self._bound.show(report)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what a resumed run needs beside the trainer's own checkpoint."""
        save(self._running().state_dict(), args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the last, shorter window unless that is done, remove hooks and close files."""
        if self._bound is None:
            self._running().close()
        self._running().release()

    # For ``Bound``.

    @property
    def session(self) -> Session | None:
        """Return the session, if there is one."""
        return self._session

    @property
    def step(self) -> int | None:
        """Return the optimizer step under way, 0-based; ``None`` between steps."""
        return self._step

    def abandon(self) -> None:
        """End after an exception: remove hooks and write what is held back. Nothing is sent to other ranks."""
        session, self._session, self._step = self._session, None, None
        if session is not None:
            session.abandon()

    def _running(self) -> Session:
        if self._session is None:
            raise RuntimeError("PerplexityCallback was called outside a run of a Trainer")
        return self._session
