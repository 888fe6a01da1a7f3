"""An extra's integers, sums and maxima, are merged over micro-batches, ranks, passes and resumed runs as the tally's own are."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pplmon
from pplmon import Monitor, Number, TokenStats, TokenTally, Totals, cells, saved
from pplmon.testing import assert_split_invariant
from tests.rank_tasks import random_stats
from tests.ranks import Ranks


class Kinds(pplmon.Extra):
    """The tokens and the largest loss of each kind of target, and over all the largest id; kinds are the ids modulo three."""

    size = 3
    maxima = 4
    declares = (
        Number("kind/{name}/tokens", "count", "valid tokens of a kind"),
        Number("kind/{name}/max_token_loss", "nats", "the largest nll of a kind"),
        Number("largest_id", "", "the largest valid target", low=-1.0),
    )

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        kinds = (torch.arange(3)[:, None] == stats.targets % 3) & valid
        bits = stats.nll.view(torch.int32).to(torch.int64)
        largest = torch.where(kinds, bits, -1).amax(1)
        return torch.cat([kinds.sum(1), largest, torch.where(valid, stats.targets, -1).amax().reshape(1)])

    def numbers(self, integers: Sequence[int]) -> Mapping[str, float | int | None]:
        found: dict[str, float | int | None] = {"largest_id": integers[-1]}
        for kind, (tokens, bits) in enumerate(zip(integers[:3], integers[3:6])):
            found[f"kind/{kind}/tokens"] = tokens
            found[f"kind/{kind}/max_token_loss"] = cells.float_from_bits(bits) if bits >= 0 else math.nan
        return found


def new() -> TokenTally:
    """A tally with two extras, the one with maxima between others."""
    return TokenTally(top_k=3, context=1, extras=[pplmon.Entropy(), Kinds(), Counts()])


class Counts:
    """An extra as 0.1 knew it, without a base."""

    size = 1

    def update(self, stats: TokenStats, valid: Tensor, logits: Any, **data: Any) -> Tensor:
        return valid.sum().reshape(1)

    def numbers(self, sums: Any) -> dict[str, int]:
        return {"counts/tokens": sums[0]}

    def __repr__(self) -> str:
        return "Counts()"


def of_kinds(report: pplmon.Report | None) -> dict[str, str]:
    """What the extras gave."""
    assert report is not None
    return {name: repr(v) for name, v in report.numbers.items() if name.startswith(("kind", "large", "counts"))}


def expected(stats: TokenStats) -> dict[str, str]:
    """The same, token by token."""
    tokens = [(t, n) for t, n, s in zip(stats.targets.tolist(), stats.nll.tolist(), stats.scored.tolist()) if s]
    valid = [(target, nll) for target, nll in tokens if nll < math.inf]
    found: dict[str, Any] = {"largest_id": max([t for t, _ in valid], default=-1), "counts/tokens": len(valid)}
    for kind in range(3):
        losses = [nll for target, nll in valid if target % 3 == kind]
        found[f"kind/{kind}/tokens"] = len(losses)
        found[f"kind/{kind}/max_token_loss"] = max(losses, default=math.nan)
    return {name: repr(value) for name, value in found.items()}


def test_any_cut_gives_the_same_integers() -> None:
    """In any order, in several tallies, saved and loaded, added up: as token by token."""
    stats = random_stats(3)
    assert_split_invariant(stats, new)
    whole = new()
    whole.update(stats)
    assert of_kinds(whole.report()) == expected(stats)
    assert of_kinds((whole.totals() + Totals()).report()) == expected(stats)


def test_nothing_counted() -> None:
    """Sums of 0 and maxima of −1, which the extra reads as it likes."""
    numbers = of_kinds(new().report())
    assert numbers["largest_id"] == "-1" and numbers["kind/0/max_token_loss"] == "nan"
    fresh, used = new(), new()
    used.update(random_stats(1))
    used.reset()
    assert fresh.totals() == used.totals() and fresh.totals().extra_maxima == (-1,) * 4


def test_a_state_goes_from_one_tally_to_another() -> None:
    """Of a state dict, a pickle of totals and host totals the maxima are taken, not added."""
    tally, other = new(), new()
    tally.update(random_stats(1))
    other.load_state_dict(tally.state_dict())
    other.add_totals(tally.totals())
    assert other.totals().extra_maxima == tally.totals().extra_maxima
    assert other.totals().extra_sums == tuple(2 * x for x in tally.totals().extra_sums)
    state = json.loads(json.dumps(tally.totals().state_dict()))
    assert [len(state["extras"][name]) for name in ("Entropy()", "Kinds()", "Counts()")] == [4, 7, 1]
    assert Totals.from_state_dict(state, tally.extras) == tally.totals()


def test_each_extra_is_loaded_by_its_name() -> None:
    """In another order, without some, beside new ones: of what this run does not count it is told once."""
    tally = new()
    tally.update(random_stats(1))
    reordered = TokenTally(top_k=3, context=1, extras=[Counts(), Kinds()])
    with pytest.warns(RuntimeWarning, match=r"does not count: Entropy\(\)\."):
        reordered.load_state_dict(tally.state_dict())
    assert of_kinds(reordered.report()) == expected(random_stats(1))

    class Fewer(Kinds):
        maxima = 0

        def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
            return super().update(stats, valid, logits, **batch_data)[:3]

        def __repr__(self) -> str:
            return "Kinds()"

    changed = TokenTally(top_k=3, context=1, extras=[Fewer(), Counts()])
    with pytest.warns(RuntimeWarning, match=r"does not count: Entropy\(\), Kinds\(\)\."):
        changed.load_state_dict(tally.state_dict())
    assert changed.totals().extra_sums == (0, 0, 0, int(expected(random_stats(1))["counts/tokens"]))


def test_totals_of_unlike_extras_do_not_add() -> None:
    """Though they have as many integers."""
    one, two = (
        TokenTally(extras=[Counts()]),
        TokenTally(extras=[type("Others", (Counts,), {"__repr__": lambda _: "Others()"})()]),
    )
    for tally in (one, two):
        tally.update(random_stats(1))
    with pytest.raises(ValueError, match=r"unlike extras do not add: Counts\(\) and Others\(\); give both"):
        one.totals() + two.totals()


def test_a_run_resumes_with_them(tmp_path: Path) -> None:
    """A window that a checkpoint cut reports what one that was never cut reports; so does a rule on a maximum."""
    stats = [random_stats(seed) for seed in range(6)]

    def live(directory: str, steps: Sequence[TokenStats], state: Any = None) -> Monitor:
        sinks = [pplmon.sinks.Journal(tmp_path / directory)]
        rules = [pplmon.Above("largest_id", 1.0), pplmon.Above("kind/1/max_token_loss", 0.5)]
        monitor = Monitor(every_n_steps=6, sinks=sinks, alerts=rules, tally=new())
        if state is not None:
            monitor.load_state_dict(state)
        for step in steps:
            monitor.observe(step)
            monitor.step()
        return monitor

    whole = live("whole", stats).close()
    half = live("half", stats[:4])
    state = json.loads(json.dumps(half.state_dict()))
    assert of_kinds(live("rest", stats[4:], state).close()) == of_kinds(whole)
    judged = [row for row in pplmon.sinks.read_journal(tmp_path / "whole") if row["kind"] == "judged"]
    assert [row["numbers"]["largest_id"] for row in judged] == [int(expected(s)["largest_id"]) for s in stats]
    (run, *_) = pplmon.sinks.read_journal(tmp_path / "rest")
    assert [row["name"] for row in run["declared"]] == [
        "mean_entropy",
        "kind/{name}/tokens",
        "kind/{name}/max_token_loss",
        "largest_id",
    ]
    assert run["declared"][1]["extra"] == "Kinds()" and run["declared"][3]["low"] == -1.0


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Two ranks for all tests of this module."""
    with Ranks(2, tmp_path_factory.mktemp("ranks")) as both:
        yield both


