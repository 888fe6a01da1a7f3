"""Say in one integer what a rank does when it reads a tally out, so that ranks that do unlike things at one time are told."""

from __future__ import annotations

from typing import NamedTuple

STEP_BITS, NUMBER_BITS = 40, 18
LEAVES = -(2**62)  # below every other word: a rank that has no more steps goes along with what the others do
_TEXTS = {
    "tally": "reads a tally out",
    "step": "closes optimizer step {step}",
    "flush": "reads out what it has at step {step}",
    "choice": "chooses which logits to count, after step {step}",
    "probe": "runs a probe, after step {step}",
    "checkpoint": "saves a state at step {step}",
    "val": "ends val pass {number}, at step {step}",
    "test": "ends test pass {number}, at step {step}",
}
_ACTIONS = tuple(_TEXTS)


class Votes(NamedTuple):
    """The votes of a rank on the shift to be counted, each 0 or 1; over ranks, 1 where one of them says so."""

    held: int = 0  # it holds tokens back until it is chosen
    open: int = 0  # it needs more batches
    departs: int = 0  # its loss, or what it counts, is of the other shift than the default
    keeps: int = 0  # it is of the default


class Doing(NamedTuple):
    """An action, the number of the pass that it ends, and the optimizer step."""

    what: str = "tally"
    number: int = 0
    step: int = 0
    leaves: bool = False  # there are no more steps: nothing but taking part in those of the others
    votes: Votes = Votes()

    @property
    def word(self) -> int:
        """The integer that travels; a later step of the same action is a larger one."""
        if self.leaves:
            return LEAVES
        kind: int = _ACTIONS.index(self.what) << NUMBER_BITS | self.number % 2**NUMBER_BITS
        return kind << STEP_BITS | self.step

    @classmethod
    def of(cls, word: int) -> Doing:
        """Return what a word stands for."""
        kind, step = word >> STEP_BITS, word % 2**STEP_BITS
        return cls(_ACTIONS[kind >> NUMBER_BITS], kind % 2**NUMBER_BITS, step)

    def __str__(self) -> str:
        return "has closed its monitor" if self.leaves else _TEXTS[self.what].format(**self._asdict())


def differ(word: int, lowest: int) -> bool:
    """True where words from ``lowest`` to ``word`` are of unlike actions; unlike steps may be merged."""
    return word >> STEP_BITS != lowest >> STEP_BITS
