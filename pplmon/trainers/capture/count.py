"""Count logits and targets that were found, with what else their batch says of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pplmon.doctor.overwritten import Overwritten
from pplmon.measure.tokens import TokenStats
from pplmon.monitor.repeated_rows import Repeated
from pplmon.report import layout
from pplmon.tally import TokenTally
from pplmon.trainers.capture.batch import data_of, part_with
from pplmon.trainers.capture.choose import Choice
from pplmon.trainers.capture.documents import Documents
from pplmon.trainers.capture.sources.source import Source


class Counter:
    """Counts the batch under way in the tally of its source."""

    def __init__(self, choice: Choice) -> None:
        self.stage: str | None = None  # None between batches
        self.batch: Any = None
        self.left_out: Tensor | None = None  # on the device: how many repeated rows were masked in this batch
        self._choice = choice
        self._tally: TokenTally | None = None
        self._address: dict[str, int] = {}
        self._leave_out: Repeated | None = None
        self._warned: set[str] = set()
        self._overwritten = Overwritten()
        self._documents = Documents()

    @property
    def tally(self) -> TokenTally:
        """Return the stage's tally."""
        assert self._tally is not None
        return self._tally

    def begin(
        self, stage: str, tally: TokenTally, batch: Any, step: int, micro_batch: int, leave_out: Repeated | None
    ) -> None:
        """Count from here on in ``tally``, but for the rows of ``leave_out``."""
        self.stage, self._tally, self.batch, self._leave_out = stage, tally, batch, leave_out
        self._address = {"step": step, "micro_batch": min(micro_batch, 2**layout.MICRO_BITS - 1)}
        self.left_out = None

    def end(self) -> None:
        """Let go of the batch."""
        self.stage, self._tally, self.batch = None, None, None

    def count(
        self,
        source: Source,
        logits: Tensor | TokenStats,
        targets: Tensor | None,
        shift: bool | None,
        data: dict[str, Any],
    ) -> None:
        """Count what a source gave, unless the stage keeps to another."""
        assert self.stage is not None and self._tally is not None
        tally = self._choice.tally_for(source, self.stage, self._tally)
        if tally is None:
            return
        usual, shift = tally.shift, tally.shift if shift is None else shift
        if shift != usual:  # setting an attribute of a Metric is slow
            tally.shift = shift
        try:
            tally.update(logits, targets, **(data if targets is None else self.without_repeated(data, targets)))
        except Exception:
            self._choice.drop(source)
            raise
        finally:
            if shift != usual:
                tally.shift = usual
        chosen = "train" in self._choice.by_stage  # before that, several sources are tried on one batch
        if self.stage == "train" and chosen and isinstance(logits, Tensor) and targets is not None:
            self._overwritten.look(logits, targets, tally.ignore_index, shift)

    def data(self, targets: Tensor, keywords: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the address, and what else the batch says of these targets, for ``TokenTally.update``.

        Its documents may also be in the ``keywords`` that a hooked model was called with.
        """
        found: dict[str, Any] = dict(self._address)
        batch = part_with(self.batch, targets)
        for name, value, complaint in data_of(batch, targets):
            if name == "position_ids" and not self.tally.context_parallel:
                continue  # in a packed batch they begin anew with each document; the column tells more
            if complaint is None:
                found[name] = value
            else:
                self.warn(name, complaint)
        assert self.stage is not None
        if "document_ids" not in found and not self.tally.context_parallel:
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
        """Warn once about each thing."""
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(f"pplmon: {text}", stacklevel=3)
