"""Fixed losses, given bit by bit, and the tallies that count them."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch import Tensor

import pplmon
from pplmon import TokenStats, TokenTally

VOCAB = 50


def ids(chance: Random, *shape: int, below: int = VOCAB) -> Tensor:
    """Return ids of a shape; their order is that of Python's generator, which is the same everywhere."""
    count = torch.Size(shape).numel()
    return torch.tensor([chance.getrandbits(20) % below for _ in range(count)]).reshape(shape)


def floats(chance: Random, *shape: int, low: int, octaves: int) -> Tensor:
    """Return float32 numbers of full precision from 2^low on: their bits are drawn, nothing is computed."""
    count = torch.Size(shape).numel()
    bits = [(127 + low + chance.getrandbits(10) % octaves) << 23 | chance.getrandbits(23) for _ in range(count)]
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32).reshape(shape)


def batch(seed: int, *shape: int, low: int = -9, octaves: int = 15, **given: Any) -> TokenStats:
    """Return stats of which everything is known; ``given`` replaces or adds."""
    chance = Random(seed)
    nll, targets = floats(chance, *shape, low=low, octaves=octaves), ids(chance, *shape)
    predicted = torch.where(ids(chance, *shape, below=3) > 0, targets, ids(chance, *shape))
    top = floats(chance, *shape, low=-3, octaves=3)
    known = {"predicted": predicted, "top_probability": top, "vocab_size": VOCAB}
    return TokenStats.from_losses(**{"nll": nll, "targets": targets, **known, **given})


def rows() -> tuple[dict[str, Any], list[Any]]:
    """Plain batches of several sizes, with the dataset's rows."""
    sizes = [(4, 24), (1, 40), (3, 17)]
    parts = [
        (batch(i, *size), {"step": i, "micro_batch": i % 2, "sample_ids": torch.arange(size[0]) + 100 * i})
        for i, size in enumerate(sizes)
    ]
    return {"top_k": 8, "context": 8}, parts


def packed() -> tuple[dict[str, Any], list[Any]]:
    """Several documents in a row, some tokens masked, bytes and entropy known."""
    chance = Random(7)
    parts = []
    for step in range(2):
        documents = (ids(chance, 3, 60, below=15) == 0).cumsum(1)
        known = {"mask": ids(chance, 3, 60, below=9) > 0, "entropy": floats(chance, 3, 60, low=-6, octaves=7)}
        data = {"document_ids": documents, "sample_ids": ids(chance, 3), "position_ids": ids(chance, 3, 60, below=4096)}
        parts.append((batch(20 + step, 3, 60, **known), {"step": step, **data}))
    table = [chance.getrandbits(3) for _ in range(VOCAB)]
    return {"token_bytes": table, "extras": [pplmon.Entropy()], "min_sequence_tokens": 5}, parts


def odd() -> tuple[dict[str, Any], list[Any]]:
    """Losses that are not finite, beyond the cap, or given wrongly; targets that are ignored or impossible."""
    chance = Random(9)
    nll, targets = floats(chance, 4, 30, low=-3, octaves=6), ids(chance, 4, 30)
    nll[0, 3], nll[1, 5], nll[1, 6], nll[2, 8] = torch.nan, torch.inf, -torch.inf, -1.0
    nll[2, 9], nll[2, 10], nll[2, 11] = 1024.0, 3e38, -0.0005
    targets[0, 7:12], targets[1, 20], targets[3, 2], targets[3, 25:] = -100, -7, VOCAB + 3, -100
    correct, top = ids(chance, 4, 30, below=2).float(), floats(chance, 4, 30, low=-3, octaves=3)
    correct[0, 20], top[0, 21], top[0, 22] = 0.5, 1.5, torch.nan
    stats = batch(9, 4, 30, nll=nll, targets=targets, correct=correct, top_probability=top)
    return {"context": 3}, [(stats, {"step": 4})]


