"""Read an earlier run to replay against, and tell how it fits."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from pplmon.alerts.against import Against
from pplmon.alerts.earlier import Earlier
from pplmon.replay.read.columns import Place
from pplmon.replay.read.journal import JournalReader
from pplmon.replay.read.series import ReplayError
from pplmon.replay.read.sources import locate, read


def read_earlier(
    path: Path, mapped: Mapping[str, Place] | None = None, step: str | None = None, pattern: str | None = None
) -> Earlier:
    """Return the training rows of the last run in a file or directory; ``mapped``, ``step`` and ``pattern`` are for logs, as in ``read``.

    Raises:
        ReplayError: there is nothing to read.
    """
    if pattern is not None and path.is_file() and not JournalReader().matches(path):
        series = read(path, mapped, step, pattern)
    else:
        reader, found = locate(path)
        is_journal = reader.kind == "journal"
        series = reader.read(found, {} if is_journal else mapped or {}, None if is_journal else step)
    rows = [row for row in series.runs[-1] if row.stage == "train"] if series.runs else []
    if not rows:
        raise ReplayError(f"--against {path}: it has no row of training")
    return Earlier((row.step, row.numbers) for row in rows)


class Beside:
    """One process of a run beside the earlier one, and the notes on how they fit."""

    def __init__(self, earlier: Earlier) -> None:
        self.against = Against(copy.copy(earlier))

    def notes(self, rows: int) -> list[str]:
        """Return how many of so many rows the earlier run has, and how quiet the difference is."""
        aligned, noise = self.against.aligned, self.against.noise
        if not aligned:
            return ["The earlier run has no row of the same tokens or step: rules judged as without it."]
        text = f"The earlier run has {aligned:,} of {rows:,} rows, aligned by {self.against.earlier.by}"
        if noise is None or noise.correlation is None:
            return [f"{text}: too few to tell if the orders of their data match."]
        return [f"{text}."]
