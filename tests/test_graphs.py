"""A step under torch.compile: what it counts is what it counts without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import pplmon
from pplmon import TokenTally, token_stats

STEPS = 12  # more than the compiler compiles anew before it gives up

BATCHES = [(torch.randn(2, 9, 37), torch.randint(37, (2, 9))) for _ in range(STEPS)]


@pytest.fixture(autouse=True)
def _no_graphs() -> None:
    torch._dynamo.reset()
    counters.clear()


def compiled(step: Callable[[Tensor, Tensor, int], Tensor]) -> int:
    """Run a compiled step over all batches, and return the number of graphs that it took."""
    run = torch.compile(step, backend="eager")
    for number, batch in enumerate(BATCHES):
        run(*batch, number)
    return counters["stats"]["unique_graphs"]


def test_a_tally_in_a_compiled_step() -> None:
    """Numbers and worst tokens: traced, numpy's ``keys.argsort()[::-1]`` gave the smallest losses for the largest."""
    tally, expected = TokenTally(), TokenTally()

    def step(logits: Tensor, targets: Tensor, number: int) -> Tensor:
        logits = 2 * logits
        tally.update(logits, targets, step=number)
        return logits.sum()

    graphs = compiled(step)
    for number, (logits, targets) in enumerate(BATCHES):
        expected.update(2 * logits, targets, step=number)
    assert tally.totals() == expected.totals()
    assert graphs <= 4  # before and after the update, for one step and for any


def test_token_stats_in_a_compiled_step() -> None:
    """Measured outside the graph, whose chunks would each be traced."""
    found: list[Tensor] = []

    def step(logits: Tensor, targets: Tensor, number: int) -> Tensor:
        stats = token_stats(2 * logits, targets)
        found.append(stats.nll)
        return stats.nll.mean() + number

    graphs = compiled(step)
    assert all(torch.equal(nll, token_stats(2 * x, y).nll) for nll, (x, y) in zip(found, BATCHES))
    assert graphs <= 4


@pytest.mark.slow  # tests of Lightning and of the Trainer have compiled modules
def test_a_monitor_in_a_compiled_step() -> None:
    """It reports what one outside would."""
    within, outside = (pplmon.Monitor(every_n_steps=100, alerts=[]) for _ in range(2))

    def step(logits: Tensor, targets: Tensor, number: int) -> Tensor:
        within.observe(logits, targets)
        within.step()
        return logits.sum()

    compiled(step)
    for batch in BATCHES:
        outside.observe(*batch)
        outside.step()
    assert within.close() == outside.close()
