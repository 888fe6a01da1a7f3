"""Take logits from what a hooked model or the step gave, in one piece or in chunks of positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pplmon.measure.tokens import is_dtensor
from pplmon.trainers.capture.choose import Choice
from pplmon.trainers.capture.chunked_head import Pieces, guesses
from pplmon.trainers.capture.count import Counter
from pplmon.trainers.capture.help_text import no_fit, origin_of
from pplmon.trainers.capture.modules import fitted
from pplmon.trainers.capture.silent_steps import returned_nothing
from pplmon.trainers.capture.sources.fused_head import Losses
from pplmon.trainers.capture.sources.recomputed import Recomputed
from pplmon.trainers.capture.sources.source import Called, Found, Source


class Takes:
    """Takes logits from the sources, of a model's calls and of what a step returned, and has them counted."""

    def __init__(self, sources: tuple[Source, ...], wire: str) -> None:
        self._sources, self._wire = sources, wire
        self._choice = Choice()
        self._counter = Counter(self._choice)
        self._excuse: Exception | None = None  # why a source that was tried on the first batch failed
        self._forget_batch()

    def _forget_batch(self) -> None:
        self._pieces = Pieces()
        self._piece: tuple[Source, Found] | None = None  # the last
        self._whole: Callable[[], None] | None = None  # counts the pieces, if no whole call comes
        # The results of hooked models in this batch, by the memory of their logits.
        self._models: dict[tuple[int, tuple[int, ...]], Found] = {}

    def _called(
        self,
        source: Source,
        path: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        if self._counter.stage is not None:
            self._try(
                self._take_call, source, Called(path, module, args, kwargs, output, self._counter.stage == "train")
            )

    def _try(self, take: Callable[..., object], *args: Any) -> None:
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
        if found is None:
            return
        fit = fitted(found.logits, found.targets)
        if fit is None:
            raise ValueError(self._no_fit("the step", found, found.logits.shape))
        model = self._models.get(_memory(found.logits))
        if model is not None and found.shift is None:  # the model knows its own shift, whoever hands its logits on
            found = found._replace(
                shift=model.shift if model.targets.shape == found.targets.shape else None,
                loss=model.loss,
                items=model.items,
                input_ids=model.input_ids,
                attention_mask=model.attention_mask,
            )
        self._count(source, found._replace(logits=fit))

    def _take_call(self, source: Source, called: Called) -> None:
        found = source.of_call(called, self._counter.batch)
        if found is None:
            return
        if found.losses is not None:
            self._take_losses(source, found, found.losses, called.kwargs)
            return
        self._models[_memory(found.logits)] = found
        targets = found.targets if found.columns is None else found.targets[:, found.columns]
        fit = fitted(found.logits, targets)
        if fit is not None:
            self._pieces.refuse()
            self._whole = None
            self._count(source, found._replace(logits=fit), called.kwargs)
        elif not self._take_piece(source, found, keywords=called.kwargs):
            self._complain(self._no_fit(f"a call of {type(called.module).__name__}", found, found.logits.shape))

    def _take_losses(self, source: Source, found: Found, losses: Losses | Recomputed, keywords: dict[str, Any]) -> None:
        """Count what a fused head gave in place of logits, or what is computed again."""
        counter = self._counter
        data = counter.without_repeated(counter.data(found.targets, keywords), found.targets)
        stats = losses.stats(found.targets, data.pop("mask", None), counter.tally, bool(found.shift))
        counter.count(source, found, data, stats)

    def _end_of_pieces(self) -> None:
        """Count pieces that lack the last column, where no target is expected of it; else say what is missing."""
        assert self._piece is not None
        source, found = self._piece
        shift = self._counter.tally.shift if found.shift is None else found.shift
        if shift and self._pieces.width == found.targets.shape[1] - 1:
            self._try(self._take_piece, source, found._replace(logits=torch.zeros_like(found.logits[:, :1])), True)
            if self._whole is not None:
                self._whole()
            return
        given = (*found.targets.shape[:1], self._pieces.width, found.logits.shape[-1])
        self._complain(self._no_fit(f"calls of {found.call}", found, given))

    def _no_fit(self, who: str, found: Found, logits: Sequence[int]) -> str:
        origin = origin_of(found.targets, self._counter.batch)
        return no_fit(who, logits, found.targets.shape, origin, self._wire)

    def _complain(self, text: str) -> None:
        """Say that a call is not counted; where nothing else is found, that is why."""
        if self._counter.stage in self._choice.by_stage:
            self._counter.warn("shape", f"{text}. It is not counted")
        elif self._excuse is None:
            self._excuse = ValueError(text)

    def _count(self, source: Source, found: Found, keywords: dict[str, Any] | None = None) -> None:
        data = self._counter.data(found.targets, keywords)
        if found.columns is not None:
            data, found = _columns(data, found)
        self._counter.count(source, found, data)

    def _take_piece(
        self, source: Source, found: Found, is_rest: bool = False, keywords: dict[str, Any] | None = None
    ) -> bool:
        """Keep what a head gives that is applied to chunks of positions, to count it when all are there."""
        logits, targets, counter = found.logits, found.targets, self._counter
        columns = self._pieces.columns_of(logits, targets, is_rest)
        if columns is None:
            return False
        assert counter.stage is not None
        chosen = self._choice.by_stage.get(counter.stage)
        if chosen is not None and chosen.source is not source:
            return True
        if not is_rest and (chosen is None or chosen.name != found.call):
            for guess in guesses(found, counter.tally.shift):
                self._count(source, guess, keywords)
        if chosen is not None and chosen.name != found.call:
            return True
        self._piece = source, found
        shift = counter.tally.shift if found.shift is None else found.shift
        data = counter.without_repeated(counter.data(targets, keywords), targets)
        whole = self._pieces.measure(logits, columns, targets, data.pop("mask", None), shift, counter.tally)
        if whole is not None:
            self._whole = partial(counter.count, source, found, data, whole)
        return True


def _memory(logits: Tensor) -> tuple[int, tuple[int, ...]]:
    """Tell logits by where they are: a trainer detaches what a step returns."""
    return (0 if is_dtensor(logits) else logits.data_ptr()), tuple(logits.shape)


def _columns(data: dict[str, Any], found: Found) -> tuple[dict[str, Any], Found]:
    """Cut what a batch says of its tokens to the columns that there are logits for; addresses stay those of the batch."""
    targets, cut = found.targets, found.columns
    assert cut is not None
    parts = {k: v[:, cut] if isinstance(v, Tensor) and v.shape == targets.shape else v for k, v in data.items()}
    places = torch.arange(targets.shape[1], device=targets.device).expand(targets.shape)[:, cut]

    def of(value: Tensor | None) -> Tensor | None:
        return value[:, cut] if isinstance(value, Tensor) and value.shape == targets.shape else None

    return {"position_ids": places, **parts}, found._replace(
        targets=targets[:, cut], columns=None, input_ids=of(found.input_ids), attention_mask=of(found.attention_mask)
    )
