"""Two real processes over gloo: the same numbers as one, in two collectives, with no hang and every rank agreeing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import MetricCollection

import pplmon
from pplmon import Alert, Report, TokenStats, TokenTally
from tests.ranks import RankFailure, Ranks
from tests.reference import rows_of

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Two ranks for all tests of this module: starting them takes longer than any of the tests."""
    with Ranks(2, tmp_path_factory.mktemp("ranks")) as both:
        yield both


# Which sequences of the batch each rank counts, in its updates: uneven, interleaved, one rank with none, none at all.
SHARES: dict[str, list[list[list[int]]]] = {
    "uneven": [[[0, 1, 2, 3], [6, 7], [9]], [[4, 5, 8]]],
    "interleaved": [[[0], [3], [8]], [[1, 2], [4, 5, 6, 7], [9]]],
    "rank 1 has none": [[[0, 1, 2], [3, 4, 5, 6, 7, 8, 9]], []],
    "rank 0 has none": [[], [[9, 8, 7], [0, 1, 2, 3, 4, 5, 6]]],
    "nobody has any": [[], []],
}


def data() -> tuple[TokenStats, Tensor]:
    """The same batch on every rank: losses with ties, a NaN, an inf and ignored ones, and documents."""
    generator = torch.Generator().manual_seed(5)
    nll = torch.randint(0, 60, (10, 12), generator=generator) / 7
    nll[2, 3], nll[7, 1], nll[5, 5] = torch.nan, torch.inf, 2000.0
    targets = torch.randint(9, (10, 12), generator=generator)
    targets[torch.rand(10, 12, generator=generator) < 0.1] = -100
    documents = (torch.rand(10, 12, generator=generator) < 0.1).cumsum(1)
    predicted = torch.randint(9, (10, 12), generator=generator)
    return TokenStats.from_losses(
        nll, targets, predicted=predicted, top_probability=nll.sigmoid(), vocab_size=9
    ), documents


def fill(tally: TokenTally, share: list[list[int]]) -> TokenTally:
    """Count the share, each part as a micro-batch of its own."""
    stats, documents = data()
    for number, rows in enumerate(share):
        tally.update(
            rows_of(stats, rows), document_ids=documents[rows], sample_ids=torch.tensor(rows), micro_batch=number
        )
    return tally


def new() -> TokenTally:
    """A tally whose worst rows are few enough to matter."""
    return TokenTally(top_k=5, context=1, min_sequence_tokens=3)


def measured(rank: int, shares: list[list[list[int]]]) -> Report:
    """One rank's report of its share, merged."""
    return fill(new(), shares[rank]).report(step=3)


@pytest.mark.parametrize("name", SHARES)
def test_two_ranks_are_one(ranks: Ranks, name: str) -> None:
    """Whatever share each rank has, all read bit-identical numbers and worst losses to those that one process reads."""
    shares = SHARES[name]
    reports = ranks.run(measured, shares)
    assert repr(reports[0]) == repr(reports[1])  # the same everywhere, evidence included
    alone = fill(new(), shares[0] + shares[1]).report(step=3)
    assert repr(sorted(reports[0].numbers.items())) == repr(sorted(alone.numbers.items()))
    for mine, one in ((reports[0].worst, alone.worst), (reports[0].worst_sequences, alone.worst_sequences)):
        assert [repr(w.loss) for w in mine] == [repr(w.loss) for w in one]
    stats, _ = data()
    for worst in reports[0].worst:
        part = shares[worst.rank][worst.micro_batch]  # the address leads back to the very token
        row = part[worst.sequence]
        assert worst.sample_id == row
        assert repr(stats.nll.view(10, 12)[row, worst.position].item()) == repr(worst.loss)
    if name == "uneven":
        assert {w.rank for w in reports[0].worst} == {0, 1}


COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "gather", "reduce", "broadcast",
               "broadcast_object_list", "barrier", "reduce_scatter", "all_to_all", "send", "recv")  # fmt: skip


