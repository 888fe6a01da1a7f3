"""Choose among what the sources of logits give: all is tried on a stage's first batches, and the stage keeps to one.

What is tried is counted in tallies of its own, one for each call and shift, so that nothing is lost whatever is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from pplmon.tally import TokenTally
from pplmon.trainers.capture.batch import Targets
from pplmon.trainers.capture.padding import kind_of
from pplmon.trainers.capture.sources.arguments import Arguments
from pplmon.trainers.capture.sources.configured import Configured, Logits
from pplmon.trainers.capture.sources.hugging_face import HuggingFace
from pplmon.trainers.capture.sources.returned import Returned
from pplmon.trainers.capture.sources.said import Said
from pplmon.trainers.capture.sources.source import Source


def sources_for(
    logits: Logits | None,
    targets: Targets | None,
    shift: bool | None,
    wire: str = "loop",
    first_only: bool = False,
    recompute: bool = False,
) -> tuple[Source, ...]:
    """Return the sources that these settings allow, in the order in which they are preferred."""
    if logits is not None:
        return Said(), Configured(logits, targets, shift)
    if wire == "hook":
        return Said(), HuggingFace(targets, shift, recompute=recompute), Arguments(targets, shift)
    return Said(), Returned(targets, shift), HuggingFace(targets, shift, first_only, recompute)


class Call(NamedTuple):
    """The k-th call of one name in a batch."""

    source: Source
    name: str
    number: int = 0
    guess: bool = False  # columns that nobody named: counted only where the loss shows that they are meant


@dataclass(frozen=True)
class Chosen:
    """The choice of a stage: the calls of one name, all or one of them, with a shift."""

    source: Source
    name: str
    number: int | None = None  # None: all of this name
    shift: bool | None = None  # None: as each call says
    without: int | None = None  # padding that is left out: of this id, or by the attention mask; None: nothing is
    summed: bool = False  # the loss is the sum of the calls' losses

    def has(self, call: Call) -> bool:
        """Tell whether a call is counted."""
        return (
            call.source is self.source
            and call.name == self.name
            and (self.number is None or call.number == self.number)
        )


@dataclass
class Trial:
    """Counts of a stage before its choice, for one of its tallies: by call, shift and kind of padding left out."""

    tally: TokenTally
    counted: dict[tuple[Call, bool, str], TokenTally] = field(default_factory=dict)  # the bool: logits at t on t+1

    def tally_for(self, call: Call, shift: bool, without: str = "") -> TokenTally:
        """Return the tally of a call under one shift."""
        key = (call, shift, without)
        if key not in self.counted:
            self.counted[key] = self.tally.clone()
            self.counted[key].reset()
            self.counted[key].shift = shift
        return self.counted[key]

    def settle(self, chosen: Chosen, shift_of: dict[Call, bool], into: TokenTally) -> None:
        """Add what was chosen to the tally of the stage; ``shift_of`` is the shift that each call said."""
        for (call, shift, without), tally in self.counted.items():
            wanted = shift_of.get(call) if chosen.shift is None else chosen.shift
            if chosen.has(call) and shift == wanted and without == kind_of(chosen.without):
                tally.shift = into.shift
                into.merge_state(tally)


class Choice:
    """Keeps each stage to what was chosen for it, and until then what its batches gave."""

    def __init__(self) -> None:
        self.by_stage: dict[str, Chosen] = {}
        self.trials: list[Trial] = []  # for each tally that was counted in since the stage began
        self.shift_of: dict[Call, bool] = {}

    def trial(self, tally: TokenTally) -> Trial:
        """Return the trial that goes with a tally."""
        found = next((trial for trial in self.trials if trial.tally is tally), None)
        if found is None:
            found = Trial(tally)
            self.trials.append(found)
        return found

    def calls(self) -> set[Call]:
        """Return the calls that were counted and not yet taken."""
        return {call for trial in self.trials for call, *_ in trial.counted}

    def drop(self, call: Call) -> None:
        """Forget what a call gave: it failed."""
        for trial in self.trials:
            trial.counted = {key: tally for key, tally in trial.counted.items() if key[0] != call}

    def forget(self) -> None:
        """Forget what was tried."""
        self.trials, self.shift_of = [], {}
