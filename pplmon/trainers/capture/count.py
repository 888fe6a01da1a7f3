"""Count logits and targets that were found, with the masks and ids in their batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pplmon.doctor import BATCHES, Loss, row_digests
from pplmon.doctor.overwritten import Overwritten
from pplmon.measure.tokens import TokenStats, is_dtensor
from pplmon.monitor.repeated_rows import Repeated
from pplmon.report import layout
from pplmon.tally import TokenTally
from pplmon.trainers.capture.batch import data_of, part_with
from pplmon.trainers.capture.choose import Call, Choice, Trial
from pplmon.trainers.capture.documents import Documents
from pplmon.trainers.capture.heard import Batch, Counted, Heard, hear, mask_of
from pplmon.trainers.capture.padding import BY_MASK, kept
from pplmon.trainers.capture.sources.source import Found, Source


class Counter:
    """Counts the current batch in the tally of its source."""

    def __init__(self, choice: Choice) -> None:
        self.stage: str | None = None  # None between batches
        self.batch: Any = None
        self.left_out: Tensor | None = None  # on the device: how many repeated rows were masked in this batch
        self._choice = choice
        self._tally: TokenTally | None = None
        self._address: dict[str, int] = {}
        self._leave_out: Repeated | None = None
        self._numbers: dict[tuple[Source, str], int] = {}  # of calls in this batch
        self.items: Tensor | float | None = None  # what the loss of this batch is divided by, where a model was told
        self.looks = False  # at this batch once more
        self.heard: list[Heard] = []  # in this batch, before the stage's choice
        self.batches: dict[str, list[Batch]] = {}  # of each stage, before its choice
        self._warned: set[str] = set()
        self._overwritten = Overwritten()
        self._documents = Documents()

    @property
    def tally(self) -> TokenTally:
        """Return the stage's tally."""
        assert self._tally is not None
        return self._tally

    def begin(
        self,
        stage: str,
        tally: TokenTally,
        batch: Any,
        step: int,
        micro_batch: int,
        leave_out: Repeated | None,
        looks: bool,
    ) -> None:
        """Begin a batch, counted in ``tally``, except for the rows of ``leave_out``."""
        self.stage, self._tally, self.batch, self._leave_out = stage, tally, batch, leave_out
        self._address = {"step": step, "micro_batch": min(micro_batch, 2**layout.MICRO_BITS - 1)}
        self.left_out = None
        self._numbers, self.heard, self.items = {}, [], None
        self.looks = looks

    def end(self) -> None:
        """Forget the batch."""
        self.stage, self._tally, self.batch = None, None, None

    def count(self, source: Source, found: Found, data: dict[str, Any], stats: TokenStats | None = None) -> None:
        """Count what a source gave, unless the stage keeps to another; ``stats`` are of logits that came in pieces."""
        assert self.stage is not None
        number = self._numbers.get((source, found.call), 0)
        self._numbers[source, found.call] = number + 1
        if number and source.first_only:
            return
        call, chosen = Call(source, found.call, number, found.guess), self._choice.by_stage.get(self.stage)
        tally = self.tally
        said = tally.shift if found.shift is None else found.shift
        self.items = found.items if found.items is not None else self.items
        if chosen is None:
            self._try(call, found, said, data, stats)
        elif chosen.has(call):
            shift = said if chosen.shift is None else chosen.shift
            if chosen.without is not None and stats is None:
                data = self._left(found, shift, data, chosen.without)
            before = tally.sums.clone() if self.looks else None
            self._update(tally, found, shift, data, stats)
            if before is not None:
                counted = Counted(shift, {shift: before}, {shift: tally.sums.clone()})
                self._hear(call, found, shift, data, stats, counted)
            if self.stage == "train" and stats is None:
                self._overwritten.look(found.logits, found.targets, tally.ignore_index, shift)

    def count_stats(self, source: Source, stats: TokenStats, data: dict[str, Any], loss: Tensor | None) -> None:
        """Count losses that a module shows by itself: they are of certain targets, under one shift."""
        targets = stats.targets.view(stats.batch_shape)
        self.count(source, Found(stats.nll, targets, None, stated=True, loss=loss), data, stats)

    def _try(self, call: Call, found: Found, said: bool, data: dict[str, Any], stats: TokenStats | None) -> None:
        """Count a call under the shift that it says, and whatever else is open: the other shift, padding left out."""
        assert self.stage is not None
        trial, self._choice.shift_of[call] = self._choice.trial(self.tally), said
        few = len(self.batches.get(self.stage, ())) < BATCHES
        usable = stats is None and found.logits.dim() == 3 and found.targets.dim() == 2
        both = usable and not found.stated and not self.tally.context_parallel and (few or call in self.open_calls())
        shifts = (said, not said) if both else (said,)
        tallies = {shift: trial.tally_for(call, shift) for shift in shifts}
        before = {shift: tally.sums.clone() for shift, tally in tallies.items()}
        try:
            self._update(tallies[said], found, said, data, stats)
        except Exception:
            self._choice.drop(call)
            raise
        if both:
            self._update(tallies[not said], found, not said, data, None)
        if few:
            after = {shift: tally.sums.clone() for shift, tally in tallies.items()}
            self._hear(call, found, said, data, stats, Counted(said, before, after))
        self._try_without(trial, call, found, shifts, data)

    def _try_without(
        self, trial: Trial, call: Call, found: Found, shifts: tuple[bool, ...], data: dict[str, Any]
    ) -> None:
        """Count a call without its padding, where that is open."""
        heard = next((heard for heard in self.heard if heard.call == call), None)
        if heard is None or heard.unpadded is None:
            return
        for kind, shift in heard.unpadded.sums:
            if shift in shifts:
                without = BY_MASK if kind == "mask" else heard.unpadded.id
                self._update(
                    trial.tally_for(call, shift, kind), found, shift, self._left(found, shift, data, without), None
                )

    def _left(self, found: Found, shift: bool, data: dict[str, Any], without: int | Tensor) -> dict[str, Any]:
        """Return a batch's data with a mask that leaves its padding out."""
        seen = mask_of(found, found.targets, part_with(self.batch, found.targets))
        return {**data, "mask": kept(found.targets, shift, without, seen)}

    def _hear(
        self,
        call: Call,
        found: Found,
        shift: bool,
        data: dict[str, Any],
        stats: TokenStats | None,
        counted: Counted,
    ) -> None:
        """Measure a call for the comparison with the loss; where it cannot be measured anew, take what was counted."""
        batch = part_with(self.batch, found.targets)
        heard = hear(call, found, shift, data, self.tally.ignore_index, batch) if stats is None else None
        if heard is None:
            loss = None if found.loss is None else Loss.of(found.loss)
            stated = found.stated or len(counted.after) == 1
            parts = is_dtensor(found.logits) or "vocab_shard" in data or (stats is not None and bool(stats.shared_by))
            heard = Heard(call, counted, shift, stated, found.rank, loss, found.items, shared=parts)
        if self.stage == "train":
            heard.digest = row_digests(found.targets).sum()
        self.heard.append(heard)

    def calls_of(self, source: Source, name: str) -> int:
        """Return how many calls of a name this batch had."""
        return self._numbers.get((source, name), 0)

    def open_calls(self) -> set[Call]:
        """Return the calls that were heard in this stage."""
        assert self.stage is not None
        return {heard.call for batch in self.batches.get(self.stage, ()) for heard in batch.heard}

    def _update(
        self, tally: TokenTally, found: Found, shift: bool, data: dict[str, Any], stats: TokenStats | None
    ) -> None:
        usual = tally.shift
        if shift != usual:  # setting an attribute of a Metric is slow
            tally.shift = shift
        try:
            if stats is None:
                tally.update(found.logits, found.targets, **self.without_repeated(data, found.targets))
            else:
                tally.update(stats, **data)
        finally:
            if shift != usual:
                tally.shift = usual

    def data(self, targets: Tensor, keywords: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the arguments for ``TokenTally.update``: the address, and the batch's data about these targets.

        Its documents may also be in the ``keywords`` that a hooked model was called with.
        """
        found: dict[str, Any] = dict(self._address)
        batch, parts_of_sequences = part_with(self.batch, targets), self.tally.context_parallel
        for name, value, complaint in data_of(batch, targets):
            if name == "position_ids" and not parts_of_sequences:
                continue  # in a packed batch they begin anew with each document; the column is more useful
            if complaint is None:
                found[name] = value
            else:
                self.warn(name, complaint)
        assert self.stage is not None
        if "document_ids" not in found and not parts_of_sequences:
            given = {**(batch if isinstance(batch, Mapping) else {}), **(keywords or {})}
            documents = self._documents.of(self.stage, given, targets)
            if documents is not None:
                found["document_ids"] = documents
        return found

    def without_repeated(self, data: dict[str, Any], targets: Tensor) -> dict[str, Any]:
        """Mask the rows that were given before, where it can be told which they are."""
        if self._leave_out is not None:
            data, self.left_out = self._leave_out.left_out(targets, data)
        return data

    def warn(self, about: str, text: str) -> None:
        """Warn once for each key."""
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(f"pplmon: {text}", stacklevel=3)
