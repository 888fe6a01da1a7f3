"""Find logits and targets in a module without changing it.

There are four sources of logits, in this order; the first that gives something on the first batch of a stage is the only
one used there:

1. ``pplmon.observe(self, logits, targets)`` in the step;
2. ``logits=`` names a submodule (hooked), a key of the step's output, or is a callable; ``targets=`` a part of the batch;
3. the step returns a dict with ``logits`` and ``labels`` or ``targets``;
4. a Hugging Face model inside the module (hooked), with the ``labels`` it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pplmon.measure.tokens import TokenStats
from pplmon.monitor.repeated_rows import Repeated
from pplmon.tally import TokenTally
from pplmon.trainers.capture.batch import Targets
from pplmon.trainers.capture.choose import Choice, sources_for
from pplmon.trainers.capture.chunked_head import Pieces
from pplmon.trainers.capture.count import Counter
from pplmon.trainers.capture.help_text import nothing_found
from pplmon.trainers.capture.hooks import listen_to
from pplmon.trainers.capture.modules import fitted
from pplmon.trainers.capture.observe import listen
from pplmon.trainers.capture.silent_steps import SilentSteps, returned_nothing
from pplmon.trainers.capture.sources.configured import Logits
from pplmon.trainers.capture.sources.said import shown_targets
from pplmon.trainers.capture.sources.source import Found, Source


class Capture:
    """Asks the sources of logits, batch by batch, and has what they give counted in the stage's tally."""

    def __init__(self, logits: Logits | None, targets: Targets | None, shift: bool | None) -> None:
        self._logits, self._shift = logits, shift
        self._sources = sources_for(logits, targets, shift)
        self._said = self._sources[0]
        self._choice = Choice(self._sources)
        self._counter = Counter(self._choice)
        self._module: nn.Module | None = None
        self._hooked = False
        self._ends: list[Callable[[], None]] = []  # of what listens to the module
        self._pieces = Pieces()
        self._whole: Callable[[], None] | None = None  # counts the pieces, if no whole call comes
        self._silent = SilentSteps()
        self._excuse: Exception | None = None  # why a source that was tried on the first batch failed

    # A module.

    def attach(self, module: nn.Module) -> None:
        """Listen to a module. It has to happen before the module's first compiled call."""
        self.detach()
        self._module = module
        self._ends.append(listen(module, self))
        for source in self._sources:
            hooked = source.module_in(module)
            if hooked is not None:
                self._ends.append(listen_to(hooked, partial(self._called, source)).remove)
                self._hooked = True

    def detach(self) -> None:
        """Leave the module alone, and forget the batch under way."""
        for end in self._ends:
            end()
        self._ends, self._hooked, self._module = [], False, None
        self._choice.forget()
        self._close()

    @property
    def attached(self) -> bool:
        """True between ``attach`` and ``detach``."""
        return self._module is not None

    # A batch.

    def begin_batch(
        self, stage: str, tally: TokenTally, batch: Any, step: int, micro_batch: int, leave_out: Repeated | None = None
    ) -> None:
        """Count what is found from here on in ``tally``, but for the rows of ``leave_out``."""
        self._counter.begin(stage, tally, batch, step, micro_batch, leave_out)
        self._pieces, self._whole = Pieces(), None

    def end_batch(self, outputs: Any) -> None:
        """Look at what the step returned, and after a stage's first batch choose its source. Then stop listening."""
        stage = self._counter.stage
        if stage is not None and self._choice.by_stage.get(stage) is not self._said:
            self._look_at(outputs, stage)
        self._close()

    @property
    def left_out(self) -> Tensor | None:
        """Return how many rows were left out of the last batch: a count on the device, ``None`` where nobody can tell."""
        return self._counter.left_out

    def observe(
        self, logits: Tensor | TokenStats, targets: Tensor | None = None, shift: bool | None = None, **data: Any
    ) -> None:
        """Count what ``pplmon.observe`` shows. Does nothing between batches."""
        counter = self._counter
        if counter.stage is None:
            return
        found = counter.data(shown_targets(logits, targets))
        if isinstance(logits, TokenStats):
            found.pop("mask", None)  # the stats were masked when they were made
        counter.count(self._said, logits, targets, self._shift if shift is None else shift, {**found, **data})

    def _close(self) -> None:
        self._counter.end()
        self._pieces, self._whole = Pieces(), None

    @torch.no_grad()
    def _look_at(self, outputs: Any, stage: str) -> None:
        chosen = self._choice.by_stage.get(stage)
        for source in self._sources if chosen is None else (chosen,):
            self._try(self._take_step, source, outputs)
        if self._whole is not None:
            self._whole()
        elif self._pieces.begun and not returned_nothing(outputs):
            self._counter.warn(
                "pieces", "a hooked module gave logits for a part of the targets only; they are not counted"
            )
        if chosen is None and not self._choice.settle(stage, self._counter.tally):
            self._found_nothing(stage, outputs)

    def _found_nothing(self, stage: str, outputs: Any = None) -> None:
        """Raise in training, which would go unwatched; elsewhere, and where no step returned a loss yet, warn."""
        excuse, self._excuse = self._excuse, None
        if self._silent.excuse(stage, outputs):
            return
        raises = stage == "train" and not returned_nothing(outputs)
        if raises and excuse is not None:
            raise excuse
        text = nothing_found(stage, self._module, self._logits, self._hooked)
        if raises:
            raise ValueError(text)
        self._counter.warn(f"none in {stage}", text if excuse is None else f"{text}\n{excuse}")

    def conclude(self, stage: str) -> None:
        """Warn at the end of a pass or a run in which no step returned a loss, and nothing else was found."""
        steps = self._silent.take(stage)
        if steps and stage not in self._choice.by_stage:
            text = nothing_found(stage, self._module, self._logits, self._hooked)
            self._counter.warn(f"none in {stage}", f"{text}\n{steps} steps returned nothing.")

    # What a source gives.

    def _called(
        self, source: Source, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._counter.stage is not None:
            self._try(self._take_call, source, module, args, kwargs, output)

    def _try(self, take: Callable[..., None], *args: Any) -> None:
        """Take from a source. One that fails on the first batch may be meant by nobody; later it is one odd batch."""
        try:
            take(*args)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            if self._counter.stage in self._choice.by_stage:
                if take == self._take_step and returned_nothing(args[1]):
                    return  # it had nothing to score, and nothing to show
                self._counter.warn("odd batch", f"{error}; this batch is not counted")
            elif self._excuse is None:
                self._excuse = error

    def _take_step(self, source: Source, outputs: Any) -> None:
        found = source.of_step(outputs, self._counter.batch)
        if found is not None:
            fit = fitted(found.logits, found.targets)
            self._count(source, found if fit is None else found._replace(logits=fit))

    def _take_call(
        self, source: Source, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        found = source.of_call(module, args, kwargs, output, self._counter.batch)
        if found is None:
            return
        fit = fitted(found.logits, found.targets)
        if fit is not None:
            self._pieces.refuse()
            self._whole = None
            self._count(source, found._replace(logits=fit), kwargs)
        elif not self._take_piece(source, found, kwargs):
            self._counter.warn(
                "shape",
                f"a call of {type(module).__name__} gave logits {tuple(found.logits.shape)}, which do not fit targets "
                f"{tuple(found.targets.shape)}; it is not counted (generation?)",
            )

    def _count(self, source: Source, found: Found, keywords: dict[str, Any] | None = None) -> None:
        self._counter.count(source, *found, self._counter.data(found.targets, keywords))

    def _take_piece(self, source: Source, found: Found, keywords: dict[str, Any]) -> bool:
        """Keep what a head gives that is applied to chunks of positions, to count it when all are there."""
        (logits, targets, shift), counter = found, self._counter
        columns = self._pieces.columns_of(logits, targets)
        if columns is None:
            return False
        assert counter.stage is not None
        if self._choice.by_stage.get(counter.stage, source) is not source:
            return True
        shift = counter.tally.shift if shift is None else shift
        data = counter.without_repeated(counter.data(targets, keywords), targets)
        whole = self._pieces.measure(logits, columns, targets, data.pop("mask", None), shift, counter.tally)
        if whole is not None:
            self._whole = partial(counter.count, source, whole, None, None, data)
        return True
