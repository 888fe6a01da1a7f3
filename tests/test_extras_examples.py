"""What each extra answers, on examples small enough to be seen through."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pplmon
from pplmon import Monitor, Report, TokenStats, TokenTally
from pplmon.extras.base import Extra
from tests.extras_cases import real_text

IGNORED = -100


def report_of(extra: Extra, nll: Any, targets: Any, shift: bool = False, **data: Any) -> Any:
    """The report of one batch of losses."""
    losses, ids = torch.as_tensor(nll, dtype=torch.float32), torch.as_tensor(targets)
    more = {name: torch.as_tensor(value) for name, value in data.items() if name not in ("correct", "top_probability")}
    known = {name: torch.as_tensor(data[name]) for name in ("correct", "top_probability") if name in data}
    tally = TokenTally(extras=[extra], shift=shift)
    tally.update(TokenStats.from_losses(losses, ids, **known), **more)
    return tally.report()


# Novelty.


def test_a_name_is_new_once() -> None:
    """Of "a b a c b" three are new, and two have occurred."""
    report = report_of(pplmon.Novelty(), [[1.0, 2.0, 3.0, 6.0, 5.0]], [[7, 8, 7, 9, 8]])
    assert (report.novel_share, report.seen_share) == (0.6, 0.4)
    assert (report.novel_cross_entropy, report.seen_cross_entropy) == (3.0, 4.0)


def test_what_was_read_counts_and_what_was_ignored_does_not() -> None:
    """A masked target was read, an ignored one was not; inputs that were given say themselves what was read."""
    one = [[1.0, 1.0, 1.0, 1.0]]
    assert report_of(pplmon.Novelty(), one, [[5, 5, 6, 6]]).seen_share == 0.5
    tally = TokenTally(extras=[pplmon.Novelty()])
    ids, logits = torch.tensor([[5, 5, 6, 6]]), torch.zeros(1, 4, 9)
    tally.update(logits, ids, mask=torch.tensor([[False, True, False, True]]))
    assert tally.report().numbers["seen_share"] == 1.0
    assert report_of(pplmon.Novelty(), one, [[IGNORED, 5, IGNORED, 6]]).seen_share == 0.0
    inputs = [[5, 1, 1, 6]]  # at the logits' column and before
    assert report_of(pplmon.Novelty(), one, [[IGNORED, 5, IGNORED, 6]], input_ids=inputs).seen_share == 1.0
    assert report_of(pplmon.Novelty(), one, [[6, 6, 6, IGNORED]], input_ids=inputs).seen_share == 0.0


def test_a_new_document_begins_anew() -> None:
    """The same id in the document before is not in this one."""
    one = [[1.0] * 6]
    assert report_of(pplmon.Novelty(), one, [[5, 6, 5, 5, 6, 6]]).seen_share == pytest.approx(4 / 6)
    packed = report_of(pplmon.Novelty(), one, [[5, 6, 5, 5, 6, 6]], document_ids=[[0, 0, 0, 1, 1, 1]])
    assert packed.seen_share == pytest.approx(2 / 6)


def test_huge_ids_do_not_collide_with_small_ones() -> None:
    """Ids are those of a vocabulary; two of 0 to 2^32 − 2 are never taken for one, nor over documents."""
    targets = torch.tensor([[2**31, 0, 2**31, 2**32 - 2, 0, 1]])
    report = report_of(pplmon.Novelty(), torch.ones(1, 6), targets, document_ids=[[0, 0, 0, 1, 1, 1]])
    assert report.seen_share == pytest.approx(1 / 6)


# Rollouts.


@pytest.mark.parametrize("shift", [False, True])
def test_a_rollout_matches_where_generation_does(shift: bool) -> None:
    """Really generate, greedily, from every start of real text: what matches h tokens is what the teacher-forced pass says."""
    batch = real_text(shift)
    table = dict(zip(batch.data["input_ids"].flatten().tolist(), batch.logits.argmax(-1).flatten().tolist()))
    tally = TokenTally(extras=[pplmon.Rollouts()], shift=shift)
    tally.update(batch.logits, batch.targets, document_ids=batch.data["document_ids"])
    starts, matches = dict.fromkeys((1, 2, 4, 8, 16), 0), dict.fromkeys((1, 2, 4, 8, 16), 0)
    for inputs, targets, documents in zip(
        *(x.tolist() for x in (batch.data["input_ids"], batch.targets, batch.data["document_ids"]))
    ):
        for start in range(int(shift), len(targets)):
            for h in starts:
                wanted = targets[start : start + h]
                read = documents[
                    start - int(shift) : start + h
                ]  # a shifted target is not to be read from another document
                if len(wanted) == h and len(set(read)) == 1:
                    starts[h] += 1
                    matches[h] += generated(table, inputs[start - int(shift)], h) == wanted
    numbers = tally.report().numbers
    for h in starts:
        assert starts[h] > 0 and numbers[f"rollout_match_{h}"] == matches[h] / starts[h]
    assert numbers["rollout_match_1"] == tally.report().token_accuracy and matches[4] > 0


def generated(table: dict[int, int], last: int, count: int) -> list[int]:
    """Go on greedily; a byte that the text has only at its end has no successor."""
    found: list[int] = []
    for _ in range(count):
        last = table.get(last, -1)
        found.append(last)
    return found


def test_errors_that_cluster_are_seen() -> None:
    """Half of the tokens are hit in both; in a row, sixteen of them match eight, and scattered, none matches two."""
    block, scattered = torch.arange(32) < 16, torch.arange(32) % 2 == 0
    ones, targets = torch.ones(1, 32), torch.zeros(1, 32).long()
    reports = [report_of(pplmon.Rollouts(), ones, targets, correct=hits[None]) for hits in (block, scattered)]
    assert [r.rollout_match_1 for r in reports] == [0.5, 0.5]
    assert reports[0].rollout_match_8 == 9 / 25 and reports[1].rollout_match_2 == 0
    assert reports[0].mean_hit_run == sum(range(17)) / 32 and reports[1].mean_hit_run == 0.5


def test_no_start_is_followed_by_so_many() -> None:
    """Sequences of 8 have no 16 in a row: NaN, which no logger is sent."""
    report = report_of(pplmon.Rollouts(), torch.ones(2, 8), torch.zeros(2, 8).long(), correct=torch.ones(2, 8).bool())
    assert report.rollout_match_8 == 1.0 and math.isnan(report.rollout_match_16)
    assert "rollout_match_16" not in report.finite()


# Calibration.


def sure(count: int, seed: int, excess: float = 0.0, waves: float = 0.0) -> tuple[Tensor, Tensor]:
    """Predictions that are right as often as they say; less often by ``excess``; in turn more and less often by ``waves``."""
    chance = torch.Generator().manual_seed(seed)
    top = torch.rand(1, count, generator=chance) * 0.98 + 0.01
    turn = waves * (1 - 2 * ((top * 20).floor() % 2))
    return top, torch.rand(1, count, generator=chance) < top - excess + turn


def calibrated(top: Tensor, hits: Tensor) -> Any:
    zeros = torch.zeros(top.shape).long()
    return report_of(pplmon.Calibration(), torch.ones_like(top), zeros, correct=hits, top_probability=top)


@pytest.mark.parametrize(("excess", "waves", "error"), [(0.0, 0.0, 0.0), (0.1, 0.0, 0.1), (0.0, 0.1, 0.1)])
def test_the_error_is_that_of_twenty_bins(excess: float, waves: float, error: float) -> None:
    """In float64, over 40,000 tokens; it sees what is too sure here and not sure enough there, where the signed gap is 0."""
    top, hits = sure(40_000, 0, excess, waves)
    report = calibrated(top, hits)
    bins = (top.double() * 20).floor().long().flatten()
    gaps = [abs(float((hits.double() - top.double()).flatten()[bins == b].sum())) for b in range(20)]
    assert report.calibration_error == pytest.approx(sum(gaps) / 40_000, abs=1e-6)
    assert report.calibration_error == pytest.approx(error, abs=0.015)
    assert report.overconfidence == pytest.approx(float(top.double().mean() - hits.double().mean()), abs=1e-9)
    assert report.overconfidence == pytest.approx(excess, abs=0.01)


@pytest.mark.parametrize("count", [29_999, 30_000])
def test_too_few_tokens_have_no_error(count: int) -> None:
    """Below 30,000 it would be chance; the signed gap has no such bias, and is there."""
    top, hits = sure(count, 2)
    report = calibrated(top, hits)
    assert (report.calibration_error is None) == (count < 30_000) and report.overconfidence is not None


def test_the_bins_are_a_reliability_diagram() -> None:
    """From the least sure to the surest, a probability of 1 in the last; an empty bin is NaN."""
    extra = pplmon.Calibration()
    top, hits = torch.tensor([[0.0, 0.12, 0.14, 1.0]]), torch.tensor([[False, True, False, True]])
    tally = TokenTally(extras=[extra])
    tally.update(TokenStats.from_losses(torch.ones(1, 4), torch.zeros(1, 4).long(), correct=hits, top_probability=top))
    bins = extra.bins(tally.totals().extra_sums)
    assert [b.tokens for b in bins] == [1, 0, 2, *[0] * 16, 1]
    assert bins[2].accuracy == 0.5 and bins[2].confidence == pytest.approx(0.13) and bins[19] == (1, 1.0, 1.0)
    assert math.isnan(bins[1].accuracy) and math.isnan(bins[1].confidence)


# Groups.


def grouped(nll: Any, ids: Any, names: tuple[str, ...] = ("web", "code"), least: int = 1) -> Any:
    losses = torch.as_tensor(nll, dtype=torch.float32)
    return report_of(pplmon.Groups(names, least), losses, torch.zeros(losses.shape).long(), group_ids=ids)


def test_each_group_counts_once_in_the_macro_perplexity() -> None:
    """However large; of a row, or of each token."""
    report = grouped([[1.0, 1.0], [1.0, 1.0], [4.0, 2.0]], [0, 0, 1])
    assert report.numbers["group/web/cross_entropy"] == 1.0 and report.numbers["group/code/cross_entropy"] == 3.0
    assert report.numbers["group/code/tokens"] == 2 and report.numbers["group/code/max_token_loss"] == 4.0
    assert report.macro_perplexity == pytest.approx(math.exp(2.0)) and report.worst_group_cross_entropy == 3.0
    assert report.cross_entropy == pytest.approx(10 / 6)
    by_token = grouped([[1.0, 3.0], [1.0, -0.0]], [[0, 1], [0, -1]])
    assert by_token.macro_perplexity == pytest.approx(math.exp(2.0))


def test_small_groups_are_not_compared() -> None:
    """The noise of a few tokens would win; None where no group is large enough."""
    nll, ids = [[1.0] * 5, [9.0] * 5], [[0, 0, 0, 0, 0], [1, 1, -1, -1, -1]]
    assert grouped(nll, ids, least=3).worst_group_cross_entropy == 1.0
    assert grouped(nll, ids, least=2).worst_group_cross_entropy == 9.0
    none = grouped(nll, ids, least=6)
    assert none.worst_group_cross_entropy is None and none.macro_perplexity is None
    assert none.numbers["group/code/cross_entropy"] == 9.0


@pytest.mark.parametrize("beyond", [2, 7])
def test_a_group_without_a_name_is_told(beyond: int) -> None:
    """A window that holds an id beyond the names has no numbers of groups, and one warning says why; the rest is there."""
    text = f"group_ids hold {beyond}, and the 2 names of Groups are those of 0 to 1; name every"
    with pytest.warns(RuntimeWarning, match=text):
        report = grouped([[1.0, 1.0, 1.0]], [[0, 1, beyond]])
    assert report.numbers["group/web/tokens"] is None and report.macro_perplexity is None
    assert report.cross_entropy == 1.0


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a/b"], [""]])
def test_names_have_to_fit_a_log_key(names: list[str]) -> None:
    """Of groups and of classes alike."""
    for make in (pplmon.Groups, lambda names: pplmon.TokenClasses([0], names)):
        with pytest.raises(ValueError, match=r"takes (at least one|each) name"):
            make(names)
    with pytest.raises(
        TypeError, match=r'Groups takes a list of names, got \'web\'; write Groups\(\["web", "code"\]\)'
    ):
        pplmon.Groups("web")


def test_an_alert_says_which_group_moved() -> None:
    """Groups in the train tally, and a rule for each: the alert's metric names the group."""
    names = ("web", "code")
    rules = [pplmon.Spike(f"group/{name}/cross_entropy") for name in names]
    alerts: list[pplmon.Alert] = []
    monitor = Monitor(alerts=rules, on_alert=alerts.append, tally=TokenTally(extras=[pplmon.Groups(names)]))
    chance = torch.Generator().manual_seed(0)
    for step in range(160):
        nll = torch.rand(4, 100, generator=chance) + 2
        nll[1] += 1.5 * (step >= 150)
        stats = TokenStats.from_losses(nll, torch.zeros(4, 100).long())
        monitor.observe(stats, group_ids=torch.tensor([0, 1, 0, 0]))
        monitor.step()
    monitor.close()
    assert alerts and {alert.metric for alert in alerts} == {"group/code/cross_entropy"}
    assert alerts[0].step in (150, 151) and "group/code/cross_entropy" in alerts[0].text


