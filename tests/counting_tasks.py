"""Functions that ``test_tally_triton`` runs where Triton programs can run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pplmon import TokenStats, TokenTally
from pplmon.report import layout
from pplmon.tally.count import choose as batch
from pplmon.tally.records import State
from pplmon.tally.waiting import Waiting
from tests.interpreter import DEVICE

INEXACT = ("probability_whole", "probability_fraction")  # exp is the device's own


@contextmanager
def counting_by(module: Any) -> Iterator[None]:
    """Have kernels, or array operations, count each batch at once; fail where they were not asked."""
    at_once = mock.patch.object(Waiting, "takes", return_value=False)
    with at_once, mock.patch.object(batch, "kernels_for", return_value=module) as asked:
        yield
    assert asked.called


def tally_that_counts(kernels: bool, **how: Any) -> Any:
    """A tally on the device under test, and the context in which kernels, or array operations, count for it."""
    module = None
    if kernels:
        from pplmon.tally.count.triton import launch as module
    return TokenTally(**how).to(DEVICE), counting_by(module)


def moved(given: TokenStats, gaps: bool = False) -> TokenStats:
    """The same stats on the device under test."""
    columns = given.__dict__.items()
    return TokenStats(**{k: placed(v, gaps) if isinstance(v, Tensor) else v for k, v in columns})


def placed(column: Tensor, gaps: bool) -> Tensor:
    """The same values on the device under test, with others between them where there are gaps."""
    column = column.to(DEVICE)
    return torch.stack((column, column.flip(0)), -1)[..., 0] if gaps else column


def counted(
    parts: list[tuple[TokenStats, dict[str, Any]]], kernels: bool, gaps: bool = False, **how: Any
) -> dict[str, Any]:
    """The states after some batches, and the mean p(target), whose cells are left out."""
    tally, so = tally_that_counts(kernels, **{"top_k": 3, "context": 2, "min_sequence_tokens": 2, **how})
    with so:
        for number, (given, data) in enumerate(parts):
            data = {k: placed(v, gaps) for k, v in data.items()}
            tally.update(moved(given, gaps), step=3 - number, micro_batch=number, **data)
    found = {name: getattr(tally, name).tolist() for name in State._fields}
    for name in INEXACT:
        found["sums"][layout.place(name)] = 0
    return {**found, "mean_target_probability": tally.totals().numbers()["mean_target_probability"]}


def saturated() -> bool:
    """Whether all sums and counts that stood at the ceiling still do."""
    tally, so = tally_that_counts(kernels=True)
    tally.sums.fill_(layout.CEILING)
    tally.histogram.fill_(layout.CEILING)
    with so:
        tally.update(moved(TokenStats.from_losses(torch.rand(2, 20), torch.zeros(2, 20, dtype=torch.int64))))
    fractions = [layout.place(name) for _, name in layout.PAIRS]
    at_ceiling = [v == layout.CEILING for i, v in enumerate(tally.sums.tolist()) if i not in fractions]
    return all(at_ceiling) and set(tally.histogram.tolist()) == {layout.CEILING}


def in_another_order() -> tuple[dict[str, Any], dict[str, Any]]:
    """What kernels and array operations count where the cells stand in another order, and one more is among them."""
    pairs, others = layout.SUMS[: 2 * len(layout.PAIRS)], layout.SUMS[2 * len(layout.PAIRS) :]
    layout.PAIRS = layout.PAIRS[::-1]
    layout.SUMS = (pairs[1], pairs[0], pairs[3], pairs[2], *others[::-1], "one_more")
    known = [f"{what}_missing" for what in layout.KNOWABLE]
    layout.MAXIMA = (*known, "another", *(name for name in layout.MAXIMA[::-1] if name not in known))
    layout.SUM_PLACES = {name: place for place, name in enumerate(layout.SUMS)}
    layout.MAXIMUM_PLACES = {name: place for place, name in enumerate(layout.MAXIMA)}
    nll = torch.arange(60).view(3, 20) * 37 % 11 / 3
    nll[1, 2], nll[2, 7] = 2000.0, torch.nan
    targets = torch.arange(60).view(3, 20) % 8 - 1
    given = TokenStats.from_losses(nll, targets, targets < 3, nll.sigmoid(), vocab_size=6)
    lacking = TokenStats.from_losses(nll, targets)
    parts: list[tuple[TokenStats, dict[str, Any]]] = [(given, {}), (lacking, {}), (given, {})]
    return counted(parts, kernels=True), counted(parts, kernels=False)


class Ask:
    """An extra that keeps the mask that it is given."""

    size = 1

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def update(self, stats: TokenStats, valid: Tensor, logits: Any, **data: Any) -> Tensor:
        self.seen += valid.tolist()
        return valid.sum().reshape(1)

    def numbers(self, sums: Any) -> dict[str, int]:
        return {"asked/tokens": sums[0]}


def mask_of_an_extra(kernels: bool) -> list[bool]:
    """Tokens that an extra is given to count, among a non-finite one, an ignored one, and one of another document."""
    ask = Ask()
    tally, so = tally_that_counts(kernels, extras=[ask])
    given = TokenStats.from_losses(torch.tensor([[1.0, torch.nan, 2.0, 3.0]]), torch.tensor([[1, 2, -100, 3]]))
    with so:
        tally.update(moved(given), document_ids=torch.tensor([[0, 0, 0, 1]], device=DEVICE))
    return ask.seen


def what_fits() -> dict[str, bool]:
    """Whether the kernels take a batch."""
    from pplmon.tally.count.triton import launch as triton

    few, many, wide = TokenTally(top_k=8, context=500), TokenTally(top_k=65), TokenTally(top_k=64, context=61)
    small, large = (TokenStats.from_losses(torch.rand(n), torch.zeros(n, dtype=torch.int64)) for n in (40, 2**20 + 1))
    return {
        "8 rows": triton.fits(few._state(), small),
        "65 rows": triton.fits(many._state(), small),
        "64 wide rows": triton.fits(wide._state(), small),
        "more than 2^20 tokens": triton.fits(few._state(), large),
    }


FULL = batch.Kind(
    device=torch.device(DEVICE),
    shift=False,
    flat=False,
    lacks=(),
    packed=True,
    samples=True,
    positions=False,
    whole_sequences=True,
    token_bytes=True,
    wants_valid=True,
    keep=4,
    context=2,
)
KINDS = {
    "full": FULL,
    "shifted": FULL._replace(shift=True, positions=True),
    "rows": FULL._replace(packed=False, keep=8, context=8),
    "flat": FULL._replace(flat=True, packed=False, samples=False),
    "from a fused loss": FULL._replace(
        lacks=("correct", "top_probability", "predicted", "vocab_size"), token_bytes=False
    ),
    "context parallel": FULL._replace(whole_sequences=False, wants_valid=False),
}


def proved(kind: str = "full", off_by_one: str = "", broken: str = "") -> tuple[bool, list[str]]:
    """Whether a kind that was never seen is given the kernels, and what is said."""
    from pplmon.tally.count.triton import launch as triton

    right = triton.add

    def add(own: State, *rest: Any) -> Tensor:
        if broken:
            raise RuntimeError(broken)
        valid = right(own, *rest)
        if off_by_one:
            getattr(own, off_by_one).view(-1)[5] += 1  # of the sums none that is inexact
        return valid

    with (
        mock.patch.object(triton, "add", add),
        mock.patch.object(batch, "_given_up", set()),
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always")
        taken = batch._prove(KINDS[kind])
        assert (taken is None) == (KINDS[kind].device in batch._given_up)
    return taken is triton, [str(warning.message) for warning in said]
