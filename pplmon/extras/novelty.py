"""``Novelty``: measure ids that are new in their sequence, a free choice, apart from those that have occurred."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pplmon.extras.base import Extra
from pplmon.extras.parts import SUMS, parts_of, sums_of_parts
from pplmon.extras.sequences import Places, by_column, given, places_of
from pplmon.measure.tokens import TokenStats
from pplmon.report.numbers import Number

ID_BITS = 32  # of an id; larger ones are taken for one


class Novelty(Extra):
    """An extra that tells tokens that are new in their sequence from those that have occurred there.

    A variable may be called anything where it first appears; from then on its name is settled. So the loss of a new id holds
    the free choice of a name, and the loss of one that has occurred does not.

    An id has occurred where it is among those that were read when it is predicted: with ``input_ids``, those at the logits'
    column and before it; without, the targets before it, masked ones included and ignored ones not. Only ids of the same
    sequence count: the row, or the document with ``document_ids``.

    The numbers are None where a batch has no sequences ([N, V] without ``document_ids``). NaN: there is no such token.
    """

    declares = (
        Number(
            "novel_cross_entropy", "nats per token", "mean nll of tokens that are new in their sequence", best="min"
        ),
        Number("seen_cross_entropy", "nats per token", "mean nll of tokens that have occurred before", best="min"),
        Number("novel_share", "", "tokens that are new in their sequence / tokens", high=1.0),
        Number("seen_share", "", "tokens that have occurred before / tokens", high=1.0),
    )
    size = 1 + 2 * SUMS  # tokens without a sequence; of those that have occurred and of new ones what ``parts`` sums
    needs_sequences = True

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        """Return this batch's integers [size]."""
        places = places_of(stats, batch_data)
        if places is None:
            return torch.cat([valid.sum()[None], stats.targets.new_zeros(2 * SUMS)])
        novel = ~_occurred(places, _read(stats, places, batch_data), stats.targets.view(places.column.shape))
        part = torch.where(valid, novel.flatten().to(torch.int64), -1)
        return torch.cat([part.new_zeros(1), sums_of_parts(stats, part, 2)])

    def numbers(self, integers: Sequence[int]) -> Mapping[str, float | None]:
        """Return the two means and the two shares."""
        if integers[0]:
            return dict.fromkeys(number.name for number in self.declares)
        seen, novel = parts_of(integers[1:])
        tokens = seen.tokens + novel.tokens
        return {
            "novel_cross_entropy": novel.cross_entropy,
            "seen_cross_entropy": seen.cross_entropy,
            "novel_share": novel.tokens / tokens if tokens else math.nan,
            "seen_share": seen.tokens / tokens if tokens else math.nan,
        }


def _read(stats: TokenStats, places: Places, batch_data: Mapping[str, Tensor]) -> Tensor:
    """Return the id that is first read for the logits of each row, [R, T]; −1 for none."""
    read = given("input_ids", stats, batch_data)
    if read is not None:
        return read
    targets = by_column(stats, stats.targets)
    if stats.shift:  # the logits of a column have read its own target
        return targets
    return torch.where(places.column == places.first, -1, targets.roll(1, -1))


def _occurred(places: Places, read: Tensor, wanted: Tensor) -> Tensor:
    """Return whether each wanted id was read in its sequence, at its own row or before, [R, T] bool.

    Ids that are read and ids that are wanted are put in the order of time, then sorted by sequence and id. A wanted id has
    occurred where the last id that was read before it lies in its own run of equal ones. T log T steps, and nothing waits.
    """
    events = torch.stack([read, wanted], -1).clamp(-1, 2**ID_BITS - 2) + 1
    key = ((places.first << (ID_BITS + 1))[..., None] + events).flatten(1)  # [R, 2T]: read, wanted, read, …
    key, order = key.sort(dim=-1, stable=True)
    index = torch.arange(key.shape[1], device=key.device)
    begins = torch.ones_like(key, dtype=torch.bool)
    begins[:, 1:] = key[:, 1:] != key[:, :-1]
    run = torch.where(begins, index, 0).cummax(-1).values
    last_read = torch.where(order % 2 == 0, index, -1).cummax(-1).values
    return torch.zeros_like(begins).scatter_(1, order, last_read >= run)[:, 1::2]
