"""``rename_gap``: measure what other names for the same variables cost a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pplmon.measure.tokens import token_stats
from pplmon.monitor.probes.forward import Forward, device_of, evaluating, logits_of
from pplmon.monitor.probes.renaming import Cut, exchanged, renamed_text


@dataclass(frozen=True)
class RenameGapPart:
    """Tokens of one kind, in the text as it is and with other names.

    Attributes:
        tokens: how many are scored in the text as it is.
        renamed_tokens: with other names; another count where a name is cut into more or fewer tokens.
        cross_entropy: their mean nll in the text as it is, in nats per token; NaN of none.
        renamed_cross_entropy: the same with other names.
        nats: the sum of their nll in the text as it is.
        renamed_nats: the same with other names.
    """

    tokens: int
    renamed_tokens: int
    nats: float
    renamed_nats: float

    @property
    def cross_entropy(self) -> float:
        """Mean nll in the text as it is, in nats per token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def renamed_cross_entropy(self) -> float:
        """Mean nll with other names, in nats per token."""
        return self.renamed_nats / self.renamed_tokens if self.renamed_tokens else math.nan

    @property
    def gap(self) -> float:
        """Return what other names cost: renamed_cross_entropy − cross_entropy, in nats per token."""
        return self.renamed_cross_entropy - self.cross_entropy


@dataclass(frozen=True)
class RenameGap:
    """The cost of other names, apart for the names themselves and for everything else.

    Attributes:
        names: the tokens of the renamed names.
        structure: all other tokens, which the renaming leaves as they are.
        renamed: the new name of each old one (ids where ids were given).
    """

    names: RenameGapPart
    structure: RenameGapPart
    renamed: Mapping[Any, Any]

    def __str__(self) -> str:
        """Return one line for each of the two."""
        return "\n".join(
            f"{title}: {part.cross_entropy:.3f} → {part.renamed_cross_entropy:.3f} nats per token ({part.gap:+.3f}), "
            f"{part.tokens} tokens"
            for title, part in (("renamed names", self.names), ("everything else", self.structure))
        )


def rename_gap(
    model: nn.Module,
    text_or_ids: str | Tensor,
    rename: Mapping[str, str] | Mapping[int, int] | None = None,
    tokenizer: Any = None,
    forward: Forward | None = None,
    seed: int = 0,
) -> RenameGap:
    """Score a text twice, as it is and with its variables renamed consistently, and return what the other names cost.

    A renamed program is as right as it was. What it costs more on its *names* is a preference for certain words. What it costs
    more on *everything else* is what matters: there a model that follows the structure pays nothing.

    Args:
        model: logits at t predict the id at t+1.
        text_or_ids: a text, or ids [T] or [B, T].
        rename: old name -> new name, for a text (whole words, wherever they stand); old id -> new id, for ids. A new name must not
            be in the text already. ``None``: names of one token that the text binds as Python (variables, arguments,
            functions) are exchanged for other names of one token.
        tokenizer: needed for a text: as ``bytes_per_token`` takes it, and with ``encode``.
        forward: ``forward(model, ids [B, T]) -> logits [B, T, V]``; ``None`` calls the model with ids alone.
        seed: of the choice of new names.

    The first token of each row has no prediction and is not scored.

    Raises:
        TypeError, ValueError: arguments that do not go together, names that are not there, or a new name that is taken.
    """
    if isinstance(text_or_ids, str):
        if tokenizer is None:
            raise TypeError("a text needs tokenizer=, to be cut into ids; or give ids, and rename={old id: new id}")
        before, after, names = renamed_text(text_or_ids, rename, tokenizer, seed)
    else:
        before, after, names = exchanged(text_or_ids, rename)
    with evaluating(model):
        (nll, named), (renamed_nll, renamed_named) = (_scored(model, cut, forward) for cut in (before, after))
    return RenameGap(
        _part(nll[named], renamed_nll[renamed_named]), _part(nll[~named], renamed_nll[~renamed_named]), names
    )


def _scored(model: nn.Module, cut: Cut, forward: Forward | None) -> tuple[Tensor, Tensor]:
    """Return the nll of each predicted token, and whether it is of a renamed name, both [N]."""
    ids = cut.ids.to(device_of(model))
    stats = token_stats(logits_of(model, ids, forward), ids, ignore_index=None, shift=True)
    return stats.nll[stats.scored].double().cpu(), cut.named[:, 1:].flatten()


def _part(nll: Tensor, renamed_nll: Tensor) -> RenameGapPart:
    return RenameGapPart(len(nll), len(renamed_nll), float(nll.sum()), float(renamed_nll.sum()))
