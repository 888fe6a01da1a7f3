"""The places beside a ``Trainer``'s own rows: the journal, the terminal, and alerts in its own W&B run or TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from pplmon.monitor.publish import Places
from pplmon.report.report import Report
from pplmon.sinks import Console, Journal, Sink
from pplmon.sinks.tensorboard import TensorBoard
from pplmon.sinks.wandb import WandB
from pplmon.trainers.own_backend import OwnBackend


class OwnPlaces(Places):
    """The directory that alert handlers write to, where the user named none."""

    def __init__(self, directory: str) -> None:
        self.log_dir = directory


class ReportTo(OwnBackend):
    """A target of ``report_to``, which calls validation "eval"."""

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Keep the charts and the best values up to date."""
        super().report(report, {key.replace("val/", "eval/"): value for key, value in scalars.items()})


def sinks_beside(args: Any, prefix: str, callbacks: Sequence[Any]) -> list[Sink]:
    """Return what takes more than scalars, where the trainer's rows reach every target of ``report_to``."""
    return [Journal(args.output_dir, prefix=prefix), *_targets(callbacks), _console(args, reports=False)]


def own_sinks(args: Any, prefix: str) -> list[Sink]:
    """Return the sinks of a callback that no trainer's rows are open to."""
    found: list[Sink] = [Journal(args.output_dir, prefix=prefix), _console(args, reports=True)]
    if "tensorboard" in args.report_to:
        found.append(TensorBoard(Path(args.output_dir) / "runs" / "pplmon"))
    return found


def _console(args: Any, reports: bool) -> Console:
    return Console(print=None if args.disable_tqdm else tqdm.write, reports=reports)


def _targets(callbacks: Sequence[Any]) -> list[Sink]:
    """Return the trainer's own W&B run and TensorBoard writer, which are open by now, on the rank that has them."""
    found: list[Sink] = []
    for callback in callbacks:
        name = type(callback).__name__
        writer = getattr(callback, "tb_writer", None) if name == "TensorBoardCallback" else None
        if writer is not None:
            found.append(ReportTo(board=TensorBoard(writer=writer)))
        run = getattr(sys.modules.get("wandb"), "run", None) if name == "WandbCallback" else None
        if run is not None:
            found.append(ReportTo(run=WandB(run=run)))
    return found
