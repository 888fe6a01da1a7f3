"""One whole pass over validation or test data, of one or several loaders."""

from __future__ import annotations

from pplmon.report.report import Report
from pplmon.tally import TokenTally


class Pass:
    """A tally for each loader of a pass, and its reports once the pass is over."""

    def __init__(self, stage: str, pattern: TokenTally, loaders: int = 1) -> None:
        self.stage = stage
        self.tallies = [pattern.clone() for _ in range(loaders)]
        for tally in self.tallies:
            tally.reset()
        self.batches = [0] * loaders  # begun, of each loader
        self.report: Report | None = None  # over all loaders
        self.loader_reports: tuple[Report, ...] = ()  # one for each of several

    def begin_batch(self, loader: int = 0) -> int:
        """Return the number of the loader's next batch, 0-based."""
        self.batches[loader] += 1
        return self.batches[loader] - 1
