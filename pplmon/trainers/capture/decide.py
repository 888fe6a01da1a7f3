"""Choose the calls and the shift that each stage counts, and keep what its first batches tell."""

from __future__ import annotations

from collections.abc import Sequence

from pplmon.doctor import Finding, Measured
from pplmon.tally import TokenTally
from pplmon.trainers.capture.choose import Call, Choice, Chosen, Trial
from pplmon.trainers.capture.count import Counter
from pplmon.trainers.capture.evidence import Verdict, weigh
from pplmon.trainers.capture.findings import findings
from pplmon.trainers.capture.heard import Batch
from pplmon.trainers.capture.sources.source import Source


class Decision:
    """Weighs what was tried on a stage's first batches, and keeps the stage to what is then chosen.

    Attributes:
        looks: the stages whose next batch is to be looked at once more.
        looked: the batch that was looked at, until somebody takes it.
    """

    def __init__(self, choice: Choice, counter: Counter, sources: tuple[Source, ...]) -> None:
        self._choice, self._counter, self._sources = choice, counter, sources
        self._taken: set[Call] = set()  # the calls of trials that were taken, of a stage without a choice yet
        self.looks: frozenset[str] = frozenset()
        self.looked: Batch | None = None

    def undecided(self, stage: str) -> bool:
        """Tell whether something was found for a stage, and it is not yet chosen what of it counts."""
        return stage not in self._choice.by_stage and bool(self._choice.trials)

    def batches(self, stage: str) -> int:
        """Return how many batches were compared before the choice."""
        return len(self._counter.batches.get(stage, ()))

    def first_heard(self, stage: str) -> Measured | None:
        """Return what was measured of the first call of a stage's first batch, until it is chosen what counts."""
        seen = self._counter.batches.get(stage)
        measured = seen[0].heard[0].measured if seen else None
        return measured if isinstance(measured, Measured) else None  # losses alone have no text

    def verdict(self, stage: str, ranks: int) -> Verdict | None:
        """Return what this rank would count; ``None`` where nothing was found. Waits for the device."""
        calls = {call for call in self._taken | self._choice.calls() if not call.guess}
        if not calls:
            return None
        verdict = weigh(self._counter.batches.get(stage, ()), self._sources, ranks)
        if verdict is None:
            first = min(calls, key=lambda call: (self._sources.index(call.source), call.number))
            default = Chosen(first.source, first.name)
            verdict = Verdict(default, default)
        return verdict

    def rows_digest(self, stage: str) -> int | None:
        """Return a number that tells the rows of this rank's first batch; ``None`` without any. Waits for the device."""
        first = next(iter(self._counter.batches.get(stage, ())), None)
        heard = None if first is None else first.heard[0]
        if heard is None or heard.digest is None or not heard.facts.count("told"):
            return None
        return int(heard.digest)

    def chosen(self, stage: str) -> Chosen | None:
        """Return what a stage counts."""
        return self._choice.by_stage.get(stage)

    def calls_in_loss(self, stage: str) -> int:
        """Return how many calls of the last batch its loss is the sum of."""
        chosen = self._choice.by_stage.get(stage)
        return self._counter.calls_of(chosen.source, chosen.name) if chosen is not None and chosen.summed else 1

    def look(self, stage: str) -> None:
        """Measure the next batch of a stage under every shift, once more; ``looked`` is then what was heard."""
        self.looks = self.looks | {stage}

    def see(self, stage: str, batch: Batch) -> None:
        """Take in the batch that was looked at."""
        self.looked, self.looks = batch, self.looks - {stage}

    def verdict_of(self, batches: Sequence[Batch], ranks: int) -> Verdict | None:
        """Return what these batches tell."""
        return weigh(batches, self._sources, ranks)

    def findings(self, batches: Sequence[Batch], ranks: int) -> tuple[Finding, ...]:
        """Return what does not agree in these batches."""
        heard = [batch.heard[0] for batch in batches]
        return findings(heard, [batch.loss for batch in batches], ranks, batches[0].accumulation)

    def take_trials(self) -> list[Trial]:
        """Return what was tried since the last call, to be settled later."""
        self._taken |= self._choice.calls()
        trials, self._choice.trials = self._choice.trials, []
        return trials

    def choose(self, stage: str, chosen: Chosen) -> None:
        """Keep a stage to what was chosen. What was tried before has to be settled by then, or is lost."""
        self._choice.by_stage[stage] = chosen
        self._choice.forget()
        self._taken = set()
        self._counter.batches.pop(stage, None)

    def settle(self, trials: Sequence[Trial], chosen: Chosen, into: TokenTally | None = None) -> None:
        """Count what was chosen of what was tried, in ``into`` or in the tallies that it was tried for."""
        for trial in trials:
            trial.settle(chosen, self._choice.shift_of, trial.tally if into is None else into)
