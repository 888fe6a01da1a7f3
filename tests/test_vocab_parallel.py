"""A vocabulary cut over real gloo ranks measures as if it were whole, in one collective of a few bytes a token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pplmon import TokenTally, VocabShard, token_stats
from tests import vocab_tasks as tasks
from tests.ranks import Ranks
from tests.reference import assert_numbers, numbers_of, tokens_of
from tests.test_laws import watched

pytestmark = pytest.mark.ranks
# 1, 2: fewer ids than ranks, so that some have none. 7: uneven on any number of ranks. 1000: even on two and four. 4099:
# prime. 32000: a real tokenizer, and several chunks of rows on each rank.
VOCABULARIES = (1, 2, 7, 1000, 4099, 32000)
ONE = {"_allgather_base_": 1}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Ranks]]:
    """Two, three and four ranks, each started once, when first used."""
    folder: Path = tmp_path_factory.mktemp("vocab")
    with Ranks(2, folder) as two, Ranks(3, folder) as three, Ranks(4, folder) as four:
        yield {2: two, 3: three, 4: four}


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_equals_the_unsharded_result(started: dict[int, Ranks], size: int) -> None:
    """Ids, hits and flags exactly, losses as near to float64 as unsharded ones, and every rank the same bits."""
    first, *others = started[size].run(tasks.grid, VOCABULARIES, timeout=240.0)
    assert len(first) == len(VOCABULARIES) * 4 * (4 + 2) * 3
    assert all(other == first for other in others)


def test_small_losses_keep_their_digits(started: dict[int, Ranks]) -> None:
    """A confident, right token keeps a relative accuracy of 1e-6 when its sum lies on other ranks."""
    for got, want in started[3].run(tasks.small_losses)[0]:
        assert 1e-10 < want < 1e-2
        assert got == pytest.approx(want, rel=1e-6)


def test_one_collective_of_a_few_bytes(started: dict[int, Ranks]) -> None:
    """One gather, of 20 bytes a token and rank, with entropy 24; none where no vocabulary is cut."""
    for size in (2, 4):
        for found in started[size].run(tasks.traffic):
            for name in ("replicate", "rows", "no tokens"):
                assert found.pop(name) == ({}, 0)
            names, gathered = found.pop("gathered")
            assert sum(names.values()) == 1  # the count can see one
            assert gathered == 1000 / size * 8
            assert {name: names for name, (names, _) in found.items()} == dict.fromkeys(found, ONE)
            bytes_ = {name.removeprefix("DTensor ").removeprefix("shard "): given for name, (_, given) in found.items()}
            assert bytes_ == {
                "bfloat16": 20,
                "bfloat16 entropy": 24,
                "float32": 20,
                "float32 entropy": 24,
                "float64": 24,
                "float64 entropy": 28,
            }


def test_peak_memory(started: dict[int, Ranks]) -> None:
    """The peak over a rank's shard stays within 5 % of it."""
    for shard, peak, gathered in started[2].run(tasks.memory):
        assert peak <= 0.05 * shard
        assert gathered >= 2 * shard / 8  # of an eighth of the rows: the measurement would notice


def test_rows_and_vocabulary_both_cut(started: dict[int, Ranks]) -> None:
    """On a mesh of two dimensions each rank has the stats of its own rows."""
    found = started[4].run(tasks.two_dimensions)
    assert found[0] == found[1]
    assert found[2] == found[3] != found[0]


def test_captured_logits_are_fitted_to_their_targets(started: dict[int, Ranks]) -> None:
    """A DTensor [B·T, V] is viewed as [B, T, V] where it lies; one whose rows are cut fits this rank's own targets."""
    started[2].run(tasks.flattened)


