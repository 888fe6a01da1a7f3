"""Greedy generation by whole forwards, iterated until nothing changes, with the losses of the correct tokens beside it.

One forward tells the greedy token at every position, given the tokens before it as they stand. Writing all of them down and
running the model again settles at least one token more each time, often several: what no longer changes is what
generation token by token writes.

Shapes: B sequences, L ids in each, H tokens of the continuation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pplmon.measure.tokens import TokenStats, token_stats


class Continued(NamedTuple):
    """The continuations of one batch, [B, H] each.

    Attributes:
        forced: the correct tokens' losses, given the correct tokens before them.
        logits: of the model reading what it generated, [B, H, V].
        generated: the greedy token at each position, given those generated before it.
        settled: True where all tokens before are generated ones for good; the others are not to be counted.
        forwards: how often the model was run.
    """

    forced: TokenStats
    logits: Tensor
    generated: Tensor
    settled: Tensor
    forwards: int


def continue_greedily(
    forward: Callable[[Tensor], Tensor],
    ids: Tensor,
    starts: Tensor,
    horizon: int,
    rounds: int,
    unfinished: Callable[[bool], bool] = bool,
    guess: Callable[[Tensor], Tensor] | None = None,
) -> Continued:
    """Generate H tokens of each sequence greedily, and measure the correct ones on the way.

    Args:
        forward: ids [B, L] -> logits [B, L, V].
        ids: [B, L], the prompts with their correct continuations.
        starts: [B], the column of each continuation's first token, at least 1.
        horizon: H.
        rounds: the most forwards, at least 1.
        unfinished: called after each forward with whether tokens may still change; returns whether to go on.
        guess: correct ids [B, L] -> [B, H], a continuation to begin with that the forwards then check; ``None`` begins with
            the correct one.
    """
    columns = starts[:, None] - 1 + torch.arange(horizon, device=ids.device)
    correct = ids.gather(1, columns + 1)
    place = torch.arange(horizon, device=ids.device)
    forced: TokenStats | None = None
    forwards = 0
    while True:
        logits = _picked(forward(ids), columns)
        forwards += 1
        stats = token_stats(logits, correct, ignore_index=None)
        assert stats.predicted is not None
        generated = stats.predicted.view(correct.shape)
        written = ids.gather(1, columns + 1)
        kept = (generated == written).long().cumprod(1).sum(1, keepdim=True)  # tokens that are generated ones for good
        if not unfinished(bool((kept < horizon - 1).any())) or forwards == rounds:
            return Continued(stats if forced is None else forced, logits, generated, place <= kept, forwards)
        if forced is None:
            forced = stats
            first = generated if guess is None else guess(ids)
        else:
            first = generated
        ids = ids.scatter(1, columns + 1, first)


def _picked(logits: Tensor, columns: Tensor) -> Tensor:
    """Return the logits [B, L, V] at columns [B, H]."""
    return logits.gather(1, columns[:, :, None].expand(-1, -1, logits.shape[-1]))
