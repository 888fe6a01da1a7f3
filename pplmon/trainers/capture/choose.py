"""Choose among the sources of logits: all are tried on a stage's first batch, and the stage then uses one."""

from __future__ import annotations

from pplmon.tally import TokenTally
from pplmon.trainers.capture.batch import Targets
from pplmon.trainers.capture.sources.configured import Configured, Logits
from pplmon.trainers.capture.sources.hugging_face import HuggingFace
from pplmon.trainers.capture.sources.returned import Returned
from pplmon.trainers.capture.sources.said import Said
from pplmon.trainers.capture.sources.source import Source


def sources_for(logits: Logits | None, targets: Targets | None, shift: bool | None) -> tuple[Source, ...]:
    """Return the sources that these settings allow, in the order in which they are preferred."""
    if logits is not None:
        return Said(), Configured(logits, targets, shift)
    return Said(), Returned(targets, shift), HuggingFace(targets, shift)


class Choice:
    """Chooses a source for each stage: the first, in order of preference, that gave logits on its first batch."""

    def __init__(self, sources: tuple[Source, ...]) -> None:
        self._sources = sources
        self.by_stage: dict[str, Source] = {}
        self._trials: dict[Source, TokenTally] = {}  # the counts from each source on the first batch

    def tally_for(self, source: Source, stage: str, tally: TokenTally) -> TokenTally | None:
        """Return the tally for a source: the stage's own if it was chosen, ``None`` if another was.

        Before the choice each source has a tally of its own.
        """
        chosen = self.by_stage.get(stage)
        if chosen is not None:
            return tally if chosen is source else None
        if source not in self._trials:
            self._trials[source] = tally.clone()
            self._trials[source].reset()
        return self._trials[source]

    def drop(self, source: Source) -> None:
        """Discard the counts of a source that failed on the first batch."""
        self._trials.pop(source, None)

    def forget(self) -> None:
        """Discard the counts of all sources on the first batch."""
        self._trials = {}

    def settle(self, stage: str, tally: TokenTally) -> bool:
        """Choose by the first batch, and count it in the stage's tally. Returns False if no source gave anything."""
        trials, self._trials = self._trials, {}
        chosen = next((source for source in self._sources if source in trials), None)
        if chosen is None:
            return False
        self.by_stage[stage] = chosen
        tally.merge_state(trials[chosen])
        return True