def counted(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Call, and list the collectives that it used."""
    used: list[str] = []
    real = {name: getattr(dist, name) for name in COLLECTIVES}

    def spy(name: str) -> Callable[..., Any]:
        def call_and_note(*args: Any, **how: Any) -> Any:
            used.append(name)
            return real[name](*args, **how)

        return call_and_note

    try:
        for name in COLLECTIVES:
            setattr(dist, name, spy(name))
        return call(), used
    finally:
        for name in COLLECTIVES:
            setattr(dist, name, real[name])


def computed(rank: int) -> list[tuple[Any, list[str]]]:
    """compute() of a tally and of views; then again where only rank 0 has news, then where none has."""
    results = []
    for make in (TokenTally, pplmon.Perplexity, pplmon.TokenAccuracy, lambda: pplmon.TokenLossQuantile(q=0.5)):
        metric: TokenTally = make()
        fill(metric, SHARES["uneven"][rank])
        for news in (False, rank == 0, False):
            if news:
                fill(metric, [[0]])
            value, used = counted(metric.compute)
            plain = {k: v.item() for k, v in value.items()} if isinstance(value, dict) else value.item()
            results.append((plain, used))
    return results


def test_compute_takes_two_collectives(ranks: Ranks) -> None:
    """compute() reduces twice, on every rank, every time: a rank without news takes part, and state stays the rank's own.

    Before a tally's first, the ranks compare layouts.
    """
    first, second = ranks.run(computed)
    assert repr(first) == repr(second)
    assert [used for _, used in first] == 4 * [["all_reduce"] * 3, ["all_reduce"] * 2, ["all_reduce"] * 2]
    one = fill(TokenTally(), SHARES["uneven"][0] + SHARES["uneven"][1])
    assert repr(sorted(first[0][0].items())) == repr(sorted((k, v.item()) for k, v in one.compute().items()))
    fill(one, [[0]])
    assert repr(first[1][0]) == repr(first[2][0])
    assert first[1][0]["tokens"] == one.report().tokens


def collected(rank: int) -> dict[str, float]:
    """A MetricCollection of views, updated and forwarded, computed over the ranks."""
    views = MetricCollection([pplmon.Perplexity(), pplmon.MaxTokenLoss(), pplmon.CrossEntropy(ignore_index=3)])
    for number in range(3 - rank):
        generator = torch.Generator().manual_seed(10 * rank + number)
        preds, target = torch.randn(2, 4, 9, generator=generator), torch.randint(9, (2, 4), generator=generator)
        (views if number == 1 else views.update)(preds, target)
    return {name: value.item() for name, value in views.compute().items()}


def test_a_collection_on_two_ranks(ranks: Ranks) -> None:
    """Views that share their states compute the same over two ranks as one process does over all batches."""
    first, second = ranks.run(collected)
    tally, padded = TokenTally(), TokenTally(ignore_index=3)
    for seed in (0, 1, 2, 10, 11):
        generator = torch.Generator().manual_seed(seed)
        preds, target = torch.randn(2, 4, 9, generator=generator), torch.randint(9, (2, 4), generator=generator)
        tally.update(preds, target)
        padded.update(preds, target)
    report = tally.report()
    want = {
        "Perplexity": report.perplexity,
        "MaxTokenLoss": report.max_token_loss,
        "CrossEntropy": padded.report().cross_entropy,
    }
    assert first == second == want


def reported(rank: int) -> list[str]:
    """The collectives of a tally's second report."""
    tally = fill(new(), SHARES["uneven"][rank])
    tally.report()
    return counted(tally.report)[1]


def test_a_report_takes_three_collectives(ranks: Ranks) -> None:
    """A report reduces twice and gathers the worst rows once."""
    for used in ranks.run(reported):
        assert sorted(used) == ["all_gather", "all_reduce", "all_reduce"]


def ceiling(rank: int) -> dict[str, int]:
    """Totals of ranks at the ceiling."""
    from pplmon.report import layout

    tally = fill(new(), SHARES["uneven"][rank])
    tally.sums = torch.full_like(tally.sums, layout.CEILING)
    totals = tally.totals()
    tally.compute()
    return {name: totals[name] for name in layout.SUMS}


def test_ranks_at_the_ceiling_do_not_wrap(ranks: Ranks) -> None:
    """Sums of ranks that are all at the ceiling stay positive."""
    for totals in ranks.run(ceiling):
        assert min(totals.values()) >= 2**61


class WorstIsHigh:
    """A rule of a user's own that looks at the evidence, and remembers what it saw."""

    def __init__(self) -> None:
        self.saw: list[str] = []

    def __call__(self, report: Report) -> Alert | None:
        """Alert when the worst token of all ranks costs more than 9 nats."""
        self.saw.append(repr([(w.loss, w.rank, w.sample_id) for w in report.worst]))
        return Alert("WorstIsHigh", "high") if report.worst[0].loss > 9 else None


def monitored(rank: int, own_rule: bool) -> dict[str, Any]:
    """A loop of six steps in which rank 1 meets a loss of 40 nats at step 3, and rank 0 has no tokens at step 4."""
    heard: list[Alert] = []
    rule = WorstIsHigh()
    monitor = pplmon.Monitor(
        every_n_steps=2, alerts=[rule] if own_rule else [pplmon.Above("max_token_loss", 20.0)], on_alert=heard.append
    )
    returned = []
    for step in range(6):
        nll = torch.full((2 + rank, 5), 1.0 + step / 7)
        if step == 3 and rank == 1:
            nll[1, 2] = 40.0
        if not (step == 4 and rank == 0):
            for micro in range(1 + rank):  # not even the number of micro-batches is the same
                monitor.observe(TokenStats.from_losses(nll + micro / 3, torch.ones_like(nll, dtype=torch.int64)))
        returned.append(repr(monitor.step()))
    with monitor.stage("val") as val:
        if rank == 0:
            monitor.observe(TokenStats.from_losses(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64)))
    last = repr(monitor.close())
    return {"returned": returned, "val": repr(val.report), "last": last, "saw": rule.saw, "heard": heard}


