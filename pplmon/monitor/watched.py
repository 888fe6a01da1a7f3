"""One stage of a monitor: the choice of its shift, and the comparison of its losses with what was counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pplmon.doctor import Observation, judge
from pplmon.doctor.loss_agrees import LossGuard
from pplmon.measure.tokens import TokenStats
from pplmon.monitor.choice import Choice, count_under
from pplmon.monitor.heard import Heard, hear
from pplmon.monitor.ranks import Link
from pplmon.monitor.said import Saying
from pplmon.tally import TokenTally


@dataclass
class Watched:
    """One stage, as it is watched."""

    choice: Choice
    guard: LossGuard = field(default_factory=LossGuard)
    looks: bool = True  # at the next micro-batch that comes with a loss
    looked: Heard | None = None  # not yet judged
    stated: bool = False

    def count(
        self,
        tally: TokenTally,
        logits: Tensor | TokenStats,
        targets: Tensor | None,
        data: dict[str, Any],
        shift: bool,
        loss: Tensor | float | None,
    ) -> None:
        """Count a micro-batch, and compare it with its loss where it has one."""
        if loss is None:
            count_under(shift, tally, logits, targets, data)
            return
        self.guard.before(tally)
        count_under(shift, tally, logits, targets, data)
        self.guard.after(tally, loss)
        heard = hear(logits, targets, loss, shift, data, tally.ignore_index) if self.looks else None
        if heard is not None:
            self.looked, self.looks = heard, False

    def look(self, stage: str, says: Saying, link: Link, wait: bool) -> None:
        """Tell of a loss that stopped to agree, and look closer at the next micro-batch; judge the last one looked at."""
        gap = self.guard.gap(wait)
        if gap is not None:
            self.looks = True
            if link.writes:
                says.gap(stage, gap)
        if self.looked is not None and (wait or self.looked.arrived):
            seen, self.looked = self.looked.observation(link.ranks), None
            self._judge(stage, says, link, seen)

    def _judge(self, stage: str, says: Saying, link: Link, seen: Observation) -> None:
        choice = self.choice
        # Other ranks would go on as before.
        undecided = choice.shift is not None and not choice.is_sure and not self.stated and link.ranks == 1
        fit = choice.fits_again([seen]) if undecided else None
        if not link.writes:
            return
        if fit is not None:
            says.chosen(stage, fit.shift, not fit.shift, fit, [seen])
        else:
            says.findings(stage, judge([seen], link.pattern.ignore_index), self.stated)
