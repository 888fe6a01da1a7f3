"""Measure logits whose vocabulary is split over ranks: each rank its own columns, merged by one collective.

Shapes: N tokens, R ranks. A rank sends per token: its largest logit (4 bytes; fp64 logits: 8), that logit's id, the gap to
the target, the sum without the largest term, a check value that shows ranks which measure different tokens, and for the
entropy a weighted sum (4 bytes each). That is 20 bytes, 24 with entropy; for fp64 logits 24 and 28.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pplmon.measure import eager
from pplmon.measure.eager import Measured, Partials
from pplmon.measure.vocab_parallel.shard import WIDEST, Place


def measure(shard: Tensor, targets: Tensor, entropy: bool, place: Place) -> Measured:
    """Measure logits of which this rank holds ``shard`` [..., columns] against ids ``targets`` [N] in [0, V).

    Every rank of the group calls it with the same targets, and gets the same bits. Where ranks differ in a target or in
    V, that token is NaN on all of them.
    """
    parts = _of_shard(shard, targets, entropy, place)
    words = _packed(parts, targets - place.size)  # below 0, so that neither another target nor another V can pass
    every, claims = _unpacked(_gathered(words, place), parts)
    return eager.finish(_merged(every, (claims == claims[:1]).all(0)))


def _of_shard(shard: Tensor, targets: Tensor, entropy: bool, place: Place) -> Partials:
    """Return the partials of a shard that may have no columns, only −inf ones, or not the target: then gap is inf."""
    columns = targets - place.start
    inside = (columns >= 0) & (columns < place.columns)
    if place.columns:
        parts = eager.partials(shard[..., : place.columns], torch.where(inside, columns, 0), entropy)
    else:
        top = torch.full_like(targets, -torch.inf, dtype=torch.promote_types(shard.dtype, torch.float32))
        parts = Partials(top, torch.full_like(targets, WIDEST - place.start), top, top, top if entropy else None)
    blank = parts.top == -torch.inf  # no harm to the other shards: its terms are 0
    return Partials(
        parts.top,
        parts.argmax + place.start,
        torch.where(inside & ~blank, parts.gap, torch.inf),
        torch.where(blank, 0.0, parts.rest),
        None if parts.weighted is None else torch.where(blank, 0.0, parts.weighted),
    )


def _packed(parts: Partials, claims: Tensor) -> Tensor:
    columns = [parts.top, parts.gap.float(), parts.rest.float(), parts.argmax.int(), claims.int()]
    if parts.weighted is not None:
        columns.append(parts.weighted.float())
    return torch.cat([column.view(torch.int32) for column in columns])


def _gathered(words: Tensor, place: Place) -> Tensor:
    """Return every rank's words, [R, …]: the one collective."""
    ranks = len(place.ranks)
    if ranks == 1 or not words.numel():
        return words.unsqueeze(0)
    every = words.new_empty(ranks * words.numel())
    # Newer torch calls it all_gather_single, and warns of the older name.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(every, words, group=place.group)
    return every.view(ranks, -1)


def _unpacked(words: Tensor, like: Partials) -> tuple[Partials, Tensor]:
    """Return the partials of all ranks, each [R, N], and their claims."""
    count, wide = like.top.numel(), like.top.dtype
    of_top = count * wide.itemsize // words.dtype.itemsize
    top, gap, rest, argmax, claims, weighted = words.split_with_sizes(
        [of_top, count, count, count, count, words.shape[1] - of_top - 4 * count], dim=1
    )

    def real(part: Tensor) -> Tensor:
        return part.view(torch.float32).to(wide)

    spread = None if like.weighted is None else real(weighted)
    return Partials(top.contiguous().view(wide), argmax.long(), real(gap), real(rest), spread), claims


def _merged(parts: Partials, agreed: Tensor) -> Partials:
    """Merge [R, N] to [N]. The rank that holds the largest logit leaves its own term out of the sum, the others add theirs.

    NaN and +inf, and a row of −inf alone, make NaN, as they do in whole rows.
    """
    top = parts.top.amax(0)
    largest = (parts.top == top) | parts.top.isnan()
    argmax = torch.where(largest, parts.argmax, WIDEST).amin(0)  # the lowest id wins a tie
    away = parts.top - top
    scale = away.exp()
    others = (parts.argmax != argmax).to(scale.dtype)
    weighted = None
    if parts.weighted is not None:
        # Σ (x − top)·exp(x − top) from sums about another maximum; 0·(−inf) counts as 0.
        moved = torch.where(away == -torch.inf, 0.0, away) * (1 + parts.rest)
        weighted = (scale * (parts.weighted + moved)).sum(0)
    rest = (scale * (parts.rest + others)).sum(0)
    return Partials(top, argmax, (parts.gap - away).amin(0), torch.where(agreed, rest, torch.nan), weighted)
