"""``Groups``: measure each domain, source, role or language by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pplmon.extras.base import Extra
from pplmon.extras.parts import SUMS, check_names, maxima_of_parts, parts_of, sums_of_parts
from pplmon.extras.sequences import by_row, given
from pplmon.measure.tokens import TokenStats
from pplmon.report.checks import at_least
from pplmon.report.formulas import exp
from pplmon.report.numbers import Number, Value


class Groups(Extra):
    """An extra that measures groups of tokens apart: ``tally.update(…, group_ids=ids)``.

    ``group_ids`` are integers, [B, T] like the targets or [B], one for each row; id g is the group ``names[g]``, and a negative
    id is of no group. The callback takes them from the batch's key of that name.

    ``macro_perplexity`` is exp(mean of the groups' cross-entropies), each group counted once, however large; and
    ``worst_group_cross_entropy`` the largest of them. Both leave out groups of fewer than ``min_tokens`` tokens in the window,
    of which the noise would win, and are None where no group has so many.

    All are None where a batch came without ``group_ids``; accuracies, where ``correct`` is not known. NaN: there is no such
    token. A window with an id beyond the names has no numbers, and a warning says so.

    Args:
        names: the groups, in the order of their ids.
        min_tokens: tokens that a group needs to be compared with others.
    """

    declares = (
        Number("group/{name}/tokens", "count", "valid tokens of the group"),
        Number("group/{name}/cross_entropy", "nats per token", "Σ nll / tokens of the group", best="min"),
        Number("group/{name}/perplexity", "", "exp(cross_entropy) of the group", low=1.0, best="min"),
        Number("group/{name}/token_accuracy", "", "hits / tokens of the group", high=1.0, best="max"),
        Number("group/{name}/max_token_loss", "nats", "max nll over tokens of the group", best="max"),
        Number("macro_perplexity", "", "exp(mean over groups of their cross-entropy)", low=1.0, best="min"),
        Number("worst_group_cross_entropy", "nats per token", "max over groups of their cross-entropy", best="min"),
    )

    def __init__(self, names: Sequence[str], min_tokens: int = 256) -> None:
        self.names = check_names("Groups", names)
        self.min_tokens = at_least("min_tokens", min_tokens)
        self.size = 2 + len(self.names) * SUMS  # tokens without group_ids; without ``correct``; what ``parts`` sums
        self.maxima = 1 + len(self.names)  # the largest id; the largest loss of each group

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        """Return this batch's integers [size + maxima]."""
        tokens, count = valid.sum()[None], len(self.names)
        none = torch.zeros_like(tokens)
        ids = given("group_ids", stats, batch_data, or_by_row=True)
        if ids is None:
            return torch.cat([tokens, none.expand(self.size - 1), (none - 1).expand(self.maxima)])
        group = torch.where(valid, by_row(stats, ids).flatten(), -1)
        part = torch.where(group < count, group, -1)
        unsure = tokens if stats.correct is None else none
        largest = group.amax()[None].clamp_min(-1)
        sums, losses = sums_of_parts(stats, part, count), maxima_of_parts(stats, part, count)
        return torch.cat([none, unsure, sums, largest, losses])

    def numbers(self, integers: Sequence[int]) -> Mapping[str, Value]:
        """Return the numbers of each group, and the two over groups."""
        ungrouped, unsure, *sums = integers[: self.size]
        largest, *losses = integers[self.size :]
        if largest >= len(self.names):
            raise ValueError(
                f"group_ids hold {largest}, and the {len(self.names)} names of Groups are those of 0 to "
                f"{len(self.names) - 1}; name every group, and give tokens of none a negative id"
            )
        groups = dict(zip(self.names, parts_of(sums, losses)))
        found: dict[str, Value] = {}
        for name, part in groups.items():
            found[f"group/{name}/tokens"] = part.tokens
            found[f"group/{name}/cross_entropy"] = part.cross_entropy
            found[f"group/{name}/perplexity"] = exp(part.cross_entropy)
            found[f"group/{name}/token_accuracy"] = None if unsure else part.token_accuracy
            found[f"group/{name}/max_token_loss"] = part.max_token_loss
        large = [part.cross_entropy for part in groups.values() if part.tokens >= self.min_tokens]
        none = None if any(part.tokens for part in groups.values()) else math.nan
        found["macro_perplexity"] = exp(math.fsum(large) / len(large)) if large else none
        found["worst_group_cross_entropy"] = max(large, default=none)
        return dict.fromkeys(found) if ungrouped else found
