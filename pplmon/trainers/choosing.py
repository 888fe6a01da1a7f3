"""Choose, on the first batches of a stage, which logits and shift to count: all ranks alike, before anything is shown.

Until then a training step is closed but not read out; what its batches gave is counted for every candidate.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

from pplmon.doctor import BATCHES, same_rows
from pplmon.doctor.loss_agrees import Gap
from pplmon.monitor import Monitor
from pplmon.report.report import Report
from pplmon.trainers.ballot import Ballot
from pplmon.trainers.capture.choose import Chosen, Trial
from pplmon.trainers.capture.decide import Decision
from pplmon.trainers.capture.evidence import Verdict
from pplmon.trainers.said import Saying


class Choosing:
    """Settles the stages of one session. Whether and when it asks the other ranks depends on the schedule alone."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._steps: list[tuple[int, list[Trial]]] = []  # closed, and not yet read out
        self._settled: set[str] = set()  # stages that all ranks are through with
        self._others: dict[str, Ballot] = {}  # what the others chose, where this rank had no tokens
        self._gaps: dict[str, Gap] = {}  # for which a stage was last doubted
        self._open: set[str] = set()  # stages where no loss told, or it is that of several shifts
        self._said = Saying(monitor)

    def listen(self, decision: Decision) -> None:
        """Begin anew with the decision of another capture."""
        self._decision = decision
        self._steps, self._settled, self._others = [], set(), {}

    @property
    def held(self) -> int:
        """Return how many closed steps wait to be read out."""
        return len(self._steps)

    def after_batch(self, stage: str) -> None:
        """Choose right away where nobody else has a say, and one batch is enough or three are there."""
        if self._decision.looked:
            self._look_again(stage)
        if not self._decision.undecided(stage) or (self._monitor.ranks > 1 and stage not in self._settled):
            return
        verdict = self._decision.verdict(stage, self._monitor.ranks)
        if verdict is not None and not (stage not in self._settled and self._needs_more(stage, verdict)):
            self._settle(stage, verdict, verdict.chosen)

    def step_to(self, step: int) -> Report | None:
        """Close an optimizer step, now or once it is chosen what it counts."""
        if "train" not in self._settled and (self._monitor.ranks > 1 or self._decision.undecided("train")):
            self._steps.append((step, self._decision.take_trials()))
            return self._decide("train", last=self._monitor.waits_at(step))
        self._settled.add("train")
        return self._monitor.step_to(step)

    def finish(self, stage: str) -> None:
        """Choose by what there is: what follows needs the numbers. Every rank calls it."""
        if stage not in self._settled and (
            self._steps or (self._decision.undecided(stage) if self._monitor.ranks == 1 else stage != "train")
        ):
            self._decide(stage, last=True)

    def give_up(self) -> None:
        """Choose alone, after an exception, so that what was measured can be shown."""
        if "train" not in self._settled:
            verdict = self._decision.verdict("train", self._monitor.ranks)
            if verdict is not None:
                chosen = verdict.chosen
                for _, trials in self._steps:
                    self._decision.settle(trials, chosen, self._monitor.tally)
                self._decision.settle(self._decision.take_trials(), chosen, self._monitor.tally)
            self._steps = []

    def doubt(self, stage: str, gap: Gap) -> None:
        """Tell of a loss that stopped to agree, and compare the next batch of the stage closely."""
        self._said.gap(stage, gap)
        self._gaps[stage] = gap
        self._decision.look(stage)

    def _look_again(self, stage: str) -> None:
        """Say why the loss does not agree, by the batch that was looked at; where no loss had told before, choose by it."""
        batch, self._decision.looked = self._decision.looked, None
        chosen = self._decision.chosen(stage)
        if batch is None or chosen is None:
            return
        verdict = self._decision.verdict_of([batch], self._monitor.ranks)
        if verdict is None:
            return
        shift = verdict.chosen.shift
        undecided = stage in self._open and self._monitor.ranks == 1  # other ranks would go on as before
        if shift is not None and shift != batch.heard[0].shift and undecided and verdict.equals is not None:
            self._open.discard(stage)
            self._decision.choose(stage, replace(chosen, shift=shift))
            self._said.tell(stage, verdict, replace(chosen, shift=shift))
            return
        if verdict.equals is None and not batch.heard[0].is_whole:
            self._said.gap(stage, self._gaps[stage], is_sure=True)  # its losses are only counted: no cause can be named
        if len(batch.heard) == 1:  # of several calls it is already told that they are counted
            self._said.findings(stage, self._decision.findings([batch], self._monitor.ranks))

    def _needs_more(self, stage: str, verdict: Verdict) -> bool:
        return verdict.departs and self._decision.batches(stage) < BATCHES

    def _decide(self, stage: str, last: bool) -> Report | None:
        """Choose with all ranks, unless one of them needs more batches and there may be more."""
        verdict = self._decision.verdict(stage, self._monitor.ranks)
        more = verdict is not None and self._needs_more(stage, verdict) and not last
        chosen = None if verdict is None else verdict.chosen
        if self._monitor.ranks > 1:
            more, chosen = self._agree(stage, more, verdict)
        if more:
            return None
        self._settled.add(stage)
        if verdict is not None and chosen is not None:
            return self._settle(stage, verdict, chosen)
        return self._close_steps(None)

    def _agree(self, stage: str, more: bool, verdict: Verdict | None) -> tuple[bool, Chosen | None]:
        """Return whether a rank needs more batches, and what all choose. Only ranks whose loss tells have a vote."""
        ballot = Ballot.of(more, verdict, self._decision.rows_digest(stage))
        votes = Ballot(*self._monitor.sum_over_ranks(list(ballot)))
        if votes.more:
            return True, None
        if stage == "train" and votes.same_rows:
            self._said.findings(stage, [same_rows(votes.with_rows)])
        if verdict is None:
            self._others[stage] = votes
            return False, None
        if not votes.agree:
            if self._monitor.writes:
                warnings.warn(
                    f"pplmon: the losses of the ranks do not agree on which logits and shift they are of in {stage}; the "
                    f"default is counted: {self._said.words(verdict.default, verdict.shift)}. Name it: logits=, shift=",
                    stacklevel=2,
                )
            return False, verdict.default
        return False, verdict.chosen if ballot.voters or not votes.voters else votes.followed(verdict.default)

    def _settle(self, stage: str, verdict: Verdict, chosen: Chosen) -> Report | None:
        if stage in self._others:
            chosen = self._others[stage].followed(chosen)
        rest = self._decision.take_trials()
        report = self._close_steps(chosen)
        self._decision.settle(rest, chosen)
        self._decision.choose(stage, chosen)
        self._settled.add(stage)
        if not verdict.is_sure:
            self._open.add(stage)
        self._said.tell(stage, verdict, chosen)
        return report

    def _close_steps(self, chosen: Chosen | None) -> Report | None:
        """Read out the steps that waited, in their order; return the last report."""
        report: Report | None = None
        steps, self._steps = self._steps, []
        for step, trials in steps:
            if chosen is not None:
                self._decision.settle(trials, chosen, self._monitor.tally)
            report = self._monitor.step_to(step) or report
        return report
