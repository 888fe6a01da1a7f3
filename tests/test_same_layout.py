"""Ranks whose integers are unlike are told so, on every rank, in place of hanging or of adding one thing to another."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import pplmon
from pplmon import TokenTally
from pplmon.report import layout
from pplmon.sinks import Journal, read_journal
from pplmon.tally import UnlikeLayouts, same_layout
from tests.rank_tasks import random_stats
from tests.ranks import Ranks
from tests.test_ranks import counted
from tests.test_tally_metric import Digits

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Two ranks for all tests of this module."""
    with Ranks(2, tmp_path_factory.mktemp("ranks")) as both:
        yield both


class Letters(Digits):
    """Another extra of as many integers."""

    def __repr__(self) -> str:
        return "Letters()"


def swapped(rank: int) -> Any:
    """On rank 1 two sums stand in each other's place."""
    names = {"correct": "overconfident_errors", "overconfident_errors": "correct"}
    return mock.patch.object(
        layout, "SUMS", tuple(names.get(name, name) for name in layout.SUMS) if rank else layout.SUMS
    )


def one_more(rank: int) -> Any:
    """On rank 1 there is a maximum more."""
    return mock.patch.object(layout, "MAXIMA", (*layout.MAXIMA, "one_more")) if rank else nullcontext()


UNLIKE: dict[str, tuple[Any, list[dict[str, Any]], str]] = {
    "order": (swapped, [{}, {}], "unlike names, or another order of them"),
    "maxima": (one_more, [{}, {}], "10 to 11 maxima"),
    "an extra": (None, [{"extras": [pplmon.Entropy()]}, {}], "0 to 4 integers of extras"),
    "another extra": (None, [{"extras": [Digits()]}, {"extras": [Letters()]}], "unlike names"),
    "rows": (None, [{"top_k": 3}, {"context": 1}], "3 to 8 worst rows, 10 to 24 columns of a row"),
}


def told(rank: int, name: str, how: str) -> list[str]:
    """What a rank is told when it reads a tally out, twice."""
    patch, settings, _ = UNLIKE[name]
    texts = []
    with patch(rank) if patch else nullcontext():
        tally = TokenTally(**settings[rank])
        tally.update(random_stats(rank))
        for _ in range(2):
            with pytest.raises(UnlikeLayouts) as caught:
                getattr(tally, how)()
            texts.append(str(caught.value))
    return texts


@pytest.mark.parametrize("how", ["report", "compute"])
@pytest.mark.parametrize("name", UNLIKE)
def test_unlike_layouts_raise_the_same_error_on_every_rank(ranks: Ranks, name: str, how: str) -> None:
    """Another order, other names, other sizes: each time, and at once."""
    first, second = ranks.run(told, name, how)
    assert first == second and len(first) == 2
    assert first[0].startswith("ranks of one group count into unlike layouts (") and UNLIKE[name][2] in first[0]
    assert (
        "Give every rank the same version of pplmon, and a TokenTally with the same top_k, context and extras"
        in first[0]
    )


def mixed_up(rank: int) -> list[str]:
    """Both ranks have compared two layouts, and then read out one on this rank and the other on that."""
    tallies = [TokenTally(extras=[Digits()]), TokenTally(extras=[Letters()])]
    for tally in tallies:
        tally.report()
    with pytest.raises(UnlikeLayouts) as caught:
        tallies[rank].compute()
    return [str(caught.value), str(tallies[0].report().tokens)]


def test_every_read_out_carries_the_hash(ranks: Ranks) -> None:
    """What was alike at first is compared again with the maxima; then the ranks go on."""
    first, second = ranks.run(mixed_up)
    assert first == second and "unlike names" in first[0] and first[1] == "0"


def handshakes(rank: int) -> tuple[list[int], list[int]]:
    """Collectives of read-outs of a tally, of its copies, and of one that came out of a pickle."""
    tally = TokenTally(top_k=2, context=0)
    copies = [tally, tally, tally.clone(), pickle.loads(pickle.dumps(tally))]
    used = [len(counted(copy.compute)[1]) for copy in copies]
    sizes: list[int] = []
    real = torch.distributed.all_reduce

    def noted(tensor: torch.Tensor, *args: Any, **how: Any) -> Any:
        sizes.append(tensor.numel() * tensor.element_size())
        return real(tensor, *args, **how)

    with mock.patch.object(torch.distributed, "all_reduce", noted):
        TokenTally(top_k=2, context=0).compute()
    return used, sizes


def test_layouts_are_compared_once(ranks: Ranks) -> None:
    """One collective of 112 bytes before a tally's first read-out; then two for each, also for its copies."""
    used, sizes = ranks.run(handshakes)[0]
    assert used == [3, 2, 2, 3]
    assert sizes == [112, 15_552, 96]


def monitored(rank: int, where: str) -> tuple[list[str], int]:
    """Three steps of a loop that catches what is raised, where rank 1 has an extra more."""
    monitor = pplmon.Monitor(
        tally=TokenTally(extras=[pplmon.Entropy()] if rank else []), sinks=[Journal(f"{where}/{rank}")], alerts=[]
    )
    texts = []
    for step in range(3):
        monitor.observe(random_stats(step))
        try:
            monitor.step()
        except UnlikeLayouts as error:
            texts.append(f"step {step}: {error}")
    monitor.close()
    return texts, monitor.rank


def test_a_monitor_raises_at_the_first_read_out_and_keeps_what_it_counted(ranks: Ranks, tmp_path: Path) -> None:
    """On every rank at the same step, once; what each rank counts on is in its own journal."""
    (first, _), (second, _) = ranks.run(monitored, str(tmp_path))
    assert first == second and len(first) == 1 and first[0].startswith("step 0: ranks of one group count into unlike")
    alone = TokenTally()
    for step in range(3):
        alone.update(random_stats(step))
    for rank in range(2):
        (own,) = read_journal(tmp_path / str(rank) / f"pplmon.rank{rank}.jsonl")
        assert own["numbers"]["tokens"] == alone.report().tokens


def test_a_mark_that_differs_is_seen() -> None:
    """Of two hashes the maximum of one is not that of the other."""
    one, two = (TokenTally(top_k=k)._layout.mark(torch.device("cpu")) for k in (1, 2))
    same_layout.check(torch.maximum(one, one).tolist())
    with pytest.raises(UnlikeLayouts):
        same_layout.check(torch.maximum(one, two).tolist())
