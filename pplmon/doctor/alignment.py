"""The tokens that a loss may have scored: candidates, each a shift and a set of targets, as masks on the device.

Shapes: B sequences, T positions, V vocabulary. Masks [B, T] are over the columns of the targets until they are moved.
Nothing here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pplmon.doctor.padding import Padding, by_mask, by_runs, edge

SHIFTS = (-1, 0, 1, 2)  # logits at t on targets at t + shift; and targets[t] == input_ids[t + shift]
SURE, UNSURE, LEAST = 0.98, 0.9, 8  # ids settle a shift where it fits this well, all others worse, on so many targets
TOLD = "told"
SCORED = (TOLD, "no padding", "padding too", "prompt too", "all", "mask late", "mask early", "opposite")


class TokenSet(NamedTuple):
    """A candidate: how far the targets stand from their logits, and which of them are scored."""

    shift: int
    scored: str = TOLD  # one of ``SCORED``


class Matches(NamedTuple):
    """The comparison of the scored targets with the input ids, for each of ``SHIFTS``."""

    equal: Tensor  # [S] int64: targets[t] == input_ids[t + shift]
    compared: Tensor  # [S] int64
    settled: Tensor  # [] bool: one shift fits, and no other does
    related: Tensor  # [] bool: one shift fits, or several
    behind: Tensor  # [B, T] int64: the input id behind each target under the best shift, or the nearest to it
    nearest: Tensor  # [T] int64: its column
    inside: Tensor  # [T] bool: it is not beyond the row


@dataclass(frozen=True, eq=False)
class Tokens:
    """The targets of a batch, completed by what is known of those that are ignored."""

    targets: Tensor  # [B, T] int64, as given
    full: Tensor  # [B, T] int64: the ignored ones filled from the input ids, or by id 0
    ignored: Tensor  # [B, T] bool: equal to ignore_index, or masked
    told: Tensor  # [B, T] bool: not ignored, and inside the vocabulary
    has: Tensor  # [B, T] bool: full has an id that may be scored
    opposite: Tensor  # [B, T] bool: what would be scored by a mask of the opposite sense
    ends: Padding
    matches: Matches | None

    @property
    def padding(self) -> Tensor:
        """Return [B, T] bool: the target is padding, as far as is known."""
        return self.ends.columns

    @property
    def text(self) -> Tensor:
        """Return [B, T] bool: scored, and neither padding nor its id."""
        return _text(self.told, self.targets, self.ends)

    def masks(self) -> Tensor:
        """Return the candidates [C, B, T] bool, in the order of ``SCORED``."""
        told, has = self.told, self.has
        blank = has & ~told
        return torch.stack(
            [
                told,
                told & ~self.padding,
                told | (blank & self.padding),
                told | (blank & ~self.padding),
                has,
                moved(told, -1, fill=False) & has,
                moved(told, 1, fill=False) & has,
                self.opposite,
            ]
        )


def moved(x: Tensor, shift: int, *, fill: int | bool) -> Tensor:
    """Return ``x[..., t + shift]`` at column t, and ``fill`` beyond the row."""
    if shift == 0:
        return x
    column = torch.arange(x.shape[-1], device=x.device) + shift
    return torch.where((column >= 0) & (column < x.shape[-1]), x.roll(-shift, -1), fill)


def tokens_of(
    targets: Tensor,
    vocab: int,
    ignore_index: int | None,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    mask: Tensor | None = None,
    shift: int = 0,
) -> Tokens:
    """Return what the targets [B, T] say, with the ids that the model read, its attention mask and the mask of the targets."""
    known = (targets >= 0) & (targets < vocab)
    ignored = torch.zeros_like(known) if ignore_index is None else targets == ignore_index
    valid = known & ~ignored
    masked = torch.zeros_like(known) if mask is None else valid & ~mask
    told, ignored = valid & ~masked, ignored if mask is None else ignored | ~mask
    blank = (ignored | (targets < 0)) & ~masked
    seen = None if attention_mask is None else by_mask(attention_mask)
    if input_ids is None:
        ends = by_runs(targets) if seen is None else seen._replace(columns=seen.columns & edge(seen.columns, 1))
        return Tokens(targets, torch.where(valid, targets, 0), ignored, told, valid | blank, masked, ends, None)
    matches = compare(targets, told, input_ids, shift)
    inputs = by_runs(input_ids) if seen is None else seen
    ends = _over_targets(inputs, targets, matches)
    # A column beyond the inputs: padding, where some row has a target there and this one has none, or the padding's own id.
    pad = torch.where(inputs.columns, input_ids, -1).amax()
    last = matches.settled & ~matches.inside & (pad >= 0)
    ends = ends._replace(columns=ends.columns | (last & ((targets == pad) | (blank & (told & ~matches.inside).any()))))
    behind = torch.where(matches.inside, matches.behind, pad)
    is_id = (behind >= 0) & (behind < vocab) & (matches.inside | ends.columns)
    fits = matches.settled & is_id
    # Padding alone is the same id under several shifts; the ids around it are those of the usual shift.
    only_padding = matches.related & ~_text(told, targets, ends).any()
    full = torch.where(valid, targets, torch.where(fits | (only_padding & is_id), behind, 0))
    opposite = masked if mask is not None else blank & is_id & (matches.settled | only_padding)
    has = valid | (blank & (fits | ~matches.settled))
    return Tokens(targets, full, ignored, told, has, opposite, ends, matches)


def compare(targets: Tensor, told: Tensor, input_ids: Tensor, shift: int = 0) -> Matches:
    """Compare the scored targets with the input ids at every shift; of two that fit alike the usual one is the best."""
    behind = torch.stack([moved(input_ids, shift, fill=-1) for shift in SHIFTS])
    both = told & (behind >= 0)
    equal, compared = (both & (behind == targets)).sum((1, 2)), both.sum((1, 2))
    shares = equal / compared.clamp_min(1)
    usual = torch.arange(len(SHIFTS), device=shares.device) == SHIFTS.index(1 - shift)
    best = (shares + 1e-6 * usual).argmax().view(1)
    others = torch.where(torch.arange(len(SHIFTS), device=shares.device) == best, 0.0, shares)
    related = shares.amax() > SURE
    settled = related & (others.amax() < UNSURE) & (compared.index_select(0, best)[0] >= LEAST)
    column = torch.arange(targets.shape[1], device=targets.device) + best + SHIFTS[0]
    nearest = column.clamp(0, targets.shape[1] - 1)
    return Matches(equal, compared, settled, related, input_ids.index_select(1, nearest), nearest, column == nearest)


def _text(told: Tensor, targets: Tensor, ends: Padding) -> Tensor:
    pad = torch.where(told & ends.columns, targets, -1).amax()
    return told & ~ends.columns & (targets != pad)


def _over_targets(inputs: Padding, targets: Tensor, matches: Matches) -> Padding:
    """Return padding of the inputs as padding of the targets; where these are no such inputs, that of the targets themselves."""
    unsettled = inputs.columns & edge(inputs.columns, 1)  # under both of the usual shifts
    along = torch.where(matches.settled, inputs.columns.index_select(1, matches.nearest), unsettled)
    pairs = zip(inputs._replace(columns=along), by_runs(targets))
    return Padding(*(torch.where(matches.related, a, b) for a, b in pairs))
