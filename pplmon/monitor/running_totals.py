"""Add up read-outs that are not shown yet: the open window, the epoch, and the run's count of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pplmon.report.totals import Totals

AT_ONCE = 16  # read-outs that are added up together


class Windows:
    """Totals over ranks, added up as they are read out. Their rows are this rank's own until a window is logged."""

    def __init__(self) -> None:
        self._window, self._epoch = Totals(), Totals()
        self._recent: list[Totals] = []  # of both
        self.tokens_seen = 0
        self.worst = Totals()  # the run's worst rows, of all ranks; no numbers
        self.passes: dict[
            str, Totals
        ] = {}  # of each stage the extras' integers of its last pass, to compare the next with

    @property
    def window(self) -> Totals:
        """Return the open window."""
        self._fold()
        return self._window

    @window.setter
    def window(self, totals: Totals) -> None:
        self._fold()
        self._window = totals

    def add(self, totals: Totals) -> None:
        """Add one read-out."""
        self._recent.append(totals)
        self.tokens_seen += totals["tokens"]
        if len(self._recent) == AT_ONCE:
            self._fold()

    def end_window(self) -> Totals:
        """Return the window, and open the next."""
        window, self._window = self.window, Totals()
        return window

    def remember(self, window: Totals) -> None:
        """Keep the worst rows of a logged window, which are those of all ranks, in the run's list."""
        rows = Totals(token_rows=window.token_rows, sequence_rows=window.sequence_rows, keep=window.keep)
        self.worst = self.worst + rows

    def end_pass(self, stage: str, totals: Totals) -> None:
        """Keep what extras may compare the next pass of this stage with."""
        if totals.extras:
            only = Totals(extra_sums=totals.extra_sums, extra_maxima=totals.extra_maxima, extras=totals.extras)
            self.passes[stage] = only

    def end_epoch(self) -> Totals:
        """Return the epoch, and open the next."""
        self._fold()
        epoch, self._epoch = self._epoch, Totals()
        return epoch

    def _fold(self) -> None:
        recent, self._recent = Totals.sum(self._recent), []
        without_rows = replace(recent, token_rows=(), sequence_rows=())  # an epoch's numbers have no evidence
        self._window, self._epoch = self._window + recent, self._epoch + without_rows

    def state_dict(self, window: Totals) -> dict[str, Any]:
        """Return everything as plain values; ``window`` is the open one with the rows of all ranks."""
        self._fold()
        return {
            "window": window.state_dict(),
            "epoch": self._epoch.state_dict(),
            "worst": self.worst.state_dict(),
            "tokens_seen": self.tokens_seen,
            "passes": {stage: totals.integers() for stage, totals in self.passes.items()},
        }

    def load_state_dict(
        self,
        state: Mapping[str, Any],
        totals_of: Callable[[Mapping[str, Any]], Totals],
        passed: Callable[[Mapping[str, Any]], Totals],
        first: bool,
    ) -> None:
        """Restore a state. Its rows go to the first rank only, or each would be there W times.

        ``totals_of`` reads saved totals for the settings of this run, ``passed`` those of its passes.
        """
        window = totals_of(state["window"])
        self._recent = []
        self._window = window if first else replace(window, token_rows=(), sequence_rows=())
        self._epoch = totals_of(state["epoch"])
        self.worst = replace(totals_of(state["worst"]), extra_sums=(), extra_maxima=(), extras=())
        self.tokens_seen = state["tokens_seen"]
        passes: Mapping[str, Any] = state.get("passes", {})
        self.passes = {stage: passed({**Totals().state_dict(), "extras": part}) for stage, part in passes.items()}
