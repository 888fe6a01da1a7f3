"""``Checkpoint``: keep the state of the run as it was when an alert was raised."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pplmon.alerts import Alert
from pplmon.alerts.actions.files import folder, stem
from pplmon.report.checks import at_least


class Checkpoint:
    """Save a checkpoint ``{rule}-{metric}-step={step}.ckpt`` when an alert is raised, at most ``at_most`` per run.

    Under Lightning the trainer saves it, on all ranks (never once some are lost), after the step at which the alert became known (the step after
    the one in its name, with ``judge_every_n_steps=1``); ``Trainer.fit(ckpt_path=…)`` goes on from it. In a plain loop
    ``save`` is given the path, on every rank, from within ``monitor.step()``.

    Args:
        directory: where to; ``None`` is ``alerts/`` in the trainer's log directory.
        save: a callable(path) that saves, in place of the trainer.
        at_most: checkpoints in a run; failed ones count, too. Alerts of one step share one.

    Raises:
        ValueError: when a monitor takes it, without a trainer and without ``save``.
    """

    everywhere = True  # a trainer saves on all ranks together, and all ranks raise the same alerts

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        save: Callable[[str], object] | None = None,
        at_most: int = 3,
    ) -> None:
        self._directory, self._save, self._at_most = directory, save, at_least("Checkpoint: at_most", at_most)
        self.folder: Path | None = None  # where its files go, once a run has begun
        self._trainer: Any = None
        self._due: Alert | None = None
        self._count = 0
        self._busy = self._warned = False

    def bind(self, monitor: Any) -> None:
        """Begin a run; the monitor calls it."""
        self._trainer = getattr(monitor, "trainer", None)
        if self._trainer is None and self._save is None:
            raise ValueError(
                "Checkpoint has no trainer here: say how to save, as in "
                'Checkpoint("runs/a", save=lambda path: torch.save(model.state_dict(), path))'
            )
        self.folder = folder(self._directory, monitor, "Checkpoint")
        self._due, self._count, self._busy = None, 0, False

    def __call__(self, alert: Alert) -> None:
        """Note that a checkpoint is wanted; it is saved at the end of the step, when all counts belong to whole steps."""
        # Saving asks the monitor for its state, which may judge one more step: the file that is being written has it.
        if self._due is not None or self._busy or self._count >= self._at_most:
            return
        if alert.ranks_missing and self._save is None:  # the others would not come to the trainer's barrier
            self._failed(RuntimeError("a trainer saves on all ranks together, and this rank has lost the others"))
        else:
            self._due = alert

    def settle(self) -> None:
        """Save, if an alert asked for it. Every rank comes here at the same step."""
        if self._due is None or self._busy or self.folder is None:
            return
        alert, self._due = self._due, None
        self._busy = True
        self._count += 1  # before it may fail, on one rank: all have to go on saving equally often
        try:
            self._write(str(self.folder / f"{stem(alert)}.ckpt"))
        except Exception as error:
            self._failed(error)
        finally:
            self._busy = False

    def _write(self, path: str) -> None:
        if self._save is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._save(path)
        elif not self._trainer.fast_dev_run:  # which leaves no files
            self._save_by_trainer(path)

    def _save_by_trainer(self, path: str) -> None:
        try:
            self._trainer.save_checkpoint(path)
        except Exception:
            # The trainer ends a save with a barrier. A rank that could not write has not come to it, and the others
            # would wait there while this one trains on.
            self._trainer.strategy.barrier("pplmon.Checkpoint")
            raise

    def _failed(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"pplmon: {self!r} could not save: {type(error).__name__}: {error}. Training goes on.",
                RuntimeWarning,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        return "Checkpoint()" if self._directory is None else f"Checkpoint({str(self._directory)!r})"
