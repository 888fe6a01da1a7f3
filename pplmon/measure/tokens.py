"""Measure logits and targets: one row of ``TokenStats`` per token.

Shapes: B sequences, T positions, N = B·T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pplmon.measure import compiled, eager, vocab_parallel
from pplmon.measure.checks import check_known, check_logits, check_mask, check_targets, need_float
from pplmon.measure.outside_graphs import outside_graphs
from pplmon.measure.pick import check_kernel, pick
from pplmon.measure.triton import launch as triton
from pplmon.measure.vocab_parallel import VocabShard, held_rows, is_dtensor

__all__ = ["TokenStats", "VocabShard", "check_kernel", "held_rows", "is_dtensor", "shifted", "token_stats"]
_COLUMNS = ("nll", "correct", "top_probability", "predicted", "targets", "scored", "invalid", "entropy")
ROUNDING = 1e-3  # how far rounding may bring what is given beyond its range; what is passed by mistake lies far beyond


@dataclass(frozen=True, eq=False)
class TokenStats:
    """The measurements of each token, on the logits' device. Made by ``token_stats`` or ``from_losses``.

    With ``shift`` row t holds the target of column t+1; the last row of a sequence holds column 0, which is never scored.
    """

    nll: Tensor  # [N] float32 nats: >= 0; 0 where not scored; NaN or inf where non-finite
    correct: Tensor | None  # [N] bool: the argmax is the target
    top_probability: Tensor | None  # [N] float32: probability of the argmax
    predicted: Tensor | None  # [N] int64
    targets: Tensor  # [N] int64, as given (shifted)
    scored: Tensor  # [N] bool: not ignored, not masked, inside the vocabulary
    invalid: Tensor  # [N] bool: to be scored, but outside the vocabulary
    batch_shape: tuple[int, ...]  # (B, T) or (N,)
    vocab_size: int | None = None
    entropy: Tensor | None = None  # [N] float32 nats, when asked
    shift: bool = False
    shared_by: tuple[int, ...] = ()  # global ranks that each hold these stats, having measured parts of one vocabulary

    @classmethod
    @torch.no_grad()
    def from_losses(
        cls,
        nll: Tensor,
        targets: Tensor,
        correct: Tensor | None = None,
        top_probability: Tensor | None = None,
        predicted: Tensor | None = None,
        vocab_size: int | None = None,
        ignore_index: int | None = -100,
        mask: Tensor | None = None,
        entropy: Tensor | None = None,
    ) -> TokenStats:
        """Take losses that were computed elsewhere (a fused loss that never holds logits). All [B,T] or [N].

        Args:
            nll: −ln p(target) in nats, float. A value below −0.001 cannot be one and counts as NaN.
            targets: int ids. With ``vocab_size=None`` only negative ones are outside the vocabulary.
            correct: bool, or 0 and 1: whether the argmax is the target. Derived from ``predicted`` where that is given.
            top_probability: probability of the argmax, float.
            predicted: int, id of the argmax.
            vocab_size: V.
            ignore_index: targets of this value are not scored; ``None`` ignores nothing.
            mask: bool, True = scored.
            entropy: of each prediction, in nats, float. What is below −0.001 or above ln V cannot be one and counts as NaN.

        A token whose ``correct`` is neither 0 nor 1, or whose ``top_probability`` is not in [0, 1], was given something else
        by mistake: it counts as NaN.

        Raises:
            ValueError: shapes differ. TypeError: a dtype cannot hold what its argument means.
        """
        need_float("nll", nll, "−ln p(target) of each token")
        if nll.dim() not in (1, 2):
            raise ValueError(f"nll must be [B, T] or [N], one loss for each token, got shape {tuple(nll.shape)}")
        check_targets(targets, nll)
        known = {"correct": correct, "top_probability": top_probability, "predicted": predicted, "entropy": entropy}
        for name, value in known.items():
            check_known(name, value, nll)
        flat = targets.detach().reshape(-1).to(nll.device, torch.int64)
        scored, invalid = _scored(flat, check_mask(mask, targets), ignore_index, vocab_size)
        columns = {name: None if value is None else value.detach().reshape(-1) for name, value in known.items()}
        hits, top, best = columns["correct"], columns["top_probability"], columns["predicted"]
        losses = _nats(nll)
        if hits is None:
            hits = None if best is None else best == flat
        elif hits.dtype != torch.bool:
            losses, hits = torch.where((hits == 0) | (hits == 1), losses, torch.nan), hits != 0
        if top is not None:
            top = top.float()
            losses = torch.where((top >= -ROUNDING) & (top <= 1 + ROUNDING), losses, torch.nan)
        return cls(
            nll=torch.where(scored, losses, 0.0) + 0.0,  # + 0.0 makes −0.0, whose bits sort wrongly, 0.0
            correct=hits,
            top_probability=top,
            predicted=None if best is None else best.to(torch.int64),
            targets=flat,
            scored=scored,
            invalid=invalid,
            batch_shape=tuple(targets.shape),
            vocab_size=vocab_size,
            entropy=None if columns["entropy"] is None else _nats(columns["entropy"], vocab_size),
        )

    def rows(self, start: int, stop: int) -> TokenStats:
        """Return the sequences ``start`` to ``stop`` of [B, T]."""
        width = self.nll.numel() // max(self.batch_shape[0], 1)
        part = slice(start * width, stop * width)
        columns: dict[str, Any] = {name: getattr(self, name) for name in _COLUMNS}
        cut: dict[str, Any] = {name: None if value is None else value[part] for name, value in columns.items()}
        return replace(self, **cut, batch_shape=(stop - start, *self.batch_shape[1:]))

    @classmethod
    def join(cls, pieces: Sequence[TokenStats], shift: bool = False) -> TokenStats:
        """Put pieces [B, t] of one batch side by side along T (a head that is applied to chunks of positions)."""
        shapes = [p.batch_shape for p in pieces]
        length = sum(shape[-1] for shape in shapes)

        def cat(name: str) -> Tensor | None:
            parts = [getattr(p, name) for p in pieces]
            if any(part is None for part in parts):
                return None
            return torch.cat([part.view(shape) for part, shape in zip(parts, shapes)], dim=-1).reshape(-1)

        return cls(
            **{name: cat(name) for name in _COLUMNS},  # type: ignore[arg-type]
            batch_shape=(*shapes[0][:-1], length),
            vocab_size=pieces[0].vocab_size,
            shift=shift,
            shared_by=pieces[0].shared_by,
        )


@torch.no_grad()
@outside_graphs
def token_stats(
    logits: Tensor,
    targets: Tensor,
    ignore_index: int | None = -100,
    mask: Tensor | None = None,
    shift: bool = False,
    entropy: bool = False,
    kernel: str | None = None,
    vocab_shard: VocabShard | None = None,
) -> TokenStats:
    """Measure every token once: no graph, no host sync, no copy of the logits.

    Logits whose vocabulary is cut over ranks, a DTensor or with ``vocab_shard``, are not gathered: every rank measures its
    part in plain PyTorch, one collective of 20 bytes a token (24 with entropy) merges them, and each rank returns the same stats.

    Args:
        logits: [B, T, V] or [N, V], fp32, bf16, fp16 or fp64; −inf marks masked vocabulary. A DTensor may be ``Shard`` on V
            over one mesh dimension, and ``Shard(0)``, which gives each rank the stats of its own rows, or ``Replicate``.
        targets: [B, T] or [N] int ids, of the whole vocabulary on every rank.
        ignore_index: targets of this value are not scored; ``None`` ignores nothing.
        mask: [B, T] or [N] bool, True = scored. It belongs to the target.
        shift: logits at t predict the target at t+1. Moves the targets, never the logits; needs [B, T, V].
        entropy: also give the entropy of each prediction, in nats.
        kernel: its name; ``None`` takes the fastest that runs on the logits' device and needs no compiler.
            "compiled" (torch.compile) takes some seconds at first; below V = 8192 or 2^23 logits, where it would be slower,
            "eager" measures instead, and with a warning where nothing can be compiled.
        vocab_shard: which part of the vocabulary plain logits hold; every rank of its group makes the same call.

    Raises:
        ValueError: shapes or layouts that do not fit each other. TypeError: integer logits, non-integer targets, a mask not bool.
    """
    logits, targets, mask, place = vocab_parallel.local(logits, targets, mask, vocab_shard)
    check_logits(logits, targets, place is not None)
    vocab_size = logits.shape[-1] if place is None else place.size
    chosen = pick(kernel, logits, is_shard=place is not None)
    mask = check_mask(mask, targets)
    if shift and logits.dim() == 2:
        raise ValueError(
            f"shift=True needs logits [B, T, V], got [N, V] {tuple(logits.shape)}: a flat batch has no next column; "
            "shift the targets yourself and pass shift=False"
        )
    if chosen == "triton":  # does the work on the targets, too
        required = kernel is not None
        columns = triton.measure(logits.detach(), targets, mask, ignore_index, shift, entropy, required)
        if columns is not None:
            shape = tuple(targets.shape)
            return TokenStats(**columns._asdict(), batch_shape=shape, vocab_size=logits.shape[-1], shift=shift)
    if shift:
        targets, mask = shifted(targets, mask)
    flat = targets.detach().reshape(-1).to(logits.device, torch.int64)
    scored, invalid = _scored(flat, mask, ignore_index, vocab_size)
    # Unscored rows are measured at index 0: a gather needs an index, and selecting rows would wait for the device.
    wanted = torch.where(scored, flat, 0)
    if place is None:
        measured = (compiled if chosen == "compiled" else eager).measure(logits.detach(), wanted, entropy)
    else:
        measured = vocab_parallel.measure(logits.detach(), wanted, entropy, place)
    return TokenStats(
        nll=torch.where(scored, measured.nll, 0.0),
        correct=scored & (measured.predicted == flat),
        top_probability=measured.top_probability,
        predicted=measured.predicted,
        targets=flat,
        scored=scored,
        invalid=invalid,
        batch_shape=tuple(targets.shape),
        vocab_size=vocab_size,
        entropy=measured.entropy,
        shift=shift,
        shared_by=() if place is None else place.ranks,
    )


def shifted(targets: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Move targets and mask [B, T] one column to the left; what wraps around into the last column is not scored."""
    last = torch.arange(targets.shape[1], device=targets.device) == targets.shape[1] - 1
    kept = (~last).expand(targets.shape)
    return targets.roll(-1, dims=1), kept if mask is None else mask.to(targets.device).roll(-1, dims=1) & kept


def _nats(given: Tensor, vocab_size: int | None = None) -> Tensor:
    """Return [N] float32, where rounding below 0 is 0 and what cannot be nats, or an entropy of V ids, is NaN."""
    flat = given.detach().reshape(-1).to(torch.float32)
    sick = flat < -ROUNDING
    if vocab_size is not None:
        sick = sick | (flat > math.log(vocab_size) * (1 + ROUNDING) + ROUNDING)
    return torch.where(sick, torch.nan, flat.clamp_min(0.0))


def _scored(
    targets: Tensor, mask: Tensor | None, ignore_index: int | None, vocab_size: int | None
) -> tuple[Tensor, Tensor]:
    wanted = torch.ones_like(targets, dtype=torch.bool) if ignore_index is None else targets != ignore_index
    if mask is not None:
        wanted &= mask.reshape(-1).to(targets.device)
    scored = wanted & (targets >= 0)
    if vocab_size is not None:
        scored &= targets < vocab_size
    return scored, wanted ^ scored