# Positions.


def test_a_part_bears_its_first_position() -> None:
    """0, 1, 2–3, 4–7, …; in a document counted from its beginning; what nothing is in has None."""
    nll = torch.arange(8.0)[None]
    report = report_of(pplmon.Positions(), nll, torch.zeros(1, 8).long())
    found = [report.numbers[f"position/{start}/cross_entropy"] for start in (0, 1, 2, 4, 8)]
    assert found == [0.0, 1.0, 2.5, 5.5, None]
    packed = report_of(pplmon.Positions(), nll, torch.zeros(1, 8).long(), document_ids=[[0, 0, 0, 0, 0, 1, 1, 1]])
    assert [packed.numbers[f"position/{start}/cross_entropy"] for start in (0, 1, 2, 4)] == [2.5, 3.5, 4.0, 4.0]


def test_positions_far_out() -> None:
    """As the batch gives them; the last part has all from 2^20 on."""
    positions = torch.tensor([[2**19, 2**20 - 1, 2**20, 2**40]])
    report = report_of(pplmon.Positions(), [[1.0, 3.0, 5.0, 7.0]], torch.zeros(1, 4).long(), position_ids=positions)
    assert report.numbers["position/524288/cross_entropy"] == 2.0
    assert report.numbers["position/1048576/cross_entropy"] == 6.0


def test_names_of_extras_are_known_to_rules() -> None:
    """With their ranges, before any tally has them; a typo is told."""
    with pytest.raises(ValueError, match="can never fire: position/64/token_accuracy lies between 0 and 1"):
        pplmon.Above("position/64/token_accuracy", 2)
    with pytest.raises(ValueError, match="did you mean novel_cross_entropy"):
        pplmon.Above("novel_crossentropy", 2)
    fired = pplmon.Above("class/name/max_token_loss", 3.0)(Report(3, "train", {"class/name/max_token_loss": 4.0}))
    assert fired is not None and fired.metric == "class/name/max_token_loss"
