"""One whole pass over validation or test data, of one or several loaders."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pplmon.report.numbers import CATALOGUE, Value
from pplmon.report.report import Report
from pplmon.report.totals import Totals
from pplmon.tally import TokenTally

_OF_A_LOADER = re.compile(r"dataloader_idx_\d+")


def check_part(part: str | None) -> None:
    """Raise for what cannot name a data set in a log key."""
    if part is not None and (not isinstance(part, str) or not part or _OF_A_LOADER.fullmatch(part)):
        raise ValueError(
            f'part is the name of a data set, such as "wiki", or None where there is only one; got {part!r}'
            f"{', which names a loader of a pass' if isinstance(part, str) and part else ''}"
        )


class Pass:
    """A tally for each loader of a pass, and its reports once the pass is over.

    ``number`` tells a pass over all ranks from the others of its run; a ``local`` one is of this rank alone. ``part``
    names the data set, where each of several has a pass.
    """

    def __init__(
        self,
        stage: str,
        pattern: TokenTally,
        loaders: int = 1,
        number: int = 0,
        local: bool = False,
        part: str | None = None,
    ) -> None:
        self.stage, self.number, self.local = stage, number, local
        self.tail = "" if part is None else f"/{part}"
        self.tallies = [pattern.clone() for _ in range(loaders)]
        for tally in self.tallies:
            tally.reset()
        self.probed: list[TokenTally] = []  # what probes counted on this rank
        self.probe_numbers: dict[str, Value] = {}
        self.batches = [0] * loaders  # begun, of each loader
        self.report: Report | None = None  # over all loaders
        self.loader_reports: tuple[Report, ...] = ()  # one for each of several

    @property
    def name(self) -> str:
        """Return the stage, with the part that the pass is of: "val", "val/wiki"."""
        return f"{self.stage}{self.tail}"

    @property
    def counted_as(self) -> str:
        """Return the name by which its shift is chosen; what one rank chose alone is no choice of the others."""
        return f"local {self.stage}" if self.local else self.stage

    def local_totals(self) -> Totals:
        """Return this rank's own, over all loaders."""
        return sum((tally.local_totals() for tally in self.tallies), Totals())

    def add_numbers(self, counted: Iterable[Totals]) -> None:
        """Keep the numbers that probes declared, of what they counted over all ranks."""
        for totals in counted:
            numbers = totals.report(stage=self.stage).numbers
            self.probe_numbers |= {name: value for name, value in numbers.items() if name not in CATALOGUE}

    def begin_batch(self, loader: int = 0) -> int:
        """Return the number of the loader's next batch, 0-based."""
        self.batches[loader] += 1
        return self.batches[loader] - 1
