"""``Entropy``: the mean entropy of the predictions, against float64 and however the tokens are cut."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import pplmon
from pplmon import Entropy, TokenStats, TokenTally, token_stats
from pplmon.replay.read.columns import _ours
from pplmon.testing import assert_split_invariant


def batch() -> tuple[Tensor, Tensor]:
    """Logits [6, 20, 50], some of them masked, a non-finite row, and targets, some of them ignored or impossible."""
    logits = torch.randn(6, 20, 50) * torch.rand(6, 20, 1) * 8
    logits[..., 40:44] = -torch.inf
    logits[2, 3, 7] = torch.nan
    targets = torch.randint(40, (6, 20))
    targets[0, :4], targets[1, 5] = -100, 50
    return logits, targets


def expected(logits: Tensor, targets: Tensor) -> float:
    """The mean over valid tokens, in float64."""
    spread = torch.distributions.Categorical(logits=logits.double(), validate_args=False).entropy()
    valid = (targets >= 0) & (targets < 50) & ~logits.isnan().any(-1)
    return float(spread[valid].mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_agrees_with_float64(dtype: torch.dtype) -> None:
    logits, targets = batch()
    logits = logits.to(dtype)
    tally = TokenTally(extras=[Entropy()])
    tally.update(logits, targets)
    assert tally.report().mean_entropy == pytest.approx(expected(logits, targets), rel=1e-6)
    assert tally.compute()["mean_entropy"].item() == tally.report().as_dict()["mean_entropy"]


def test_known_entropies() -> None:
    """ln V where nothing is known, ln 2 between two, 0 where all is, and a draw's expected loss."""
    logits = torch.full((4, 8), -torch.inf)
    logits[0], logits[1, :2], logits[2, 3], logits[3] = 0.0, 5.0, 1.0, torch.randn(8)
    for row, nats in enumerate([math.log(8), math.log(2), 0.0]):
        tally = TokenTally(extras=[Entropy()])
        tally.update(logits[row : row + 1], logits[row : row + 1].argmax(-1))
        assert tally.report().mean_entropy == pytest.approx(nats, abs=1e-7)
    every, drawn = logits[3].expand(8, 8), TokenTally(extras=[Entropy()])
    drawn.update(every, torch.arange(8))
    losses = token_stats(every, torch.arange(8)).nll.double()
    assert drawn.report().mean_entropy == pytest.approx(float((losses * (-losses).exp()).sum()), rel=1e-6)


def test_any_cut_gives_the_same_integers() -> None:
    """In any order, in several tallies, saved and loaded, and sequence by sequence from the logits."""
    logits, targets = batch()
    whole, parts, other = (TokenTally(extras=[Entropy()]) for _ in range(3))
    whole.update(logits, targets)
    for row in torch.randperm(6).tolist():
        (parts if row % 2 else other).update(logits[row : row + 1], targets[row : row + 1])
    loaded = TokenTally(extras=[Entropy()])
    loaded.load_state_dict(other.state_dict())
    assert (parts.totals() + loaded.totals()).extra_sums == whole.totals().extra_sums
    assert_split_invariant(token_stats(logits, targets, entropy=True), lambda: TokenTally(extras=[Entropy()]))
    assert pickle.loads(pickle.dumps(whole)).report().mean_entropy == whole.report().mean_entropy


def test_each_entropy_is_rounded_once() -> None:
    """To 2^-32 nats, and both cells hold what they say."""
    entropy = torch.tensor([0.0, 2.0**-32, 1.5, 3.0 + 2.0**-16, 20.0])
    stats = TokenStats.from_losses(torch.zeros(5), torch.zeros(5, dtype=torch.long))
    tally = TokenTally(extras=[Entropy()])
    tally.update(replace(stats, entropy=entropy))
    tokens, unknown, upper, lower = tally.totals().extra_sums
    assert (tokens, unknown, lower) == (5, 0, 1) and upper == (24.5 + 2.0**-16) * 2**16
    assert tally.report().mean_entropy == (24.5 + 2.0**-16 + 2.0**-32) / 5


def test_none_where_it_is_not_known() -> None:
    """Of one token only, too; and NaN where there is no valid token."""
    logits, targets = batch()
    tally = TokenTally(extras=[Entropy()])
    assert math.isnan(tally.report().mean_entropy)
    tally.update(logits, torch.full_like(targets, -100))
    assert math.isnan(tally.report().mean_entropy)
    tally.update(logits, targets)
    assert tally.report().mean_entropy > 0
    tally.update(TokenStats.from_losses(torch.ones(1), torch.ones(1, dtype=torch.long)))
    assert tally.report().mean_entropy is None and "mean_entropy" not in tally.compute()
    unsure = TokenTally(extras=[Entropy()])
    stats = token_stats(logits, targets, entropy=True)
    assert stats.entropy is not None
    unsure.update(replace(stats, entropy=stats.entropy.index_fill(0, torch.tensor([30]), torch.nan)))
    assert unsure.report().mean_entropy is None


def test_it_is_measured_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other tally pays for it."""
    asked: list[bool] = []

    def spy(*arguments: object, **named: object) -> TokenStats:
        stats = token_stats(*arguments, **named)  # type: ignore[arg-type]
        asked.append(stats.entropy is not None)
        return stats

    monkeypatch.setattr("pplmon.tally.token_tally.token_stats", spy)
    for extras in ([], [Entropy()]):
        TokenTally(extras=extras).update(*batch())
    assert asked == [False, True]


def test_it_is_logged_and_watched() -> None:
    """With ``numbers="core"``, and by a rule."""
    alerts: list[pplmon.Alert] = []
    seen: dict[str, float] = {}

    class Keep(pplmon.sinks.Sink):
        def report(self, report: pplmon.Report, scalars: object) -> None:
            seen.update(scalars)  # type: ignore[call-overload]

    rule = pplmon.Above("mean_entropy", 0.1)
    tally = TokenTally(extras=[Entropy()])
    monitor = pplmon.Monitor(every_n_steps=1, sinks=[Keep()], alerts=[rule], on_alert=alerts.append, tally=tally)
    assert pplmon.Monitor(numbers=["mean_entropy"], alerts=[], tally=TokenTally(extras=[pplmon.Entropy()]))
    for make in (pplmon.Monitor, pplmon.PerplexityMonitor):
        with pytest.raises(
            ValueError, match=r"asks for mean_entropy.*tally=pplmon\.TokenTally\(extras=\[pplmon\.Entropy"
        ):
            make(numbers=["mean_entropy"])
    assert _ours("val/mean_entropy") == ("val", "mean_entropy")  # a log of it can be replayed
    logits, targets = batch()
    monitor.observe(logits, targets.clamp_max(49))
    monitor.step()
    monitor.close()
    assert seen["train/mean_entropy"] == pytest.approx(expected(logits, targets.clamp_max(49)), rel=1e-6)
    assert [alert.metric for alert in alerts] == ["mean_entropy"]
