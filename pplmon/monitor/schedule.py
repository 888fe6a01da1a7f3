"""Decide from the step alone if a monitor reads out and logs after it, so that all ranks agree."""

from __future__ import annotations

from dataclasses import dataclass

from pplmon.report.checks import check_cadence


@dataclass(frozen=True)
class Cadence:
    """The two cadences of a monitor. Steps are 0-based: with n = 50 the first window is the steps 0 to 49."""

    every_n_steps: int | None  # None: windows are never logged
    judge_every_n_steps: int

    def __post_init__(self) -> None:
        if self.every_n_steps is not None:
            check_cadence("every_n_steps", self.every_n_steps)
        check_cadence("judge_every_n_steps", self.judge_every_n_steps)

    def closes_window(self, step: int) -> bool:
        """Return True at the last step of a logged window."""
        return self.every_n_steps is not None and (step + 1) % self.every_n_steps == 0

    def reads_out(self, step: int) -> bool:
        """Return True at the last step of either cadence."""
        return self.closes_window(step) or (step + 1) % self.judge_every_n_steps == 0

    @property
    def most_steps(self) -> int:
        """Return the most optimizer steps between two read-outs."""
        return min(n for n in (self.every_n_steps, self.judge_every_n_steps) if n is not None)

    def next_read_out(self, step: int) -> int:
        """Return the first step from ``step`` on that is read out."""
        lengths = [n for n in (self.every_n_steps, self.judge_every_n_steps) if n is not None]
        return min(-(-(step + 1) // n) * n - 1 for n in lengths)
