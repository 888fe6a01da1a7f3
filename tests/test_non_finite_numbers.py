"""Numbers at their limits: non-finite tokens on any rank, no tokens, beyond the cap, 10^12, and beyond the ceiling."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

import pplmon
from pplmon import TokenStats, TokenTally
from pplmon.monitor.evaluation import Pass
from pplmon.monitor.repeated_rows import RepeatedRows
from pplmon.report import layout
from pplmon.report.totals import Totals
from pplmon.testing import run_on_ranks

LENGTH = 20


def stats(rows: int, loss: float = 2.0, **at: float) -> TokenStats:
    """Rows of one loss, with others at a place: ``r0c3=5.0``."""
    nll = torch.full((rows, LENGTH), loss)
    for place, value in at.items():
        row, column = place[1:].split("c")
        nll[int(row), int(column)] = value
    zeros = torch.zeros(rows, LENGTH, dtype=torch.int64)
    return TokenStats.from_losses(nll, zeros, predicted=zeros, top_probability=nll.sigmoid(), vocab_size=50)


def many(tokens: int, nats: int, largest: float = 30.0) -> Totals:
    """Totals of so many tokens of so many whole nats each: the state after months."""
    tally = TokenTally()
    tally.update(stats(1, float(nats), r0c0=largest))
    whole = tally.local_totals()
    factor = tokens // LENGTH
    sums = {name: value * factor for name, value in zip(layout.SUMS, whole.sums)}
    sums["nll_whole"], sums["nll_fraction"] = tokens * nats, 0
    scaled = replace(whole.histogram, counts=tuple(count * factor for count in whole.histogram.counts))
    return replace(whole, sums=tuple(sums.values()), histogram=scaled)


# On ranks.


def non_finite_on(rank: int, bad_rank: int, value: float) -> dict[str, Any]:
    """One token of one rank is non-finite."""
    alerts: list[pplmon.Alert] = []
    monitor = pplmon.Monitor(alerts=[pplmon.NonFinite()], on_alert=alerts.append)
    monitor.observe(stats(2, r1c7=value) if rank == bad_rank else stats(2))
    monitor.step()
    report = monitor.close()
    assert report is not None
    return {"numbers": report.as_dict(), "worst": report.worst[0], "alerts": alerts}


@pytest.mark.ranks
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bad_rank", [0, 1])
def test_a_non_finite_token_on_any_rank(bad_rank: int, value: float) -> None:
    """It is counted, its address is at hand, the other numbers are those of the healthy, and one rank tells of it."""
    first, second = run_on_ranks(non_finite_on, 2, bad_rank, value)
    assert first["numbers"] == second["numbers"]
    assert first["numbers"]["nonfinite_tokens"] == 1 and first["numbers"]["tokens"] == 4 * LENGTH - 1
    assert first["numbers"]["cross_entropy"] == 2.0 and first["numbers"]["max_token_loss"] == 2.0
    worst = first["worst"]
    assert repr(worst.loss) == repr(value) and (worst.rank, worst.sequence, worst.position) == (bad_rank, 1, 7)
    assert [alert.worst[0].rank for alert in first["alerts"]] == [bad_rank] and second["alerts"] == []


def nothing(rank: int) -> tuple[Any, dict[str, float]]:
    """All tokens of all ranks are ignored."""
    monitor = pplmon.Monitor(every_n_steps=1)
    for _ in range(3):
        monitor.observe(TokenStats.from_losses(torch.ones(2, LENGTH), torch.full((2, LENGTH), -100)))
        monitor.step()
    return monitor.close(), {name: value.item() for name, value in monitor.tally.compute().items()}


@pytest.mark.ranks
def test_all_tokens_ignored_on_all_ranks() -> None:
    """Nothing is judged or raised; ratios are NaN, counts 0."""
    for report, numbers in run_on_ranks(nothing, 2):
        assert report is not None and report.tokens == 0 and math.isnan(report.cross_entropy)
        assert numbers["tokens"] == 0 and math.isnan(numbers["perplexity"])


def full(rank: int, share: int, other: int) -> tuple[int, bool, int]:
    """Rank 0 holds ``share`` tokens of 3 nats, the others ``other``; returns the merged sums."""
    tally = TokenTally()
    tally.add_totals(many(share if rank == 0 else other, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        totals = tally.totals()
    return totals["nll_whole"], totals.saturated, totals["tokens"]


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [2, 3])
def test_sums_over_ranks_do_not_wrap(ranks: int) -> None:
    """10^12 tokens a rank are right; at the ceiling the sum stays there, is flagged, and is never negative."""
    for whole, saturated, tokens in run_on_ranks(full, ranks, 10**12, 2 * 10**12):
        assert tokens == 10**12 + (ranks - 1) * 2 * 10**12
        assert whole == 3 * tokens and not saturated
    for whole, saturated, _ in run_on_ranks(full, ranks, layout.CEILING, layout.CEILING):
        assert saturated and 2**62 < whole < 2**63
    assert all(saturated for _, saturated, _ in run_on_ranks(full, ranks, layout.CEILING, 20))


def test_a_trillion_tokens_are_right() -> None:
    """The mean, the quantiles and the tail of 10^12 tokens are those of any smaller multiple."""
    tally = TokenTally()
    tally.add_totals(many(10**12, 3))
    few = TokenTally()
    few.add_totals(many(10**6, 3))
    big, small = tally.report(), few.report()
    assert big.tokens == 10**12 and big.cross_entropy == 3.0 == small.cross_entropy
    for name in (
        "perplexity",
        "token_loss_p50",
        "token_loss_p99",
        "worst_1pct_loss",
        "token_accuracy",
        "max_token_loss",
    ):
        assert big.numbers[name] == pytest.approx(small.numbers[name], rel=1e-12), name
    tally.update(stats(1, 3.0))
    assert tally.report().tokens == 10**12 + LENGTH


def test_a_saturated_sum_says_so_and_stays() -> None:
    """One more batch at the ceiling changes nothing, and every read-out warns; below it there is no warning."""
    tally = TokenTally()
    tally.add_totals(many(10**18, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not tally.totals().saturated
    tally.add_totals(many(4 * 10**18, 3))
    for _ in range(2):
        tally.update(stats(1, 3.0))
        with pytest.warns(RuntimeWarning, match="a sum reached its ceiling"):
            totals = tally.totals()
        assert totals.saturated and totals["nll_whole"] == layout.CEILING
        assert all(value >= 0 for value in totals.sums)
    kept = Totals.from_state_dict((totals + many(20, 3)).state_dict())
    assert kept.saturated


def test_losses_beyond_the_cap_count_as_the_cap_and_are_counted() -> None:
    """10,000 nats: the true maximum and address, the sum with the cap, and a count that says so."""
    tally = TokenTally()
    tally.update(stats(1, r0c3=10_000.0))
    report = tally.report()
    assert (report.capped_tokens, report.max_token_loss, report.worst[0].loss) == (1, 10_000.0, 10_000.0)
    assert report.cross_entropy == pytest.approx((19 * 2.0 + layout.CAP_NATS) / 20)


# Groups, and work that is not even.


def pair_of_three(rank: int) -> tuple[Any, Any, bool, list[int]]:
    """Ranks 1 and 2 count together; rank 0 trains beside them."""
    group = dist.new_group([1, 2])
    written: list[int] = []

    class Keeps(pplmon.sinks.Sink):
        def report(self, report: Any, scalars: Any) -> None:
            written.append(report.step)

    monitor = pplmon.Monitor(every_n_steps=2, tally=TokenTally(process_group=group), sinks=[Keeps()])
    for _ in range(4):
        monitor.observe(stats(2, 100.0 if rank == 0 else float(rank)))
        monitor.step()
    with monitor.stage("val") as val:
        monitor.observe(stats(1))
    last = monitor.close()
    return (None if last is None else last.as_dict()), val.report.tokens, monitor.writes, written


@pytest.mark.ranks
def test_ranks_outside_the_group_take_no_part() -> None:
    """They count, judge and write nothing, and hang nobody; the lowest rank of the group writes."""
    outside, first, second = run_on_ranks(pair_of_three, 3)
    assert outside == (None, 0, False, [])
    assert first[0] == second[0] and first[0]["cross_entropy"] == 1.5 and first[0]["tokens"] == 2 * 4 * LENGTH
    assert first[1] == 2 * LENGTH and first[2] and not second[2]
    assert first[3] == [1, 3, 3] and second[3] == []


def sequence_part(rank: int) -> dict[str, Any]:
    """Each rank holds half the columns of the same sequences."""
    monitor = pplmon.Monitor(tally=TokenTally(context_parallel=True))
    positions = torch.arange(rank * LENGTH, (rank + 1) * LENGTH).expand(2, LENGTH)
    monitor.observe(stats(2, r1c4=50.0 if rank == 1 else 2.0), position_ids=positions)
    report = monitor.close()
    assert report is not None
    return {**report.as_dict(), "position": report.worst[0].position, "sequence": report.worst[0].sequence,
            "worst_sequences": report.worst_sequences}  # fmt: skip


@pytest.mark.ranks
def test_context_parallel() -> None:
    """Numbers that need whole sequences are absent; positions are those of the whole sequence."""
    for found in run_on_ranks(sequence_part, 2):
        assert found["tokens"] == 4 * LENGTH and found["max_token_loss"] == 50.0
        assert (found["position"], found["sequence"]) == (LENGTH + 4, 1)
        assert "sequences" not in found and "max_sequence_loss" not in found and found["worst_sequences"] == ()


def few_batches(rank: int, batches: int) -> dict[str, Any]:
    """Validation of so few batches that some ranks have none."""
    monitor = pplmon.Monitor(every_n_steps=1, alerts=[pplmon.Above("max_token_loss", 40.0, stage="val")])
    monitor.observe(stats(1))
    monitor.step()
    with monitor.stage("val") as val:
        if rank < batches:
            monitor.observe(stats(1, r0c2=50.0 + rank))
    monitor.close()
    return val.report.as_dict() | {"rank": val.report.worst[0].rank}


@pytest.mark.ranks
def test_validation_with_more_ranks_than_batches() -> None:
    """A rank without a batch takes part; the numbers are those of the batches there were."""
    answers = run_on_ranks(few_batches, 4, 2)
    assert all(answer == answers[0] for answer in answers)
    assert answers[0]["tokens"] == 2 * LENGTH and answers[0]["max_token_loss"] == 51.0 and answers[0]["rank"] == 1


def sampled(rank: int) -> dict[str, Any]:
    """Five rows on two ranks: a ``DistributedSampler`` gives one a second time. Counted as the callback does."""
    data = torch.arange(5)
    sampler = torch.utils.data.DistributedSampler(data, shuffle=False)  # type: ignore[arg-type]
    loader = torch.utils.data.DataLoader(data, batch_size=2, sampler=sampler)  # type: ignore[arg-type]
    opened, repeated = Pass("val", TokenTally()), RepeatedRows([loader])
    for rows in loader:
        opened.begin_batch()
        repeated.in_batch(opened, 0)
        opened.tallies[0].update(stats(len(rows)))
    repeated.record(opened)
    return opened.tallies[0].report().as_dict()


@pytest.mark.ranks
def test_a_repeated_row_without_sample_ids_is_reported() -> None:
    """Nobody can tell it apart: it counts twice, and ``duplicate_sequences`` says that one did.

    With ``sample_ids`` it is left out: ``test_lightning_ranks`` shows that.
    """
    for found in run_on_ranks(sampled, 2):
        assert (found["sequences"], found["duplicate_sequences"]) == (6, 1)
