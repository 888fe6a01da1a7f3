"""``TokenClasses``: split each loss into the cost of the kind of token, and the cost of the token within its kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pplmon.extras import kinds
from pplmon.extras.base import Extra
from pplmon.extras.nats import mean, upper_and_lower
from pplmon.extras.parts import SUMS, check_names, maxima_of_parts, parts_of, sums_of_parts
from pplmon.extras.vocabulary import bytes_of_ids
from pplmon.measure import eager
from pplmon.measure.tokens import TokenStats
from pplmon.report.formulas import exp
from pplmon.report.numbers import Number, Value

if TYPE_CHECKING:
    from typing_extensions import Self

BUFFERS = 2  # the logits in float32, and which of them are of the class
HEADER = 7


class TokenClasses(Extra):
    """An extra that splits each loss in two: the cost of the kind of the next token, and the cost of the token given its kind.

    With the vocabulary cut into classes, p(target) = p(its class) · p(target | its class), so
    nll = nll_class + nll_within, and perplexity = ``structure_perplexity`` · ``content_perplexity``:
    nll_class = −ln Σ p over the class of the target. A variable that is renamed costs within its class; a wrong kind of token
    costs in its class.

    ``class_accuracy``: the argmax has the class of the target. And for each class, of the tokens whose target is in it:
    ``class/{name}/tokens``, …

    It takes one more pass over the logits, in chunks. The two perplexities are None where there were none to read: for
    ``TokenStats``, and where ranks hold parts of the vocabulary. They and ``class_accuracy`` are None where a target has no class
    (it lies beyond ``ids``); accuracies, where the argmax is not known. NaN: there is no such token.

    Args:
        ids: [V] ints, the class of each id, an index into ``names``. Logits beyond it are of no class.
        names: the classes.
    """

    declares = (
        Number("structure_perplexity", "", "exp(mean of −ln p(class of the target))", low=1.0, best="min"),
        Number("content_perplexity", "", "exp(mean of −ln p(target | its class))", low=1.0, best="min"),
        Number("class_accuracy", "", "tokens whose argmax has the class of the target / tokens", high=1.0, best="max"),
        Number("class/{name}/tokens", "count", "valid tokens whose target is in the class"),
        Number("class/{name}/cross_entropy", "nats per token", "Σ nll / tokens of the class", best="min"),
        Number("class/{name}/token_accuracy", "", "hits / tokens of the class", high=1.0, best="max"),
        Number("class/{name}/max_token_loss", "nats", "max nll over tokens of the class", best="max"),
    )

    def __init__(self, ids: Sequence[int] | Tensor, names: Sequence[str]) -> None:
        self.names = check_names("TokenClasses", names)
        self._ids = _check_ids(ids, len(self.names))
        self._tables: dict[Any, Tensor] = {}  # where batches are, and as long as their vocabulary
        # Tokens without a class; without logits; without ``correct``; without an argmax; whose argmax has the right class;
        # then Σ nll_within as two, and what ``parts`` sums of each class.
        self.size = HEADER + len(self.names) * SUMS
        self.maxima = len(self.names)  # the largest loss of each

    @classmethod
    def code(cls, tokenizer: Any) -> Self:
        """Return classes for source code: name, keyword, number, operator, space, other, special.

        Args:
            tokenizer: of Hugging Face, a tiktoken ``Encoding``, a sentencepiece processor, ``bytes`` itself for models of
                bytes, or a list with the bytes of each id (``None`` of a special one).
        """
        return cls(*kinds.sort(bytes_of_ids(tokenizer), kinds.CODE, kinds.kind_of_code))

    @classmethod
    def text(cls, tokenizer: Any) -> Self:
        """Return classes for prose: word, capitalised, number, punctuation, space, other, special; see ``code``."""
        return cls(*kinds.sort(bytes_of_ids(tokenizer), kinds.TEXT, kinds.kind_of_text))

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        """Return this batch's integers [size + maxima]."""
        tokens, count = valid.sum(), len(self.names)
        none = torch.zeros_like(tokens)
        table = self._table(stats.targets.device, len(self._ids) if logits is None else logits.shape[-1])
        wanted = torch.where(valid, _looked_up(table, stats.targets), -1)
        known = wanted >= 0
        predicted = none if stats.predicted is None else (known & (_looked_up(table, stats.predicted) == wanted)).sum()
        within = upper_and_lower(
            torch.zeros_like(stats.nll) if logits is None else self._within(stats, known, logits, table)
        )
        header = [
            tokens - known.sum(),
            tokens if logits is None else none,
            tokens if stats.correct is None else none,
            tokens if stats.predicted is None else none,
            predicted,
            *(part.sum() for part in within),
        ]
        part = wanted.to(torch.int64)
        return torch.cat([torch.stack(header), sums_of_parts(stats, part, count), maxima_of_parts(stats, part, count)])

    def numbers(self, integers: Sequence[int]) -> Mapping[str, Value]:
        """Return the two perplexities, the accuracy, and four numbers of each class."""
        unclassed, unread, unsure, unpredicted, right, upper, lower, *sums = integers[: self.size]
        parts = parts_of(sums, integers[self.size :])
        tokens = sum(part.tokens for part in parts)
        content = mean(upper, lower, tokens)
        whole = mean(sum(part.upper for part in parts), sum(part.lower for part in parts), tokens)
        found: dict[str, Value] = {
            "structure_perplexity": None if unclassed or unread else exp(whole - content),
            "content_perplexity": None if unclassed or unread else exp(content),
            "class_accuracy": None if unclassed or unpredicted else right / tokens if tokens else math.nan,
        }
        for name, part in zip(self.names, parts):
            found[f"class/{name}/tokens"] = part.tokens
            found[f"class/{name}/cross_entropy"] = part.cross_entropy
            found[f"class/{name}/token_accuracy"] = None if unsure else part.token_accuracy
            found[f"class/{name}/max_token_loss"] = part.max_token_loss
        return found

    def _table(self, device: torch.device, vocab: int) -> Tensor:
        """Return the class of each of ``vocab`` ids, [V] int32, on a device; −1 of those without one."""
        if (device, vocab) not in self._tables:
            known = self._ids[:vocab]
            self._tables[device, vocab] = torch.nn.functional.pad(known, (0, vocab - len(known)), value=-1).to(device)
        return self._tables[device, vocab]

    def _within(self, stats: TokenStats, known: Tensor, logits: Tensor, table: Tensor) -> Tensor:
        """Return −ln p(target | its class) of each token [N], 0 where it is not known: one more pass over the logits."""
        count, vocab = len(known), logits.shape[-1]
        height = eager.rows_together(count, vocab, logits.device, BUFFERS)
        size = eager.whole_vectors(max(2, min(height, count)) * vocab)
        wide = logits.dtype if logits.dtype == torch.float64 else torch.float32
        scratch = torch.empty(size, dtype=wide, device=logits.device)  # the same for all chunks
        targets, start, pieces = torch.where(known, stats.targets, 0), 0, []
        for chunk in eager.chunks(logits, height):
            rows = chunk.numel() // vocab
            pieces.append(_of_chunk(chunk, targets[start : start + rows, None], table, scratch))
            start += rows
        within = torch.where(known, torch.cat(pieces).float(), 0.0)
        return within.clamp_min(0.0).minimum(torch.where(known, stats.nll, 0.0))


