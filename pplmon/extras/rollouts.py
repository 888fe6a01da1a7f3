"""``Rollouts``: count how many tokens in a row greedy generation would get right, without generating."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pplmon.extras.base import Extra
from pplmon.extras.sequences import places_of
from pplmon.measure.tokens import TokenStats
from pplmon.report.numbers import Number

DOUBLINGS = 5
HORIZONS = tuple(2**power for power in range(DOUBLINGS))


class Rollouts(Extra):
    """An extra that tells how long greedy generation from the correct prefix would stay correct, without generating.

    Greedy generation gives the next h targets exactly where the argmax hits h times in a row on the correct prefix, for until
    the first miss what it has generated *is* the correct prefix.

    ``rollout_match_h``: the share of the starts that are followed by h valid targets in their sequence, of which all h are
    hit. ``rollout_match_1`` is ``token_accuracy``. ``mean_hit_run``: the mean over all starts of the hits in a row from there;
    a run also ends at the end of its sequence and at a target that is not scored, so in short sequences it is a lower bound.

    The numbers are None where a batch has no sequences ([N, V] without ``document_ids``), and where ``correct`` is not known.
    NaN: no start is followed by so many targets.
    """

    declares = (
        *(
            Number(f"rollout_match_{h}", "", "starts whose next h targets are all hit / starts", high=1.0, best="max")
            for h in HORIZONS
        ),
        Number("mean_hit_run", "tokens", "mean over starts of the hits in a row from there", best="max"),
    )
    size = (
        3 + 2 * DOUBLINGS
    )  # tokens, those without a sequence or ``correct``, Σ hits in a row; starts; starts that match
    needs_sequences = True

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        """Return this batch's integers [size]."""
        tokens, places = valid.sum(), places_of(stats, batch_data)
        if places is None or stats.correct is None:
            return torch.cat([torch.stack([tokens, tokens]), stats.targets.new_zeros(self.size - 2)])
        begins = places.column == places.first  # where targets are shifted, the row before it is not valid
        follow, hit = (_run_lengths(x.view(begins.shape), begins) for x in (valid, valid & stats.correct))
        # There are as many starts that h tokens follow as there are tokens that end a run of h or more.
        horizons = 1 << torch.arange(DOUBLINGS, device=tokens.device)
        starts, matches = ((run.view(-1, 1) >= horizons).sum(0) for run in (follow, hit))
        return torch.cat([torch.stack([tokens, tokens.new_zeros(()), hit.sum()]), starts, matches])

    def numbers(self, integers: Sequence[int]) -> Mapping[str, float | None]:
        """Return a share for each horizon, and the mean run."""
        tokens, unknown, hits = integers[:3]
        if unknown:
            return dict.fromkeys(number.name for number in self.declares)
        starts, matches = integers[3 : 3 + DOUBLINGS], integers[3 + DOUBLINGS :]
        shares = {
            f"rollout_match_{h}": match / start if start else math.nan
            for h, start, match in zip(HORIZONS, starts, matches)
        }
        return {**shares, "mean_hit_run": hits / tokens if tokens else math.nan}


def _run_lengths(kept: Tensor, begins: Tensor) -> Tensor:
    """Return the length of the run of kept places that ends at each place, [R, T]; no run reaches back over a beginning."""
    index = torch.arange(kept.shape[1], device=kept.device)
    broken = torch.where(kept, torch.where(begins, index - 1, -1), index)
    return index - broken.cummax(-1).values