def shifted() -> tuple[dict[str, Any], list[Any]]:
    """Row t holds the target of column t + 1, and documents lie across rows."""
    mask = torch.arange(24).expand(3, 24) < 23
    stats = replace(batch(11, 3, 24, mask=mask), shift=True)
    return {"min_sequence_tokens": 4}, [(stats, {"document_ids": torch.arange(24).expand(3, 24) // 9})]


def flat() -> tuple[dict[str, Any], list[Any]]:
    """Tokens in one line, without sequences."""
    return {}, [(batch(12, 70), {}), (batch(13, 5), {"step": 1})]


def flat_packed() -> tuple[dict[str, Any], list[Any]]:
    """Tokens in one line, whose documents say what a sequence is."""
    return {}, [(batch(14, 70), {"document_ids": torch.arange(70) // 20})]


def losses_alone() -> tuple[dict[str, Any], list[Any]]:
    """Nothing but losses and targets is known."""
    return {}, [(batch(15, 2, 30, predicted=None, top_probability=None, vocab_size=None), {})]


def mixed() -> tuple[dict[str, Any], list[Any]]:
    """Batches of unlike vocabularies, of which one knows less."""
    parts = [batch(16, 2, 20), batch(17, 2, 20, vocab_size=VOCAB + 1), batch(18, 2, 20, top_probability=None)]
    return {}, [(stats, {"step": step}) for step, stats in enumerate(parts)]


def narrow() -> tuple[dict[str, Any], list[Any]]:
    """One worst token without neighbours, of parts of longer sequences."""
    settings = {"top_k": 1, "context": 0, "min_sequence_tokens": 1, "context_parallel": True}
    return settings, [(batch(19, 2, 20), {"position_ids": torch.arange(20).expand(2, 20) + 1000})]


def pieces() -> tuple[dict[str, Any], list[Any]]:
    """One batch that came in pieces, and some rows of another."""
    joined = TokenStats.join([batch(21, 3, 9), batch(22, 3, 14)])
    return {}, [(joined, {}), (batch(23, 6, 20).rows(1, 4), {"step": 1})]


def ties() -> tuple[dict[str, Any], list[Any]]:
    """Equal losses, which stand by their address, and losses of 0."""
    nll = ids(Random(24), 4, 20, below=3).float()
    return {"top_k": 5}, [(batch(24, 4, 20, nll=nll), {"step": step}) for step in (3, 1)]


def unscored() -> tuple[dict[str, Any], list[Any]]:
    """A batch without any scored token."""
    return {}, [(batch(25, 2, 20, mask=torch.zeros(2, 20, dtype=torch.bool)), {})]


def empty() -> tuple[dict[str, Any], list[Any]]:
    """No batch at all."""
    return {}, []


CASES = [
    rows, packed, odd, shifted, flat, flat_packed, losses_alone, mixed, narrow, pieces, ties, unscored, empty,
]  # fmt: skip


def runs() -> dict[str, Any]:
    """Return the report and the computed numbers of each case."""
    found = {}
    for case in CASES:
        settings, parts = case()
        tally = TokenTally(**{"top_k": 3, "context": 2, **settings})
        for stats, data in parts:
            tally.update(stats, **data)
        computed = tally.compute()
        found[case.__name__] = {
            "report": tally.report(step=8, stage="val"),
            "computed": {name: value.item() for name, value in computed.items()},
            "dtypes": [f"{name} {value.dtype}" for name, value in computed.items()],
        }
    return {**found, "saved and added": saved_and_added()}


def saved_and_added() -> dict[str, Any]:
    """Return what a tally gives that was saved in the middle, and what its totals give beside those of another."""
    _, parts = rows()
    tally, other = TokenTally(top_k=3, context=2), TokenTally(top_k=3, context=2)
    tally.update(parts[0][0], **parts[0][1])
    other.load_state_dict(tally.state_dict())
    for stats, data in parts[1:]:
        other.update(stats, **data)
    other.add_duplicates(2)
    both = tally.totals() + other.totals()
    alone = other.report()
    tally.reset()
    return {"resumed": alone, "both": both.report(3, "test", tokens_seen=9), "reset": tally.report()}
