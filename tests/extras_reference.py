"""Every number of the extras, recomputed: plain Python over float64 logits, one token at a time, by its definition.

Nothing of the extras' arithmetic is used: what has occurred is looked for, runs are walked, classes are summed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.reference import CAP, Token, tokens_of

Numbers = dict[str, Any]
HORIZONS = (1, 2, 4, 8, 16)


class Batch:
    """One batch: logits [B, T, V], targets [B, T], what is known of them, and its tokens in float64."""

    def __init__(self, logits: Tensor, targets: Tensor, shift: bool = False, **data: Tensor) -> None:
        self.logits, self.targets, self.shift, self.data = logits, targets, shift, data
        known = {name: data.get(name) for name in ("mask", "document_ids")}
        self.tokens = tokens_of(logits, targets, shift=shift, **known)
        self.valid = [token for token in self.tokens if token.valid]

    def at(self, row: int, column: int) -> Token:
        return self.tokens[row * self.targets.shape[1] + column]

    def rest_of_sequence(self, token: Token) -> Iterable[Token]:
        """The token and those after it, to the end of its sequence."""
        for column in range(token.column, self.targets.shape[1]):
            later = self.at(token.row, column)
            if later.sequence != token.sequence:
                return
            yield later

    def of(self, name: str, token: Token) -> int | None:
        """What the batch says of a token's target, or of its row."""
        values = self.data.get(name)
        if values is None:
            return None
        return int(values[token.row, token.column] if values.dim() == 2 else values[token.row])


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def share(hits: Iterable[bool]) -> float:
    return mean(map(float, hits))


def entropy(tokens: Iterable[Token]) -> float:
    return mean(min(token.nll, CAP) for token in tokens)


def exp(x: float) -> float:
    return math.exp(x) if x < 709 else (x if math.isnan(x) else math.inf)


def worst(tokens: Iterable[Token]) -> float:
    return max((token.nll for token in tokens), default=math.nan)


def novelty(batch: Batch) -> Numbers:
    """What has been read when a token is predicted: inputs up to its logits' column, else the targets before it."""

    def occurred(token: Token) -> bool:
        ids, shift = batch.data.get("input_ids"), int(batch.shift)
        for column in range(token.column + 1 - shift if ids is not None else token.column):
            read = batch.at(token.row, column)
            seen = int(ids[token.row, column]) if ids is not None else (read.target if read.target != -100 else None)
            if read.sequence == token.sequence and seen == token.target:
                return True
        return False

    parts: dict[bool, list[Token]] = {True: [], False: []}
    for token in batch.valid:
        parts[occurred(token)].append(token)
    return {
        "novel_cross_entropy": entropy(parts[False]),
        "seen_cross_entropy": entropy(parts[True]),
        "novel_share": len(parts[False]) / len(batch.valid) if batch.valid else math.nan,
        "seen_share": len(parts[True]) / len(batch.valid) if batch.valid else math.nan,
    }


def rollouts(batch: Batch) -> Numbers:
    """Walk on from each start."""
    following, hits = [], []
    for token in batch.valid:
        rest = list(batch.rest_of_sequence(token))
        following.append(next((n for n, t in enumerate(rest) if not t.valid), len(rest)))
        hits.append(next((n for n, t in enumerate(rest) if not (t.valid and t.correct)), len(rest)))
    return {
        **{f"rollout_match_{h}": share(hit >= h for f, hit in zip(following, hits) if f >= h) for h in HORIZONS},
        "mean_hit_run": mean(hits),
    }


def calibration(batch: Batch) -> Numbers:
    bins: dict[int, list[Token]] = defaultdict(list)
    for token in batch.valid:
        bins[min(int((token.top_probability or 0.0) * 20), 19)].append(token)
    sure = mean(token.top_probability or 0.0 for token in batch.valid)
    count = len(batch.valid)
    gaps = [
        len(tokens) * abs(share(bool(t.correct) for t in tokens) - mean(t.top_probability or 0.0 for t in tokens))
        for tokens in bins.values()
    ]
    return {
        "calibration_error": math.nan if not count else math.fsum(gaps) / count if count >= 30_000 else None,
        "overconfidence": sure - share(bool(token.correct) for token in batch.valid),
        "mean_top_probability": sure,
        **{f"reliability/{place / 20:.2f}/tokens": len(tokens) for place, tokens in bins.items()},
        **{f"reliability/{place / 20:.2f}/accuracy": share(bool(t.correct) for t in b) for place, b in bins.items()},
        **{
            f"reliability/{place / 20:.2f}/confidence": mean(t.top_probability or 0.0 for t in b)
            for place, b in bins.items()
        },
    }


def groups(batch: Batch, names: Sequence[str], least: int) -> Numbers:
    found: Numbers = {}
    entropies = []
    for number, name in enumerate(names):
        tokens = [token for token in batch.valid if batch.of("group_ids", token) == number]
        found |= part(f"group/{name}", tokens) | {f"group/{name}/perplexity": exp(entropy(tokens))}
        entropies += [entropy(tokens)] if len(tokens) >= least else []
    return found | {"macro_perplexity": exp(mean(entropies)), "worst_group_cross_entropy": max(entropies)}


def part(head: str, tokens: list[Token]) -> Numbers:
    return {
        f"{head}/tokens": len(tokens),
        f"{head}/cross_entropy": entropy(tokens),
        f"{head}/token_accuracy": share(bool(token.correct) for token in tokens),
        f"{head}/max_token_loss": worst(tokens),
    }


