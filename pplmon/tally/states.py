"""The states of a tally, read out and merged over the ranks that count together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pplmon.extras import Measures
from pplmon.report.totals import Totals
from pplmon.tally.as_metric import AsMetric
from pplmon.tally.coming import Waits
from pplmon.tally.doing import Doing
from pplmon.tally.own_numbers import Block
from pplmon.tally.ranks import Alone, Group
from pplmon.tally.readout import ReadOut, gather_rows
from pplmon.tally.same_layout import Layout


class States(AsMetric):
    """States that are added up over the ranks of a group, after comparing that all ranks have the same."""

    def __init__(self, keep: int, context: int, extras: tuple[Measures, ...], **kwargs: Any) -> None:
        """Make the states, with K = ``keep``."""
        super().__init__(keep, context, extras, **kwargs)
        self._alone: Alone | None = None
        self._layout = Layout.of(self.cells().state, extras)

    def clear(self) -> None:
        """Forget what was counted, and nothing else, in one copy."""
        self._waiting.drop()
        self._writable().clear()

    def read_out(self, doing: Doing | None = None, own: Block | None = None) -> ReadOut:
        """Start the reduction over ranks (every rank calls it, and does the same). Only the first waits, to compare layouts.

        ``own`` are numbers of the user's own that travel along.
        """
        return self._read_out(self.group, doing or Doing(), own)

    def compare(self, wait: Waits | None = None) -> None:
        """Raise on every rank of the group where names, sizes or settings differ (every rank calls it)."""
        self._layout.compare(self.group, self.device, wait)

    def agree_on(self, terms: Mapping[str, object]) -> None:
        """Compare these settings, too, before this tally or a later copy is merged over ranks."""
        self._layout = self._layout.also(terms)

    def agree_with(self, passes: States) -> None:
        """Compare the tally of passes together with this one, once for both and for later copies of either."""
        self._layout = passes._layout = self._layout.with_passes(passes._layout)

    @property
    def alike(self) -> str:
        """Return a short text that is the same where names, sizes and settings are."""
        return self._layout.name

    def leave_group(self, global_rank: int) -> None:
        """Count for this rank alone from here on; addresses go on to bear its number."""
        self._alone = Alone.on(global_rank)

    def gather(self, totals: Totals, wait: Waits | None = None) -> Totals:
        """Return totals of a read-out with the worst rows of all ranks (every rank calls it); ``wait`` may give it up."""
        return gather_rows(totals, self.group, self.device, self._columns, wait)

    @property
    def group(self) -> Group:
        """Return the ranks whose tokens are counted together."""
        return self._alone or Group(self.process_group)

    def local_totals(self) -> Totals:
        """Return this rank's own host integers. No collective."""
        return self._read_out(Alone(), Doing()).totals()

    def copy_counts(self, other: States) -> None:
        """Hold what another tally with the same settings holds, in one copy."""
        if self.device != other.device:
            self.to(other.device)
        self._waiting.drop()
        other.settle()
        self._writable().flat.copy_(other.cells().flat)

    def _read_out(self, group: Group, doing: Doing, own: Block | None = None) -> ReadOut:
        self._layout.compare(group, self.device)
        evidence = self._waiting.count(self._writable().state) if self._waiting else ()
        return ReadOut(self.cells(), group, self.extras, self._layout, doing, own, evidence)
