"""Read a chart that was exported from W&B's page as CSV: ``Step``, then ``run - metric`` with ``__MIN`` and ``__MAX``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pplmon.replay.read.columns import Place, choose
from pplmon.replay.read.csv_file import columns_and_rows, header
from pplmon.replay.read.reader import Cells, LogReader, by_step, step_column
from pplmon.replay.read.series import ReplayError
from pplmon.replay.read.text import unpacked_name

BETWEEN = " - "  # of a run's name and a metric's
BOUNDS = ("__MIN", "__MAX")  # of the points that the page drew as one


class WandbExportReader(LogReader):
    """Reads W&B's CSV export; of several runs one has to be chosen by ``--map``."""

    kind = "wandb export"
    expects = "a CSV export of W&B"
    order = 36

    def __init__(self) -> None:
        self._values: dict[str, int] = {}  # how many each column has

    def matches(self, file: Path) -> bool:
        return unpacked_name(file).endswith(".csv") and any(
            BETWEEN in name or name.endswith(BOUNDS) for name in header(file)
        )

    def table(self, path: Path, step: str | None) -> tuple[list[str], Cells]:
        columns, rows = columns_and_rows(path, self.left_out)
        column = step_column(columns, step, path)
        kept = [name for name in columns if name != column and not name.endswith(BOUNDS)]
        self._values = {name: sum(bool(row.get(name)) for row in rows) for name in kept}
        return kept, by_step(rows, column, self.left_out)

    def chosen(self, columns: Sequence[str], mapped: Mapping[str, Place]) -> Mapping[str, Place]:
        """Tell metrics by what stands behind a run's name.

        Raises:
            ReplayError: several runs have values, and none was chosen.
        """
        found = {c: place for c in columns if self._values[c] and (place := _place(c)) is not None}
        runs = list(dict.fromkeys(_run(column) for column in found))
        if len(runs) < 2:
            return {**found, **mapped}
        if mapped:
            return mapped
        first = next(iter(found))
        raise ReplayError(
            f"the file has {len(runs)} runs: {', '.join(runs)}; choose one by its column, as in "
            f"--map '{first}={'/'.join(found[first])}'"
        )

    def notes(self, path: Path) -> list[str]:
        runs = list(dict.fromkeys(map(_run, self._values)))
        return [f"The file has {len(runs)} runs: {', '.join(runs)}; --map chooses."] if len(runs) > 1 else []


def _run(column: str) -> str:
    return column.rpartition(BETWEEN)[0]


def _place(column: str) -> Place | None:
    metric = column.rpartition(BETWEEN)[2]
    chosen, _ = choose([metric, ""], {})  # "" stands for further columns: a single one is not taken for the loss
    return chosen.get(metric)