def positions(batch: Batch) -> Numbers:
    parts: dict[int, list[Token]] = {0: [], **{2**power: [] for power in range(21)}}
    for token in batch.valid:
        first = next(c for c in range(token.column + 1) if batch.at(token.row, c).sequence == token.sequence)
        position = batch.of("position_ids", token)
        position = token.column - first if position is None else position
        parts[max(start for start in parts if start <= position)].append(token)
    found = {f"position/{start}/cross_entropy": entropy(tokens) for start, tokens in parts.items()}
    found |= {f"position/{s}/token_accuracy": share(bool(t.correct) for t in tokens) for s, tokens in parts.items()}
    return {name: None if math.isnan(value) and batch.valid else value for name, value in found.items()}


def token_classes(batch: Batch, ids: Sequence[int], names: Sequence[str]) -> Numbers:
    logits, table = batch.logits.double().numpy(), np.array(ids)
    class_of = dict(enumerate(ids))
    of_class, within = [], []
    for token in batch.valid:
        x = logits[token.row, token.column - int(batch.shift)]
        same = table == class_of[token.target]
        whole = float(np.logaddexp.reduce(x[same]))
        of_class.append(float(np.logaddexp.reduce(x)) - whole)
        within.append(whole - x[token.target])
    found: Numbers = {
        "structure_perplexity": exp(mean(of_class)),
        "content_perplexity": exp(mean(within)),
        "class_accuracy": share(class_of.get(t.predicted or 0) == class_of[t.target] for t in batch.valid),
    }
    for number, name in enumerate(names):
        found |= part(f"class/{name}", [token for token in batch.valid if class_of[token.target] == number])
    return found


def mixed(x: int) -> int:
    """MurmurHash3's last step, on 64 bits."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x ^= x >> 33
        x = x * factor % 2**64
    return x ^ (x >> 33)


def document_of(batch: Batch, token: Token) -> Hashable:
    """The key of a token's document, hashed in Python integers."""
    sample, document = batch.of("sample_ids", token), batch.of("document_ids", token)
    if sample is not None:
        return mixed(sample % 2**64 if document is None else (mixed(sample % 2**64) + document) % 2**64)
    ids = batch.data.get("input_ids", batch.targets)
    columns = [c for c in range(ids.shape[1]) if batch.at(token.row, c).sequence == token.sequence]
    return mixed(sum(mixed((mixed(int(ids[token.row, c]) % 2**64) + c - columns[0]) % 2**64) for c in columns) % 2**64)


def clusters(batch: Batch, key: Callable[[Token], Hashable]) -> dict[Hashable, tuple[int, float]]:
    """Tokens and Σ nll of each."""
    found: dict[Hashable, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for token in batch.valid:
        tokens, total = found[key(token)]
        found[key(token)] = tokens + 1, total + min(token.nll, CAP)
    return found


def error_of_mean(found: dict[Hashable, tuple[int, float]]) -> tuple[float, float]:
    """The mean over clusters, and its standard error."""
    tokens, total = (math.fsum(column) for column in zip(*found.values()))
    mu, count = total / tokens, len(found)
    squares = math.fsum((s - mu * n) ** 2 for n, s in found.values())
    return mu, math.sqrt(count / (count - 1) * squares) / tokens


def uncertainty(batch: Batch, t: float) -> Numbers:
    found = clusters(batch, lambda token: hash_bucket(document_of(batch, token)))
    mu, error = error_of_mean(found)
    rows = not {"sample_ids", "document_ids", "input_ids"} & set(batch.data)
    return {
        "perplexity_low": math.exp(mu - t * error),
        "perplexity_high": math.exp(mu + t * error),
        "uncertainty_is_lower_bound": int(rows),
    }


def hash_bucket(key: Any) -> int:
    return int(key) % 256


def random_batch(seed: int, shift: bool = False, rows: int = 12, length: int = 40, vocab: int = 30) -> Batch:
    """Logits of which some are masked, sick or far off; ignored, masked and impossible targets; short documents; all ids."""
    chance = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=chance)

    def often(share: float) -> Tensor:
        return torch.rand(rows, length, generator=chance) < share

    ids = integers(vocab - 4, rows, length + 1)
    inputs, targets = ids[:, :-1].clone(), ids[:, int(not shift) :][:, :length].clone()
    logits = torch.randn(rows, length, vocab, generator=chance) * 3
    following = targets.roll(-1, 1) if shift else targets
    logits.scatter_add_(2, following[..., None], (torch.rand(rows, length, 1, generator=chance) < 0.6) * 9.0)
    logits[..., vocab - 2] = -torch.inf
    logits[1, 3, 5], logits[2, 7, 0] = torch.nan, torch.inf
    logits[3, 8] = torch.where(torch.arange(vocab) == following[3, 8], -200.0, logits[3, 8])
    targets[often(0.1)], targets[4, 9] = -100, vocab + 5
    return Batch(
        logits,
        targets,
        shift,
        mask=~often(0.1),
        document_ids=often(0.08).cumsum(1) + integers(3, rows, 1),
        group_ids=integers(4, rows, length) - 1,
        sample_ids=integers(2**40, rows),
        input_ids=inputs,
    )


def without(batch: Batch, *names: str, **more: Tensor) -> Batch:
    """The same batch, of which less is known."""
    data = {name: value for name, value in batch.data.items() if name not in names} | more
    return Batch(batch.logits, batch.targets, batch.shift, **data)