def test_a_tally_counts_each_token_once(started: dict[int, Ranks]) -> None:
    """2 × 2 ranks, counted over the data-parallel ones: the numbers of one tally, from a DTensor and from plain shards."""
    answers = started[4].run(tasks.tallies)
    assert answers[0]["numbers"] == answers[1]["numbers"] == answers[2]["numbers"] == answers[3]["numbers"]
    every: list[Any] = []
    whole = TokenTally()
    for seed in range(4):
        logits, targets = tasks.whole(1000, torch.bfloat16, seed)
        every += tokens_of(logits, targets)
        whole.update(logits, targets, step=seed // 2)
    expected = whole.report()
    for answer in answers:
        assert answer["numbers"]["tokens"] == 4 * 21
        for numbers in (answer["numbers"], answer["monitor"]):
            assert numbers.keys() >= {"perplexity", "token_accuracy"}
            for name, value in expected.as_dict().items():
                assert numbers[name] == pytest.approx(value, rel=1e-6, nan_ok=True), name
        assert answer["view"] == pytest.approx(expected.perplexity, rel=1e-6)
        assert [row[0] for row in answer["worst"]] == pytest.approx([w.loss for w in expected.worst], rel=1e-6)
        assert [row[5:] for row in answer["worst"]] == [(w.target, w.predicted) for w in expected.worst]
    wanted = numbers_of(every, 1000)
    assert_numbers({name: answers[0]["numbers"].get(name) for name in ("cross_entropy", "token_accuracy")}, {
        name: wanted[name] for name in ("cross_entropy", "token_accuracy")
    })  # fmt: skip


def test_tokens_that_would_be_counted_twice_are_refused(started: dict[int, Ranks]) -> None:
    """From logits and from ready stats, whole, cut or joined; a rank alone counts them, and extras get no part for a whole."""
    for found in started[2].run(tasks.once_only):
        assert (found.pop("alone"), found.pop("raw")) == (21, None)
        assert found.keys() == {"logits", "stats", "rows", "joined", "monitor"}
        for text in found.values():
            assert "ranks [0, 1] hold parts of one vocabulary" in text
            assert 'process_group=mesh["dp"].get_group()' in text and "new_subgroups(1)[0]" in text


def test_ranks_that_do_not_measure_the_same_are_nan(started: dict[int, Ranks]) -> None:
    """The wrong group, or parts of unlike width: never a plausible number, and nobody hangs."""
    for other_targets, other_size in started[2].run(tasks.disagree):
        assert other_targets == [index == 3 for index in range(21)]
        assert all(other_size)


REFUSED = {
    "positions": r"ValueError: DTensor logits (3, 7, 100) have placements (Shard(dim=1),): .*none of these",
    "partial": r"Partial(sum) is none of these. Known are Shard on the last dimension",
    "global targets": r"this one holds (#, 7) of (3, 7), and targets are (3, 7); pass this rank's own rows",
    "spread targets": r"on mesh dimension 0 targets must be Replicate(), like the rows",
    "spread targets, plain logits": r"targets have placements (Shard(dim=0),) on a mesh that is not the logits'",
    "spread mask": r"mask must be Replicate()",
    "whole targets": r"on mesh dimension 0 targets must be Shard(0)",
    "other mesh": r"on a mesh that is not the logits'; pass targets.to_local()",
    "both": r"ValueError: vocab_shard is for plain tensors; logits are a DTensor",
    "width": r"(50 columns), and the logits are (3, 7, 100)",
    "stats": r"TypeError: TokenStats already hold targets and mask, and are whole: give those, and vocab_shard, to token_stats",
    "kernel": r"cut over ranks is measured by kernel='eager' or None, got 'triton'",
    "gap": r"side by side from 0 to 100 or beyond (padding), and these do not: rank 0 [0, 50), rank 1 [60, 110)",
    "overlap": r"rank 0 [0, 60), rank 1 [40, 100)",
    "short": r"vocabulary of 101 must lie side by side from 0 to 101",
    "sizes": r"the ranks [0, 1] give the sizes [99, 100]; size is the whole vocabulary",
    "no ids": r"has from 1 to 2^31 − 2 ids, got 0",
    "repr": r"size=100, ranks=[0, 1])",
}


def test_misuse_is_told(started: dict[int, Ranks]) -> None:
    """Every layout that is not known, and every place that cannot be, says what was expected and what came."""
    for rank, found in enumerate(started[2].run(tasks.refused)):
        assert found.keys() == REFUSED.keys()
        for name, text in REFUSED.items():
            start, *rest = text.replace("#", str(2 - rank)).split(".*")
            assert start in found[name] and all(part in found[name] for part in rest), (name, found[name])
    four = started[4].run(tasks.refused_on_four)
    assert all("cut over more than one mesh dimension" in found[0] for found in four)
    assert [found[1] == "nothing" for found in four] == [True, True, False, False]
    assert "rank 3 is not in the group" in four[3][1]


def test_without_ranks_a_shard_is_the_whole() -> None:
    """One process, torch.distributed not started: the same script runs, padding left out; a part alone is refused."""
    logits, targets = tasks.planted(1000, torch.float32, 2)
    padded = torch.nn.functional.pad(logits, (0, 24), value=math.nan)
    got = token_stats(padded, targets, vocab_shard=VocabShard(None, 0, 1024, 1000), entropy=True)
    tasks.check(got, token_stats(logits, targets, entropy=True), tasks.Truth(logits))
    TokenTally().update(got)
    place = VocabShard(None, 0, 1024, 1000)
    assert not watched(lambda: token_stats(padded, targets, vocab_shard=place, entropy=True)).waits  # law 4
    with pytest.raises(ValueError, match=r"side by side from 0 to 1000 .* rank 0 \[0, 500\)"):
        VocabShard(None, 0, 500, 1000)
    with pytest.raises(ValueError, match=r"ids 0 to 1024 \(1024 columns\), and the logits are \(3, 7, 1000\)"):
        token_stats(logits, targets, vocab_shard=VocabShard(None, 0, 1024, 1000))
