"""Per-token losses of every candidate, and their sums as one small tensor: read at once, or copied and read a step later.

Shapes: B sequences, T positions, V vocabulary, S shifts, C candidates of a shift. Logits are read some rows at a time, and
never kept or copied whole. Nothing here waits for the device but ``Measured.facts``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pplmon.doctor import signs
from pplmon.doctor.alignment import SHIFTS, Tokens, moved, tokens_of
from pplmon.doctor.facts import Facts
from pplmon.doctor.rows import Rows, rows_of
from pplmon.measure.tokens import TokenStats, token_stats


@dataclass(frozen=True, eq=False)
class Measured:
    """The measurements that are kept of one batch: a loss for each token and shift, and no logits."""

    tokens: Tokens
    stats: dict[int, TokenStats]  # by shift, of all targets that may be scored
    shift: int  # what pplmon was told
    vocab: int
    eps: float  # of the logits' dtype
    values: Tensor  # [n], on the device: what ``facts`` reads
    sizes: dict[str, int]  # of its parts

    def facts(self, values: list[float] | None = None) -> Facts:
        """Return what was measured as plain numbers. ``values``: those of ``self.values``, where they are on the host already."""
        left = iter(self.values.tolist() if values is None else values)
        parts = {name: [next(left) for _ in range(size)] for name, size in self.sizes.items()}
        rows, columns = self.tokens.targets.shape
        return Facts.of(parts, rows, columns, self.vocab, self.shift, self.eps)

    def losses(self, shift: int) -> Tensor:
        """Return the losses [B, T] float32 of the targets, in their own columns, under one shift."""
        return moved(self.stats[shift].nll.view(self.tokens.targets.shape), -shift, fill=0)


@torch.no_grad()
def measure(
    logits: Tensor,
    targets: Tensor,
    shift: bool = False,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    ignore_index: int | None = -100,
    mask: Tensor | None = None,
) -> Measured:
    """Measure logits [B, T, V] or [N, V] against targets [B, T] or [N] under every shift; flat ones are one row.

    ``shift`` is what pplmon is told. All others have the targets' shape: ids and attention mask are what a decoder-only model
    was given, ``mask`` is True where a target is scored.
    """
    logits = logits.detach()
    if logits.dim() == 2:
        logits = logits.unsqueeze(0)
    vocab = logits.shape[-1]
    targets = _like(targets, logits)
    ids = None if input_ids is None else _like(input_ids, logits)
    seen = None if attention_mask is None else _like(attention_mask, logits)
    scored = None if mask is None else _like(mask, logits) != 0
    tokens = tokens_of(targets, vocab, ignore_index, ids, seen, scored, int(shift))
    stats = {s: _under(logits, tokens, s) for s in SHIFTS}
    rows = rows_of(logits, moved(tokens.told, int(shift), fill=False))
    masks = tokens.masks()
    wide = torch.float32 if logits.device.type == "mps" else torch.float64  # which MPS does not have
    parts = {
        "sums": torch.stack([_sums(moved(masks, s, fill=False), stats[s], rows, wide) for s in SHIFTS]),
        "cuts": rows.cuts,
        **signs.of_targets(tokens, vocab, ids, seen),
        **signs.of_logits(logits, tokens, int(shift), rows),
        **({} if ids is None else signs.of_ids(tokens, logits, ids)),
    }
    values = torch.cat([part.reshape(-1).to(wide) for part in parts.values()])
    sizes = {name: part.numel() for name, part in parts.items()}
    return Measured(tokens, stats, int(shift), vocab, torch.finfo(logits.dtype).eps, values, sizes)


def _like(x: Tensor, logits: Tensor) -> Tensor:
    return x.detach().to(logits.device, torch.int64).view(logits.shape[:-1])


def _under(logits: Tensor, tokens: Tokens, shift: int) -> TokenStats:
    mask = moved(tokens.has, shift, fill=False)
    return token_stats(logits, moved(tokens.full, shift, fill=0), ignore_index=None, mask=mask)


def _sums(masks: Tensor, stats: TokenStats, rows: Rows, wide: torch.dtype) -> Tensor:
    """Return [C, 8] of the candidates of one shift: ``facts.Sums``, over what is finite."""
    nll = stats.nll.view(rows.lse.shape)
    masks = masks & stats.scored.view(rows.lse.shape)
    finite = masks & nll.isfinite()
    # Different sets of tokens have different sums of roots: equal ones are told by it.
    place = torch.arange(2, nll.numel() + 2, device=nll.device, dtype=wide).sqrt().view(nll.shape)
    columns = [torch.ones_like(nll), nll, rows.uniform, rows.lse**2, place]
    per_row = torch.stack([torch.where(finite, c.to(wide), 0.0).sum(-1) for c in columns])  # [5, C, B]
    count = per_row[0]
    means = (per_row[1] / count.clamp_min(1)).sum(-1)
    return torch.stack(
        [*per_row.sum(-1), means, (count > 0).sum(-1).to(wide), (masks & ~finite).sum((1, 2)).to(wide)], dim=-1
    )
