"""One example of every extra, and real text for them: what the tests of all extras go through, in any process."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

import pplmon
from pplmon import TokenTally
from pplmon.demo.text import language_reference
from pplmon.extras import kinds
from pplmon.extras.base import Extra
from tests import extras_reference as reference
from tests.extras_reference import Batch, Numbers

NAMES = ("web", "code", "books")
CLASSES = ("even", "odd", "rare")
LEAST = 40  # tokens that a group needs


def classes(vocab: int) -> list[int]:
    return [2 if number % 7 == 0 else number % 2 for number in range(vocab)]


def students_t(freedom: int) -> float:
    """The 97.5 % point of Student's distribution, by adding up its density."""
    steps = 20_000
    x = torch.linspace(0, 30, steps + 1, dtype=torch.float64)
    log_norm = torch.lgamma(torch.tensor((freedom + 1) / 2)) - torch.lgamma(torch.tensor(freedom / 2))
    density = (1 + x**2 / freedom) ** (-(freedom + 1) / 2) * log_norm.double().exp() / (freedom * torch.pi) ** 0.5
    area = torch.cumulative_trapezoid(density, x)
    return float(x[1:][area >= 0.475][0])


def filled(batch: Batch) -> int:
    """How many buckets the documents of a batch are put into."""
    return len({reference.hash_bucket(reference.document_of(batch, token)) for token in batch.valid})


# For each extra: how one is made for a vocabulary, and the brute-force numbers of a batch.
CASES: dict[str, tuple[Callable[[int], Extra], Callable[[Batch], Numbers]]] = {
    "Calibration": (lambda vocab: pplmon.Calibration(), reference.calibration),
    "Groups": (lambda vocab: pplmon.Groups(NAMES, LEAST), lambda batch: reference.groups(batch, NAMES, LEAST)),
    "Novelty": (lambda vocab: pplmon.Novelty(), reference.novelty),
    "Positions": (lambda vocab: pplmon.Positions(), reference.positions),
    "Rollouts": (lambda vocab: pplmon.Rollouts(), reference.rollouts),
    "TokenClasses": (
        lambda vocab: pplmon.TokenClasses(classes(vocab), CLASSES),
        lambda batch: reference.token_classes(batch, classes(batch.logits.shape[-1]), CLASSES),
    ),
    "Uncertainty": (
        lambda vocab: pplmon.Uncertainty(),
        lambda batch: reference.uncertainty(batch, students_t(filled(batch) - 1)),
    ),
}


def all_extras(vocab: int) -> list[Extra]:
    return [*(make(vocab) for make, _ in CASES.values()), pplmon.Entropy()]


def all_numbers(batch: Batch) -> Numbers:
    return {name: value for _, numbers in CASES.values() for name, value in numbers(batch).items()}


def tally_of(batch: Batch, *extras: Extra, **settings: Any) -> TokenTally:
    """A tally with these extras (else all), empty."""
    return TokenTally(shift=batch.shift, extras=extras or all_extras(batch.logits.shape[-1]), **settings)


def feed(tally: TokenTally, batch: Batch, rows: list[int] | slice, **address: int) -> None:
    data = {name: values[rows] for name, values in batch.data.items()}
    tally.update(batch.logits[rows], batch.targets[rows], **data, **address)


@lru_cache
def real_text(shift: bool = False, rows: int = 24, length: int = 64, far_apart: int = 3000) -> Batch:
    """Python's language reference, byte by byte, as a model of pairs of bytes sees it; two documents in each row."""
    text = torch.cat(language_reference()).long()
    pairs = torch.zeros(256, 256, dtype=torch.float64).index_put_(
        (text[:-1], text[1:]), torch.ones(()).double(), accumulate=True
    )
    windows = text[: rows * far_apart].view(rows, far_apart)[:, : length + 1]
    inputs = windows[:, :-1]
    # The kind of the row's first byte stands for its source.
    source = [kinds.CODE.index(kinds.kind_of_code(chr(row[0]))) % len(NAMES) for row in inputs.tolist()]
    return Batch(
        torch.log(pairs + 0.05).float()[inputs],
        inputs if shift else windows[:, 1:],
        shift,
        input_ids=inputs,
        document_ids=(torch.arange(length).expand(rows, length) >= length // 3).long(),
        sample_ids=torch.arange(rows) * far_apart,
        group_ids=torch.tensor(source),
    )
