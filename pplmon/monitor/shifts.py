"""The shift that each stage of a monitor counts under, chosen by the losses that ``observe`` is given, and the guard of them.

Ranks choose alike: their votes travel with the read-outs. One that holds tokens back is read out without them; once all
votes are there, they are read out after it, so that every rank adds the same totals at the same step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from pplmon.doctor import check_loss, judge
from pplmon.doctor.loss_agrees import LossGuard
from pplmon.measure.tokens import TokenStats
from pplmon.monitor.choice import Choice, Trial, add, count_under
from pplmon.monitor.heard import hear
from pplmon.monitor.ranks import Link
from pplmon.monitor.said import Saying
from pplmon.monitor.watched import Watched
from pplmon.report.totals import Totals
from pplmon.tally import Doing, TokenTally, Votes


class Taken(NamedTuple):
    """A read-out of training that has arrived."""

    step: int
    closes_step: bool
    totals: Totals
    merged: bool  # of all ranks


class Shifts:
    """Counts micro-batches under the shift of their stage, and holds back what waits for the choice."""

    def __init__(self, link: Link, agreed: Callable[[str], None]) -> None:
        self._link, self._says = link, Saying(agreed)
        self._stages: dict[str, Watched] = {}
        self._launched: Trial | None = None  # what goes with the pending read-out
        self._waiting: list[tuple[Taken, Trial | None]] = []  # read-outs that are not shown yet

    def of(self, stage: str) -> Watched:
        """Return what is known of a stage."""
        if stage not in self._stages:
            self._stages[stage] = Watched(Choice(self._link.pattern.shift))
        return self._stages[stage]

    def begin_pass(self, stage: str) -> None:
        """Begin a pass. A stage that has no losses of its own counts as training does by now. Every rank calls it."""
        if stage not in self._stages:
            self._stages[stage] = Watched(Choice(self.of("train").choice.counts))
        self._stages[stage].guard = LossGuard()

    def count(
        self,
        stage: str,
        tally: TokenTally,
        logits: Tensor | TokenStats,
        targets: Tensor | None,
        data: dict[str, Any],
        shift: bool | None,
        loss: Tensor | float | None,
    ) -> bool:
        """Count a micro-batch, now or once its shift is chosen; return the shift that it counts under until then."""
        if loss is not None:
            check_loss(loss)
        watched = self.of(stage)
        if isinstance(logits, TokenStats):
            if shift is not None:
                raise TypeError("TokenStats are shifted already: give shift to token_stats")
            watched.count(tally, logits, None, data, tally.shift, loss)
            return tally.shift
        stated = True if shift is None and tally.shift else shift
        flat = logits.dim() != 3 or targets is None or tally.context_parallel
        if stated is None and not flat and watched.choice.takes(loss is not None):
            self._hold_back(watched, tally, logits, targets, data, loss)
            return watched.choice.default
        counted = (tally.shift if flat else watched.choice.counts) if stated is None else stated
        watched.stated = stated is not None
        watched.count(tally, logits, targets, data, counted, loss)
        return counted

    def _hold_back(
        self,
        watched: Watched,
        tally: TokenTally,
        logits: Tensor,
        targets: Tensor | None,
        data: dict[str, Any],
        loss: Tensor | float | None,
    ) -> None:
        choice = watched.choice
        trial = choice.trial(self._link.pattern)
        for shift in (
            choice.default,
            not choice.default,
        ):  # what is wrong in the first is raised before anything is counted
            count_under(shift, trial[shift], logits, targets, data)
        if choice.listens:
            choice.hear(hear(logits, targets, loss, choice.default, data, tally.ignore_index))
        watched.looks = False

    # Read-outs.

    def votes(self, stage: str, final: bool = False) -> Votes:
        """Return what this rank says of a stage; ``final``: it has no more batches before it is chosen."""
        return self.of(stage).choice.votes(self._link.ranks, final)

    def launching(self, final: bool = False) -> Votes:
        """Return the votes that go with a read-out of training, and keep what is held back of it."""
        choice = self.of("train").choice
        votes = choice.votes(self._link.ranks, final)
        if votes.held and (self._link.ranks == 1 or self._link.severed):
            shift = choice.decided(votes)  # nobody else has a say: there is no need to wait
            if shift is not None:
                self._settle("train", shift, votes)
                add(choice.take_trial(), shift, self._link.tally)
                return self.votes("train")
        self._launched = choice.take_trial()
        return votes

    def released(self, taken: Taken, votes: Votes) -> list[Taken]:
        """Return the read-outs that can be shown, with a new one: none while the choice is open. Every rank calls it."""
        choice = self.of("train").choice
        trial, self._launched = self._launched, None
        shift = choice.decided(votes)
        if not self._waiting and not votes.held:
            if shift is not None and choice.shift is None:
                choice.settle(shift)
            return [taken]
        self._waiting.append((taken, trial))
        return [] if shift is None else self._release(shift, votes)

    def released_at_checkpoint(self, votes: Votes) -> list[Taken] | None:
        """Choose by what there is; ``None`` where no rank holds tokens back. Every rank calls it."""
        if not votes.held and not self._waiting:
            return None
        choice = self.of("train").choice
        shift = choice.decided(votes._replace(open=0))
        return self._release(choice.default if shift is None else shift, votes)

    def _release(self, shift: bool, votes: Votes) -> list[Taken]:
        """Settle training, and read out what ranks held back, each part at its own step."""
        choice = self.of("train").choice
        if choice.shift is None:
            self._settle("train", shift, votes)
        add(choice.take_trial(), choice.counts, self._link.tally)
        waiting, self._waiting = self._waiting, []
        return [self._with_held(taken, trial, choice) for taken, trial in waiting]

    def _with_held(self, taken: Taken, trial: Trial | None, choice: Choice) -> Taken:
        """Return a read-out with what ranks held back of it."""
        held = self._read(trial, choice, taken.step)
        if taken.merged and self._link.severed:  # this rank's own is not to be taken for that of all
            add(trial, choice.counts, self._link.tally)
            return taken
        return taken._replace(totals=taken.totals + held)

    def end_pass(self, stage: str, totals: Totals, votes: Votes, step: int) -> Totals:
        """Return the totals of a pass with what ranks held back of it. Every rank of the pass calls it."""
        choice = self.of(stage).choice
        shift = choice.decided(votes)
        if shift is not None and choice.shift is None:
            if not votes.held:
                del self._stages[stage]  # a pass without losses says nothing of the next one
                return totals
            self._settle(stage, shift, votes)
        return totals + self._read(choice.take_trial(), choice, step) if votes.held else totals

    def give_up(self, stage: str, tally: TokenTally) -> None:
        """Count what this rank held back by its own loss, and ask nobody: a run or a pass was interrupted."""
        choice = self.of(stage).choice
        if choice.shift is None:
            shift = choice.decided(choice.votes(1, final=True))
            choice.settle(choice.default if shift is None else shift)
        trials = [choice.take_trial()]
        if stage == "train":
            trials += [self._launched, *(trial for _, trial in self._waiting)]
            self._launched = None
        for trial in trials:
            add(trial, choice.counts, tally)

    def take_merged(self) -> list[Taken]:
        """Return the read-outs of all ranks that wait. What this rank held back of them goes on waiting, as its own."""
        merged = [taken for taken, _ in self._waiting]
        self._waiting = [(Taken(taken.step, False, Totals(), merged=False), trial) for taken, trial in self._waiting]
        return merged

    def _read(self, trial: Trial | None, choice: Choice, step: int) -> Totals:
        tally = self._link.pattern.clone()
        tally.reset()
        add(trial, choice.counts, tally)
        return self._link.whole(tally, Doing("choice", step=step))

    def _settle(self, stage: str, shift: bool, votes: Votes) -> None:
        watched = self.of(stage)
        choice = watched.choice
        told = choice.observations(self._link.ranks)
        fit = choice.settle(shift)
        if not self._link.writes:
            return
        if votes.departs and votes.keeps:
            self._says.disagree(stage, choice.default)
        else:
            self._says.chosen(stage, shift, choice.default, fit, told)
        if fit is None and told:
            self._says.findings(stage, judge(told, self._link.pattern.ignore_index), stated=False)

    # The guard.

    def end_window(self, stage: str) -> None:
        """Go on to the next window of a stage, and tell of what did not agree in those before."""
        self.look(stage)
        self.of(stage).guard.end_window()

    def end_of_pass(self, stage: str) -> None:
        """Tell of what did not agree in a pass, which was waited for."""
        self.of(stage).guard.end_window()
        self.look(stage, wait=True)

    def look(self, stage: str, wait: bool = False) -> None:
        """Tell of a loss that stopped to agree, and look closer at the next micro-batch; judge the last one looked at."""
        self.of(stage).look(stage, self._says, self._link, wait)
