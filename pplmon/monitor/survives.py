"""Go on alone once the other ranks are lost, and take the place of the one that wrote."""

from __future__ import annotations

from pplmon.monitor.show import Shows


class Survives(Shows):
    """Shows what was merged before the others were lost; what follows is this rank's own."""

    def _see_loss(self) -> None:
        """Once the others are lost, show what was merged with them, so that what follows is this rank's own."""
        if self._alone or not self._link.severed or self._abandoned:
            return
        self._add_waiting()
        window, step = self._windows.end_window(), self._merged_to
        if not window.empty and self.cadence.every_n_steps is not None:
            self._last = report = self._report(step, "train", window)
            if self.writes:
                self.publisher.publish(report, f"{self.prefix}train/")
            else:
                self._delivery.local(report, self.rank, "merged")
                self._merged = report
        self._alone = True
        if not self.writes:
            self._delivery.keep_own_journal_only(self.rank)
        if self._place is not None and self._link.ranks > 1 and (self.writes or self._delivery.can_take_over):
            self._place.sign(self.rank)
            self._signed = True

    def _add_waiting(self) -> None:
        """Count what was merged and not shown, because ranks had not chosen their shift, with the open window."""
        for taken in self._shifts.take_merged():
            self._merged_to = max(self._merged_to, taken.step)
            self._windows.add(taken.totals.silent())

    def _take_place(self) -> None:
        """Show numbers in place of the rank that did, if it is lost and this is the lowest of those that are left."""
        if not self._signed or self._place is None:
            return
        mine = self._place.is_mine()
        self._signed = mine is None
        if mine and not self.writes:
            self._link.took_over = True
            head = f"{self.prefix}train/"
            scalars = {} if self._merged is None else self.publisher.keys(self._merged, head)
            self._delivery.take_over(self._describe(), self._merged, scalars)
