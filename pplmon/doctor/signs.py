"""Signs that a batch is not as it should be, as counts on the device: of its targets, its ids and its logits.

Shapes: B sequences, T positions, V vocabulary. Nothing here waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pplmon.doctor.alignment import SHIFTS, Tokens, moved
from pplmon.doctor.overwritten import evidence
from pplmon.doctor.rows import Rows
from pplmon.measure.tokens import token_stats


def of_targets(
    tokens: Tokens, vocab: int, input_ids: Tensor | None, attention_mask: Tensor | None
) -> dict[str, Tensor]:
    """Count targets that are none, one id that stands for many, padding among them, and full rows without any."""
    targets, told = tokens.targets, tokens.told
    negative, beyond = (targets < 0) & ~tokens.ignored, (targets >= vocab) & ~tokens.ignored
    kept = told & ~tokens.padding
    seen = torch.zeros(vocab, dtype=torch.int64, device=targets.device)
    seen = seen.scatter_add(0, tokens.full.reshape(-1), kept.reshape(-1).to(torch.int64))
    padded = tokens.padding & told
    begun = told.cumsum(1) > 0
    return {
        "told": told.sum(),
        "negative": negative.sum(),
        "a_negative": torch.where(negative, targets, -(2**31)).amax(),
        "beyond": beyond.sum(),
        "largest": targets.amax(),
        "unpadded": kept.sum(),
        "text": tokens.text.sum(),
        "opposite": tokens.opposite.sum(),
        "common_id": seen.argmax(),
        "common": seen.amax(),
        # The first padding of a row may be its end-of-sequence, which is learnt.
        "padding_scored": (padded & moved(padded, -1, fill=False)).sum(),
        "inner": (tokens.ignored & ~tokens.padding & begun & (told.flip(1).cumsum(1) > 0).flip(1)).sum(),
        "padding_elsewhere": tokens.ends.elsewhere,
        "padding_rows": tokens.ends.rows,
        "padding_by_mask": tokens.ends.by_mask,
        "truncated_rows": (_full(tokens, input_ids, attention_mask) & ~told.any(1)).sum(),
    }


def of_ids(tokens: Tokens, logits: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
    """Count where targets are the inputs, or are the inputs under other numbers; and the loss of the inputs as targets."""
    assert tokens.matches is not None
    vocab = logits.shape[-1]
    renumbered = [_renumbered(tokens, moved(input_ids, shift, fill=-1), vocab) for shift in SHIFTS]
    following = moved(input_ids, 1, fill=-1)
    mask = (following >= 0) & (following < vocab) & ~moved(tokens.padding, 1, fill=True)
    own = token_stats(logits, following, ignore_index=None, mask=mask)
    valid = own.scored & own.nll.isfinite()
    return {
        "equal": tokens.matches.equal,
        "compared": tokens.matches.compared,
        "settled": tokens.matches.settled,
        "renumbered": torch.stack(renumbered),
        "own_nll": torch.where(valid, own.nll, 0.0).sum(),
        "own_tokens": valid.sum(),
    }


def of_logits(logits: Tensor, tokens: Tokens, shift: int, rows: Rows) -> dict[str, Tensor]:
    """Count what shows that logits are none, targets whose logit is −inf, and the size of the numbers."""
    wanted = moved(tokens.told, shift, fill=False)
    full = moved(tokens.full, shift, fill=0)
    at_target = logits.gather(-1, full.unsqueeze(-1)).squeeze(-1)
    finite = rows.lse.isfinite()
    return {
        "scored": wanted.sum(),
        "minus_inf": (wanted & torch.isneginf(at_target)).sum(),
        "looks": evidence(logits, torch.where(wanted, full, -1), None, shift=False),
        "lse": torch.where(finite, rows.lse.abs(), 0.0).sum() / finite.sum().clamp_min(1),
        "size": rows.size.mean(),
    }


def _full(tokens: Tokens, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
    """Return [B] bool: the row is known to have no padding, by its mask, or by ids that end in two different ones."""
    if attention_mask is not None:
        return (attention_mask != 0).all(1)
    if input_ids is None:
        return torch.zeros_like(tokens.told[:, 0])
    return ~tokens.padding.any(1) & (input_ids[:, -1] != input_ids[:, -2:][:, 0])


def _renumbered(tokens: Tokens, behind: Tensor, vocab: int) -> Tensor:
    """Return [3]: tokens whose id always stands for one target and the other way round, tokens compared, distinct ids."""
    both = (tokens.told & (behind >= 0) & (behind < vocab)).reshape(-1)
    a, b = torch.where(both, behind.reshape(-1), vocab), torch.where(both, tokens.full.reshape(-1), vocab)
    steady = both & _one_to_one(a, b, vocab) & _one_to_one(b, a, vocab)
    seen = torch.zeros(vocab + 1, dtype=torch.int64, device=a.device).scatter(0, a, 1)
    return torch.stack([steady.sum(), both.sum(), seen[:vocab].sum()])


def _one_to_one(a: Tensor, b: Tensor, vocab: int) -> Tensor:
    """Return [N] bool: the id in ``a`` has one and the same partner in ``b`` wherever it stands."""
    least = torch.full((vocab + 1,), vocab, dtype=torch.int64, device=a.device).scatter_reduce(0, a, b, "amin")
    most = torch.full((vocab + 1,), -1, dtype=torch.int64, device=a.device).scatter_reduce(0, a, b, "amax")
    return (least == most).gather(0, a)
