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
from pplmon.report import layout, own
from pplmon.sinks import Journal, read_journal
from pplmon.tally import UnlikeRanks, same_layout
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
    "order": (swapped, [{}, {}], "names or their order (22 sums and 10 maxima, hash "),
    "maxima": (one_more, [{}, {}], "22 sums and 11 maxima"),
    "an extra": (
        None,
        [{"extras": [pplmon.Entropy()]}, {}],
        "extras ({'Entropy()': Size(sums=4, maxima=0)} on rank 0; none on rank 1)",
    ),
    "another extra": (None, [{"extras": [Digits()]}, {"extras": [Letters()]}], "extras ({'Digits()'"),
    "rows": (
        None,
        [{"top_k": 3}, {"context": 1}],
        "top_k (3 on rank 0; 8 on rank 1), in columns of a row (24 on rank 0; 10 on rank 1)",
    ),
}


def told(rank: int, name: str, how: str) -> list[str]:
    """What a rank is told when it reads a tally out, twice."""
    patch, settings, _ = UNLIKE[name]
    texts = []
    with patch(rank) if patch else nullcontext():
        tally = TokenTally(**settings[rank])
        tally.update(random_stats(rank))
        for _ in range(2):
            with pytest.raises(UnlikeRanks) as caught:
                getattr(tally, how)()
            texts.append(str(caught.value))
    return texts


@pytest.mark.parametrize("how", ["report", "compute"])
@pytest.mark.parametrize("name", UNLIKE)
def test_unlike_layouts_raise_the_same_error_on_every_rank(ranks: Ranks, name: str, how: str) -> None:
    """Another order, other names, other sizes: each time, and at once."""
    first, second = ranks.run(told, name, how)
    assert first == second and len(first) == 2
    assert first[0].startswith("ranks of one group differ in ") and UNLIKE[name][2] in first[0]
    assert first[0].endswith("Give every rank the same settings and the same version of pplmon.")


def mixed_up(rank: int) -> list[str]:
    """Both ranks have compared two layouts, and then read out one on this rank and the other on that."""
    tallies = [TokenTally(extras=[Digits()]), TokenTally(extras=[Letters()])]
    for tally in tallies:
        tally.report()
    with pytest.raises(UnlikeRanks) as caught:
        tallies[rank].compute()
    return [str(caught.value), str(tallies[0].report().tokens)]


def test_every_read_out_carries_the_hash(ranks: Ranks) -> None:
    """What was alike at first is compared again with the maxima; then the ranks go on."""
    first, second = ranks.run(mixed_up)
    assert first == second and "differ in extras" in first[0] and first[1] == "0"


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
    """One collective of 16 bytes before a tally's first read-out; then two for each, also for its copies."""
    used, sizes = ranks.run(handshakes)[0]
    assert used == [3, 2, 2, 3]
    assert sizes == [16, 15_552, 144]


def test_the_page_gives_the_bytes_that_a_step_sends() -> None:
    """The MAX of docs/scaling.md is the tally's of 144 bytes and the slots of the user's own numbers."""
    page = (Path(__file__).parent.parent / "docs/scaling.md").read_text(encoding="utf-8")
    assert all(words in page for words in ("15,552 + 280,", "16 + 48 of the 280", "136 of the 280"))
    assert 8 * len(layout.MAXIMA) + 16 + 48 == 144 and 144 + 8 * (own.MOST_NAMES + 1) == 280


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
        except UnlikeRanks as error:
            texts.append(f"step {step}: {error}")
    monitor.close()
    return texts, monitor.rank


def test_a_monitor_raises_at_the_first_read_out_and_keeps_what_it_counted(ranks: Ranks, tmp_path: Path) -> None:
    """On every rank at the same step, once; what each rank counts on is in its own journal."""
    (first, _), (second, _) = ranks.run(monitored, str(tmp_path))
    assert first == second and len(first) == 1 and first[0].startswith("step 0: ranks of one group differ in extras")
    alone = TokenTally()
    for step in range(3):
        alone.update(random_stats(step))
    for rank in range(2):
        (own,) = read_journal(tmp_path / str(rank) / f"pplmon.rank{rank}.jsonl")
        assert own["numbers"]["tokens"] == alone.report().tokens and own["ranks_missing"] == 1


def told_of_long_settings(rank: int) -> dict[int, dict[str, str]]:
    """What two ranks tell each other of a setting, and of one that is cut."""
    from pplmon.tally.ranks import Group

    text = same_layout._shown("x" * 200 + str(rank))
    return same_layout.tell(Group(), torch.device("cpu"), {"does": str(rank), "long": text})


def test_a_long_setting_is_cut_and_still_differs(ranks: Ranks) -> None:
    """It ends in a digest."""
    first, second = ranks.run(told_of_long_settings)
    assert first == second and [first[rank]["does"] for rank in (0, 1)] == ["0", "1"]
    assert first[0]["long"][:100] == first[1]["long"][:100] and first[0]["long"] != first[1]["long"]


def test_many_ranks_are_listed_in_part() -> None:
    """An error of thousands of ranks can be read."""
    said = same_layout.by_value({rank: str(rank == 3) for rank in range(20)})
    assert said == "False on ranks 0, 1, 2, 4, 5, 6, 7, 8 and 11 more; True on rank 3"
