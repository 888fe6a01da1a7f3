"""Find logits and targets in a module without changing it.

There are four sources of logits. Until it is known which of their calls equals the loss (see ``evidence``), all of them are
counted apart; where the loss does not tell, the first source of this order is taken:

1. ``pplmon.observe(self, logits, targets)`` in the step;
2. ``logits=`` names a submodule (hooked), a key of the step's output, or is a callable; ``targets=`` a part of the batch;
3. the step returns a dict with ``logits`` and ``labels`` or ``targets``;
4. a Hugging Face model inside the module (hooked), with the ``labels`` it was given.

In a loop of one's own ``Monitor.hook`` takes the first, the fourth, and any module that is given its targets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pplmon.doctor import BATCHES, Loss
from pplmon.measure.called import name_call
from pplmon.measure.tokens import TokenStats
from pplmon.monitor.repeated_rows import Repeated
from pplmon.tally import TokenTally
from pplmon.trainers.capture.batch import Targets
from pplmon.trainers.capture.choose import sources_for
from pplmon.trainers.capture.decide import Decision
from pplmon.trainers.capture.heard import Batch
from pplmon.trainers.capture.help_text import no_logits, nothing_found, observe_call
from pplmon.trainers.capture.hooks import listen_to
from pplmon.trainers.capture.observe import listen
from pplmon.trainers.capture.silent_steps import SilentSteps, returned_nothing
from pplmon.trainers.capture.sources.configured import Logits
from pplmon.trainers.capture.sources.said import shown_targets
from pplmon.trainers.capture.sources.source import Found
from pplmon.trainers.capture.take import Takes


class Capture(Takes):
    """Asks the sources of logits for each batch, and has their logits counted in the stage's tally."""

    def __init__(
        self,
        logits: Logits | None,
        targets: Targets | None,
        shift: bool | None,
        wire: str = "loop",
        first_only: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__(sources_for(logits, targets, shift, wire, first_only, recompute), wire)
        self._logits, self._shift, self._recompute = logits, shift, recompute
        self._said = self._sources[0]
        self._module: nn.Module | None = None
        self._hooked = False
        self._ends: list[Callable[[], None]] = []  # handles of the hooks on the module
        self.items: Tensor | float | None = None  # what the last batch's loss was divided by, where a model was told
        self._silent = SilentSteps()
        self.decision = Decision(self._choice, self._counter, self._sources)

    # A module.

    def attach(self, module: nn.Module) -> None:
        """Hook a module. It has to happen before the module's first compiled call."""
        self.detach()
        self._module = module
        self._ends.append(listen(module, self))
        for source in self._sources:
            for path, hooked in source.modules_in(module).items():
                self._ends.append(listen_to(hooked, partial(self._called, source, path)).remove)
                self._hooked = True

    def detach(self) -> None:
        """Remove the hooks, and forget the current batch."""
        for end in self._ends:
            end()
        self._ends, self._hooked, self._module = [], False, None
        self._choice.forget()
        self._counter.batches.clear()
        self._close()

    @property
    def attached(self) -> bool:
        """Return True between ``attach`` and ``detach``."""
        return self._module is not None

    # A batch.

    def begin_batch(
        self, stage: str, tally: TokenTally, batch: Any, step: int, micro_batch: int, leave_out: Repeated | None = None
    ) -> None:
        """Count what is found from here on in ``tally``, but for the rows of ``leave_out``."""
        if self._counter.stage is not None:
            self._close()  # a batch that was not ended, because of an exception that somebody caught
        self._counter.begin(stage, tally, batch, step, micro_batch, leave_out, stage in self.decision.looks)

    @property
    def compares(self) -> bool:
        """Return True if the batch under way is to be compared with its loss."""
        stage = self._counter.stage
        return stage is not None and (self._counter.looks or stage not in self._choice.by_stage)

    def end_batch(self, outputs: Any, loss: Tensor | None = None, accumulation: int = 1) -> None:
        """Look at what the step returned, and at its ``loss``, not divided by the accumulation. Then stop listening."""
        stage = self._counter.stage
        if stage is not None:
            chosen = self._choice.by_stage.get(stage)
            if chosen is None or chosen.source is not self._said:
                self._look_at(outputs, stage)
            if chosen is None:
                self._note(stage, loss, outputs, accumulation)
            elif self._counter.heard:
                self.decision.see(stage, Batch(self._counter.heard, _loss(loss), accumulation))
        self.items = self._counter.items
        self._close()

    @property
    def left_out(self) -> Tensor | None:
        """Return how many rows were left out of the last batch: a count on the device, ``None`` if unknown."""
        return self._counter.left_out

    def observe(
        self,
        logits: Tensor | TokenStats,
        targets: Tensor | None = None,
        shift: bool | None = None,
        loss: Tensor | None = None,
        **data: Any,
    ) -> None:
        """Count the arguments of ``pplmon.observe``. Does nothing between batches."""
        if self._counter.stage is not None:
            try:
                self._observe(logits, targets, shift, loss, data)
            except (TypeError, ValueError) as error:
                name_call(error, observe_call(self._wire))
                raise

    def _observe(
        self,
        logits: Tensor | TokenStats,
        targets: Tensor | None,
        shift: bool | None,
        loss: Tensor | None,
        data: dict[str, Any],
    ) -> None:
        counter = self._counter
        shown = shown_targets(logits, targets)
        found = {**counter.data(shown), **data}
        if isinstance(logits, TokenStats):
            if "mask" not in data:
                found.pop("mask", None)  # the stats were masked when they were made
            counter.count_stats(self._said, logits, found, loss)
            return
        stated = self._shift if shift is None else shift
        ids = found.get("input_ids")
        counter.count(self._said, Found(logits, shown, stated, stated is not None, loss=loss, input_ids=ids), found)

    def _note(self, stage: str, loss: Tensor | None, outputs: Any, accumulation: int) -> None:
        """Keep what was measured of a batch to compare it; complain where there was nothing."""
        counter = self._counter
        seen = counter.batches.setdefault(stage, [])
        if counter.heard and len(seen) < BATCHES:
            seen.append(Batch(counter.heard, _loss(loss), accumulation))
        if all(call.guess for call in self._choice.calls()):
            self._found_nothing(stage, outputs)

    def _close(self) -> None:
        self._counter.end()
        self._forget_batch()
        self._excuse = None

    @torch.no_grad()
    def _look_at(self, outputs: Any, stage: str) -> None:
        chosen = self._choice.by_stage.get(stage)
        for source in self._sources if chosen is None else (chosen.source,):
            self._try(self._take_step, source, outputs)
        if self._whole is not None:
            self._whole()
        elif self._pieces.begun and not returned_nothing(outputs):
            self._end_of_pieces()

    def _found_nothing(self, stage: str, outputs: Any) -> None:
        """Raise in training, which would not be watched; elsewhere, and where no step returned a loss yet, warn.

        A Hugging Face trainer trains much that has no tokens to predict: there it is a warning, too.
        """
        excuse, self._excuse = self._excuse, None
        if self._silent.excuse(stage, outputs):
            return
        raises = stage == "train" and not returned_nothing(outputs) and self._wire != "hugging_face"
        if raises and excuse is not None:
            raise excuse
        text = self._help(stage)
        if raises:
            raise ValueError(text)
        self._counter.warn(f"none in {stage}", text if excuse is None else f"{text}\n{excuse}")

    def conclude(self, stage: str) -> None:
        """Warn at the end of a pass or a run in which no step returned a loss, and nothing else was found."""
        steps = self._silent.take(stage)
        if steps and stage not in self._choice.by_stage:
            self._counter.warn(f"none in {stage}", f"{self._help(stage)}\n{steps} steps returned nothing.")

    def _help(self, stage: str) -> str:
        """Return what to write where nothing was found."""
        fused = next((source.without_logits for source in self._sources if source.without_logits is not None), None)
        if fused is not None:
            return no_logits(stage, fused, self._wire, self._recompute)
        return nothing_found(stage, self._module, self._logits, self._hooked, self._wire)


def _loss(loss: Tensor | None) -> Loss | None:
    usable = isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point()
    return Loss.of(loss) if usable else None