@pytest.mark.parametrize("own_rule", [False, True], ids=["Above", "a rule that reads report.worst"])
def test_monitor_on_two_ranks(ranks: Ranks, own_rule: bool) -> None:
    """All ranks return and judge the same reports; the alert is told once, on rank 0, with rank 1's token in it."""
    first, second = ranks.run(monitored, own_rule)
    for name in ("returned", "val", "last", "saw"):
        assert first[name] == second[name], name
    assert second["heard"] == []
    (alert,) = first["heard"]
    assert alert.step == 3
    worst = alert.worst[0]
    assert (worst.loss, worst.rank, worst.step, worst.sequence, worst.position) == (pytest.approx(40.3333), 1, 3, 1, 2)
    assert len(first["saw"]) == (7 if own_rule else 0)  # six steps and the validation pass


def told(rank: int, wrong: int) -> list[Any]:
    """Steps with impossible targets on one rank only; returns what was raised, then the last report's counts."""
    monitor = pplmon.Monitor(every_n_steps=50, alerts=[])
    texts = []
    for step in range(3):
        targets = torch.ones(2, 6, dtype=torch.int64)
        if rank == wrong and step == 0:
            targets[0, :4] = 99
        monitor.observe(torch.zeros(2, 6, 11), targets)
        try:
            monitor.step()
        except ValueError as error:
            texts.append((step, str(error)))
    report = monitor.close()
    assert report is not None
    return [texts, report.tokens, report.invalid_targets]


@pytest.mark.parametrize("wrong", [0, 1])
def test_an_invalid_target_on_one_rank_raises_on_both(ranks: Ranks, wrong: int) -> None:
    """Both ranks raise the same ValueError at the first read-out, so that neither is left in a collective, and nothing is lost."""
    first, second = ranks.run(told, wrong)
    assert first == second
    ((step, text),), tokens, invalid = first
    assert step == 1 and text.startswith("4 targets are outside the vocabulary [0, 11), for example 99")
    assert (tokens, invalid) == (2 * 3 * 12 - 4, 4)


def diverges(rank: int) -> None:
    """Rank 0 reads out, rank 1 does not."""
    if rank == 0:
        TokenTally().report()


def test_a_hang_would_fail(ranks: Ranks) -> None:
    """The helper notices a rank that waits for ever, in place of waiting with it. (Last: it costs the module its ranks.)"""
    with pytest.raises(RankFailure, match="rank 0 of 2 gave no answer"):
        ranks.run(diverges, timeout=2.0)