def on_ranks(rank: int, cut: int, state: Any = None) -> dict[str, Any]:
    """Each rank counts its part of a batch: by a tally in every way that merges, and by a monitor."""
    part = random_stats(3).rows(*((0, cut), (cut, random_stats(3).batch_shape[0]))[rank])
    tally = new()
    tally.update(part)
    found = {"report": of_kinds(tally.report())}
    computed = tally.compute()
    found["computed"] = {n: repr(v.item()) for n, v in computed.items() if n in found["report"]}
    tally.sync()
    found["synced"] = of_kinds(tally.local_totals().report())
    tally.unsync()
    monitor = Monitor(every_n_steps=1, alerts=[], tally=new())
    if state is not None:
        monitor.load_state_dict(state)
    monitor.observe(part)
    found["state"] = monitor.state_dict()
    found["monitor"] = of_kinds(monitor.close())
    return found


@pytest.mark.ranks
@pytest.mark.parametrize("cut", [2, 0])
def test_ranks_are_one(ranks: Ranks, cut: int) -> None:
    """Uneven parts, and a rank with none."""
    first, second = ranks.run(on_ranks, cut)
    assert repr(first) == repr(second)
    wanted = expected(random_stats(3))
    assert first["report"] == first["computed"] == first["synced"] == first["monitor"] == wanted
    assert saved.sizes_of([Kinds()]) == {"Kinds()": (3, 4)}


@pytest.mark.ranks
def test_a_state_of_one_rank_goes_on_with_two(ranks: Ranks) -> None:
    """What it holds is counted once, whatever the number of ranks that load it."""
    alone = Monitor(every_n_steps=1, alerts=[], tally=new())
    alone.observe(random_stats(4))
    first, second = ranks.run(on_ranks, 2, alone.state_dict())
    both = new()
    both.update(random_stats(3))
    both.update(random_stats(4))
    assert first["monitor"] == second["monitor"] == of_kinds(both.report())


def test_a_mistake_in_the_shape_is_told() -> None:
    """With both parts named."""

    class Short(Kinds):
        def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
            return super().update(stats, valid, logits, **batch_data)[:3]

    with pytest.raises(
        ValueError, match=r"Short\(\).update must return integers of shape \(7,\), its size \(3\) and maxima \(4\)"
    ):
        TokenTally(extras=[Short()]).update(random_stats(1))
    with pytest.raises(ValueError, match=r"Kinds\(\): maxima must be an integer of at least 0, got -1"):
        negative = Kinds()
        negative.maxima = -1
        TokenTally(extras=[negative])