def _of_chunk(chunk: Tensor, targets: Tensor, table: Tensor, scratch: Tensor) -> Tensor:
    """Return ln Σ exp(x_j − x_target) over the class of each target [n, 1], [n]: exact next to 0 and at hundreds of nats."""
    count, vocab = chunk.numel(), chunk.shape[-1]
    if count == vocab:  # torch sums a lone row over several threads, which gives other bits
        return _of_chunk(chunk.reshape(1, vocab).expand(2, vocab), targets.expand(2, 1), table, scratch)[:1]
    flat = scratch[: eager.whole_vectors(count)]
    x = flat[:count].view(count // vocab, vocab)
    x.view(chunk.shape).copy_(chunk)
    x.sub_(x.gather(1, targets)).masked_fill_(table != table[targets], eager.LOWEST)
    top = x.amax(-1, keepdim=True)
    x.sub_(top)
    flat.mul_(eager.LOG2_E)  # on a CPU exp2 takes a tenth of the time of exp, which is slow where it gives 0
    return torch.exp2(flat, out=flat)[:count].view(x.shape).sum(-1).log().add_(top.squeeze(1))


def _looked_up(table: Tensor, ids: Tensor) -> Tensor:
    """Return the classes of ids [N], −1 of those beyond the table."""
    inside = (ids >= 0) & (ids < len(table))
    return torch.where(inside, table[torch.where(inside, ids, 0)], -1)


def _check_ids(ids: Any, classes: int) -> Tensor:
    table = torch.as_tensor(ids).cpu()
    if table.dim() != 1 or table.is_floating_point() or not len(table):
        raise ValueError(
            f"ids must be [V] integers, the class of each id of the vocabulary; got {table.dtype} {tuple(table.shape)}"
        )
    low, high = int(table.min()), int(table.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"ids must be indices into the {classes} names, 0 to {classes - 1}; got {low if low < 0 else high}"
        )
    return table.to(torch.int32)
