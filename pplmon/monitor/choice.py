"""Choose the shift of one stage by the losses of its first batches, where the user stated none.

Until then its tokens are counted under both shifts, in tallies of their own, and nothing of them is read out.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pplmon.doctor import BATCHES, Fit, Observation, shift_that_fits, tells
from pplmon.monitor.heard import Heard, observations
from pplmon.tally import TokenTally, Votes

Trial = dict[bool, TokenTally]
_NONE, _DEPARTS, _KEEPS = Votes(), Votes(departs=1), Votes(keeps=1)


class Choice:
    """The shift of a stage: the default, or the other one, once the losses of all ranks that have any agree on it."""

    def __init__(self, default: bool) -> None:
        self.default = default
        self.shift: bool | None = None  # None: not yet chosen
        self.is_sure = False  # this rank's loss is of this shift alone
        self.heard: list[Heard] = []
        self._began = False  # tokens were held back
        self._plain = False  # tokens were counted under the default, without a loss
        self._trial: Trial | None = None  # since the last read-out
        self._verdict: Fit | None = None
        self._votes: Votes | None = None

    @property
    def counts(self) -> bool:
        """Return the shift to count under now."""
        return self.default if self.shift is None else self.shift

    def takes(self, has_loss: bool) -> bool:
        """Tell whether a micro-batch is to be held back: the first one had a loss, and nothing is chosen."""
        if self.shift is not None or self._plain:
            return False
        self._began = self._began or has_loss
        self._plain = not self._began
        return self._began

    def hear(self, heard: Heard | None) -> None:
        """Take in what was measured of a micro-batch."""
        if heard is not None and len(self.heard) < BATCHES:
            self.heard.append(heard)
            self._votes = None

    @property
    def listens(self) -> bool:
        """Tell whether more micro-batches are to be measured."""
        return len(self.heard) < BATCHES

    def trial(self, pattern: TokenTally) -> Trial:
        """Return the tallies of both shifts for what is not read out."""
        if self._trial is None:
            self._trial = {shift: pattern.clone() for shift in (False, True)}
            for tally in self._trial.values():
                tally.reset()
        return self._trial

    def take_trial(self) -> Trial | None:
        """Return what was held back since the last read-out, and forget it."""
        trial, self._trial = self._trial, None
        return trial

    def votes(self, ranks: int, final: bool = False) -> Votes:
        """Return what this rank says now; ``final``: there are no more batches, and it may wait for the device."""
        if self.shift is not None or not self._began:
            if self.shift is None and not self._plain:
                return _NONE
            return _KEEPS if self.counts == self.default else _DEPARTS
        if self._votes is None or final:
            self._votes = self._vote(ranks, final)
        return self._votes

    def _vote(self, ranks: int, final: bool) -> Votes:
        """Say that the loss is of the default, or of the other shift, or nothing; ask for more where it may yet tell."""
        full = len(self.heard) == BATCHES
        if not final and not all(heard.arrived for heard in self.heard):
            return Votes(held=1, open=1)
        told = self.observations(ranks)
        fit = self._verdict = shift_that_fits(told, self.default)
        departs = fit is not None and fit.shift != self.default
        more = not (final or full) and (not told or departs)
        keeps = fit is not None and not departs and fit.is_sure
        return Votes(held=1, open=int(more), departs=int(departs and not more), keeps=int(keeps))

    def observations(self, ranks: int) -> list[Observation]:
        """Return the batches that can tell, as plain numbers. Waits for the device where they have not arrived."""
        return [batch for batch in observations(self.heard, ranks) if tells(batch)]

    def decided(self, votes: Votes) -> bool | None:
        """Return the shift that all ranks choose by what they say together; ``None`` while one needs more."""
        if votes.open or not (votes.held or votes.departs or votes.keeps):
            return None
        return not self.default if votes.departs and not votes.keeps else self.default

    def fits_again(self, batches: list[Observation]) -> Fit | None:
        """Choose the other shift after all, where no loss had told and now it is this one's alone; ``None`` where it is not."""
        fit = shift_that_fits(batches, self.counts)
        if fit is None or fit.shift == self.counts:
            self.is_sure = self.is_sure or (fit is not None and fit.is_sure)
            return None
        self.shift, self.is_sure = fit.shift, True
        return fit

    def settle(self, shift: bool) -> Fit | None:
        """Keep to a shift, forget what was measured, and return what this rank's own loss said."""
        verdict, self._verdict = self._verdict, None
        self.shift = shift
        self.is_sure = verdict is not None and verdict.is_sure and verdict.shift == shift
        self.heard, self._votes = [], None
        return verdict


def count_under(shift: bool, tally: TokenTally, logits: Any, targets: Tensor | None, data: dict[str, Any]) -> None:
    """Count a micro-batch under a shift, whatever the tally's own."""
    usual = tally.shift
    if shift != usual:  # setting an attribute of a Metric is slow
        tally.shift = shift
    try:
        tally.update(logits, targets, **data)
    finally:
        if shift != usual:
            tally.shift = usual


def add(trial: Trial | None, shift: bool, into: TokenTally) -> None:
    """Add what was held back, as it counts under a shift, to a tally."""
    if trial is not None:
        trial[shift].shift = into.shift
        into.merge_state(trial[shift])
