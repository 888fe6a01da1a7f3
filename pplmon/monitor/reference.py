"""Read the journal of an earlier run on the first rank, and give it to all."""

from __future__ import annotations

import os
import warnings

from pplmon.alerts.earlier import Earlier
from pplmon.monitor.ranks import Link
from pplmon.sinks import read_journal


def earlier_run(path: str | os.PathLike[str], prefix: str, link: Link) -> Earlier | None:
    """Return the judged rows of an earlier run's journal, the same on every rank. Every rank of the group calls it.

    A file that cannot be used is one warning, and ``None`` on all ranks.
    """
    packed = b""
    if link.home.rank == 0:
        try:
            packed = _read(path, prefix).pack()
        except Exception as error:  # whatever is in that file, training goes on
            warnings.warn(
                f"pplmon: reference={str(path)!r} cannot be used ({type(error).__name__}: {error}): no alert says what an earlier run "
                "showed. Give the pplmon.jsonl of a run, or its directory",
                RuntimeWarning,
                stacklevel=2,
            )
    packed = link.from_first(packed)
    return Earlier.unpack(packed) if packed else None


def _read(path: str | os.PathLike[str], prefix: str) -> Earlier:
    """Return the rows of training that rules judged; of several monitors in one file, of the one with this prefix."""
    rows = [row for row in read_journal(path) if row["kind"] == "judged" and row["stage"] == "train"]
    rows = [row for row in rows if row.get("prefix", "") == prefix] or rows
    if not rows:
        raise ValueError("it has no judged row of training")
    return Earlier((row["step"], row["numbers"]) for row in rows)
