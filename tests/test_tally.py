"""``TokenTally``: every number against the reference, addresses of the worst, and the life of a torchmetrics Metric."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pplmon import Entropy, Report, TokenStats, TokenTally, Totals, token_stats
from pplmon.report import layout
from pplmon.tally.doing import Doing
from pplmon.tally.readout import Group, ReadOut
from tests.reference import assert_numbers, numbers_of, tokens_of


def batch(rows: int = 6, length: int = 40, vocab: int = 23, sharp: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits of a half-trained model and its targets, with ignored, impossible and non-finite ones among them."""
    logits = torch.randn(rows, length, vocab) * sharp
    targets = torch.where(torch.rand(rows, length) < 0.5, logits.argmax(-1), torch.randint(vocab, (rows, length)))
    targets[torch.rand(rows, length) < 0.1] = -100
    targets[0, 3], targets[1, 4] = vocab, -7
    logits[2, 5], logits[3, 6, 2] = torch.nan, torch.inf
    return logits, targets


def losses(values: list[float] | Tensor, **how: Any) -> Totals:
    """Totals of losses in one row."""
    nll = torch.as_tensor(values, dtype=torch.float32)[None]
    tally = TokenTally(top_k=3, context=1)
    tally.update(TokenStats.from_losses(nll, torch.zeros_like(nll, dtype=torch.int64), **how))
    return tally.totals()


LAYOUTS = ("rows", "flat", "documents", "flat documents", "shift", "shift and documents")


# min_sequence_tokens: 1 counts every sequence, 12 some, 10000 none.
@pytest.mark.parametrize("least", [1, 12, 10000])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_number(layout: str, least: int) -> None:
    """All numbers over two updates agree with the reference, in every layout and with mask and bytes."""
    table = torch.randint(0, 5, (23,))
    tally = TokenTally(min_sequence_tokens=least, token_bytes=table, shift="shift" in layout)
    tokens = []
    for update in range(2):
        logits, targets = batch()
        mask = torch.rand(6, 40) < 0.9
        documents = (torch.rand(6, 40) < 0.08).cumsum(1) if "documents" in layout else None
        if tally.shift and documents is not None:  # an impossible target across a border is a question of its own
            targets[0, 3], targets[1, 4] = 1, 1
        if "flat" in layout:
            logits, targets, mask = logits.flatten(0, 1), targets.flatten(), mask.flatten()
            documents = None if documents is None else documents.flatten()
        tally.update(logits, targets, mask=mask, document_ids=documents)
        part = tokens_of(logits, targets, mask, documents, shift=tally.shift)
        tokens += [replace(t, sequence=t.sequence if t.sequence is None else (update, t.sequence)) for t in part]
    expected = numbers_of(tokens, 23, least, table.tolist())
    assert expected["nonfinite_tokens"] and expected["tokens"] > 300
    assert_numbers(dict(tally.report().numbers), expected)
    known = {k for k, v in expected.items() if v is not None}
    computed = tally.compute()
    assert computed.keys() == known
    assert_numbers({k: v.item() for k, v in computed.items()}, {k: expected[k] for k in known})


DISTRIBUTIONS = {
    "of a language model": lambda n: torch.distributions.Gamma(0.7, 0.35).sample((n,)),
    "over all magnitudes": lambda n: torch.exp2(torch.empty(n).uniform_(-19.9, 9.9)),
    "a few far out": lambda n: torch.where(torch.rand(n) < 0.004, 30.0 + torch.rand(n), torch.rand(n)),
    "all equal": lambda n: torch.full((n,), 2.718),
    "all at a bucket's edge": lambda n: torch.full((n,), 1.0),
    "two values": lambda n: torch.where(torch.arange(n) % 2 == 0, 1.0, 7.9),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
# 1 and 2: no neighbours. 99, 100, 101: around the first whole per cent. 1000: ⌈0.999·n⌉ is exact. 6007: prime.
@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 1000, 6007])
def test_quantiles_and_tails(name: str, count: int) -> None:
    """Quantiles are numpy's inverted_cdf within 1 %, and the worst per cent is the sorted one within 1 %."""
    x = DISTRIBUTIONS[name](count)
    report = losses(x).report()
    values = np.sort(x.double().numpy())
    for key, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
        want = float(np.quantile(values, q, method="inverted_cdf"))
        assert getattr(report, f"token_loss_{key}") == pytest.approx(want, rel=0.01), key
        assert getattr(report, f"token_loss_{key}") <= report.max_token_loss
    worst = values[-math.ceil(count / 100) :]
    assert report.worst_1pct_loss == pytest.approx(worst.mean(), rel=0.01)
    assert report.worst_1pct_share == pytest.approx(worst.sum() / values.sum(), rel=0.01)
    assert report.max_token_loss == values[-1]
    assert report.cross_entropy == pytest.approx(values.mean(), rel=1e-7)


def test_a_loss_beyond_the_cap_counts_as_the_cap() -> None:
    """From 2^10 nats on a token counts as 2^10 in sums and tails and is counted, while the maximum stays the true one."""
    report = losses([1.0, 1023.9999, 1024.0, 5000.0, 3e38]).report()
    assert report.capped_tokens == 3 and report.tokens == 5
    assert report.cross_entropy == pytest.approx((1 + 1023.9999 + 3 * 1024) / 5, rel=1e-7)
    assert report.token_loss_p999 == report.worst_1pct_loss == 1024
    assert report.max_token_loss == pytest.approx(3e38)
    assert report.perplexity == math.inf and report.inverse_perplexity == pytest.approx(0, abs=1e-300)  # no exception
    assert losses([700.0] * 4).report().perplexity == pytest.approx(math.exp(700))


def test_edges_of_rates() -> None:
    """Overconfident begins at p = 0.9 and needs a wrong token; above uniform begins above ln V, not at it."""
    stats = TokenStats.from_losses(
        torch.tensor([[math.log(8), math.log(8) * 1.001, 0.1, 5.0]]),
        torch.zeros(1, 4, dtype=torch.int64),
        correct=torch.tensor([[False, False, True, False]]),
        top_probability=torch.tensor([[0.9, 0.8999, 0.95, 0.99]]),
        vocab_size=8,
    )
    tally = TokenTally()
    tally.update(stats)
    report = tally.report()
    assert report.overconfident_error_rate == 0.5 and report.above_uniform_rate == 0.5 and report.token_accuracy == 0.25
    for vocab in (1000, 1218, 2794):  # the float32 logarithm of the last two is a little above the true one
        uniform = TokenTally()
        uniform.update(torch.zeros(2, 16, vocab), torch.zeros(2, 16, dtype=torch.int64))
        assert uniform.report().above_uniform_rate == 0
        assert uniform.report().relative_cross_entropy == pytest.approx(1)


def missing(tally: TokenTally) -> set[str]:
    """Which numbers are None; tokens_seen and duplicates are not a tally's to know."""
    return {k for k, v in tally.report().numbers.items() if v is None} - {"tokens_seen", "duplicate_sequences"}


def test_none_is_what_cannot_be_had() -> None:
    """Each missing piece takes exactly the numbers that need it, also when only one update of several lacks it."""
    nll, targets = torch.rand(2, 20), torch.zeros(2, 20, dtype=torch.int64)
    full = {"correct": targets == 0, "top_probability": nll, "vocab_size": 9}
    needs = {
        "correct": {"token_accuracy", "overconfident_error_rate"},
        "top_probability": {"overconfident_error_rate"},
        "vocab_size": {"relative_cross_entropy", "above_uniform_rate", "max_token_excess"},
    }
    for piece, names in needs.items():
        tally = TokenTally(token_bytes=[1])
        tally.update(TokenStats.from_losses(nll, targets, **full))
        assert missing(tally) == set()
        tally.update(TokenStats.from_losses(nll, targets, **{**full, piece: None}))
        assert missing(tally) == names, piece
        assert names.isdisjoint(tally.compute()) and names.isdisjoint(tally.report().as_dict())
    tally = TokenTally()
    tally.update(
        TokenStats.from_losses(
            nll.flatten(), targets.flatten(), **{k: v if k == "vocab_size" else v.flatten() for k, v in full.items()}
        )
    )
    assert missing(tally) == {"bits_per_byte", "sequences", "max_sequence_loss"}
    two = TokenTally(token_bytes=[1])
    for size in (9, 10):
        two.update(TokenStats.from_losses(nll, targets, **{**full, "vocab_size": size}))
    assert missing(two) == {"relative_cross_entropy", "max_token_excess"}  # there is no one V
    table = TokenTally(token_bytes=[1, 1])
    table.update(TokenStats.from_losses(nll, targets + 5, **full))
    assert missing(table) == {"bits_per_byte"}  # the table does not know the id


def test_no_valid_token_is_nan() -> None:
    """Without a valid token ratios, maxima and quantiles are NaN and counts are 0: before an update, and after an empty one."""
    for update in (False, True):
        tally = TokenTally(token_bytes=[1] * 23)
        if update:
            logits, targets = batch()
            tally.update(logits, torch.full_like(targets, -100))
        numbers = tally.report().numbers
        counts = {"nonfinite_tokens", "capped_tokens", "invalid_targets", "tokens", "sequences"}
        assert all(numbers[name] == 0 for name in counts)
        unknown = (
            set() if update else {"relative_cross_entropy", "above_uniform_rate", "max_token_excess"}
        )  # they need V
        assert all(numbers[name] is None for name in unknown)
        rest = set(numbers) - counts - unknown - {"tokens_seen", "duplicate_sequences"}
        assert all(math.isnan(numbers[name]) for name in rest), {k: numbers[k] for k in rest}
        assert tally.totals().empty and tally.report().worst == ()
    bad = losses([math.nan, math.inf])
    assert bad["nonfinite_tokens"] == 2 and not bad.empty and math.isnan(bad.report().cross_entropy)


def test_duplicates() -> None:
    """The sampler's repeats are a count where known and None where not."""
    tally = TokenTally()
    assert tally.report().duplicate_sequences is None
    tally.add_duplicates(0)
    assert tally.report().duplicate_sequences == 0
    tally.add_duplicates(3)
    assert tally.report().duplicate_sequences == 3


# Totals and Report: the waist.


def test_totals_add() -> None:
    """a + b are the totals of both, Totals() adds nothing, and unlike extras are refused."""
    logits, targets = batch()
    both, parts = TokenTally(), [TokenTally(), TokenTally()]
    for index, part in enumerate(parts):
        rows = slice(3 * index, 3 * index + 3)
        part.update(logits[rows], targets[rows], micro_batch=index)
        both.update(logits[rows], targets[rows], micro_batch=index)
    a, b = (part.totals() for part in parts)
    want = both.totals()
    assert str((a + b).report().as_dict()) == str((b + a).report().as_dict()) == str(want.report().as_dict())
    assert (a + b).token_rows == want.token_rows and (a + b).sequence_rows == want.sequence_rows
    assert a + Totals() == a == Totals() + a and sum([a, b], Totals()) == a + b
    with pytest.raises(ValueError, match="unlike extras"):
        a + replace(b, extra_sums=(1, 0, 0, 0), extras=(Entropy(),))


def test_report_is_attributes_and_a_mapping() -> None:
    """report.x and report.numbers["x"] are one thing; unknown names say what there is; NaN and inf are kept from loggers."""
    report = Report(step=7, numbers={"cross_entropy": 2.0, "perplexity": math.inf, "mine/x": 3, "tokens": math.nan})
    assert report.cross_entropy == report.numbers["cross_entropy"] == 2.0
    assert report.token_accuracy is None and report.numbers["token_accuracy"] is None
    assert getattr(report, "mine/x") == 3
    assert set(report.as_dict()) == {"cross_entropy", "perplexity", "mine/x", "tokens"}
    assert report.finite() == {"cross_entropy": 2.0, "mine/x": 3}
    with pytest.raises(AttributeError, match=r"no 'cross_entrpy'.*cross_entropy, perplexity"):
        _ = report.cross_entrpy
    with pytest.raises(KeyError, match="cross_entrpy"):
        report.numbers["cross_entrpy"]
    with pytest.raises(AttributeError):
        report.step = 8  # type: ignore[misc]


@pytest.mark.filterwarnings("ignore:pplmon.*reached its ceiling")
def test_saturation_stays_and_never_wraps() -> None:
    """Cells at the ceiling stay there: a tally at its limit reads its limit, not a negative number."""
    tally = TokenTally()
    logits, targets = batch()
    tally.update(logits, targets)
    tally.sums = torch.full_like(tally.sums, layout.CEILING)
    tally.histogram = torch.full_like(tally.histogram, layout.CEILING)
    for _ in range(3):
        tally.update(logits, targets)
    assert int(tally.histogram.min()) == int(tally.histogram.max()) == layout.CEILING
    for name in layout.SUMS:
        if not name.endswith("_fraction"):
            assert tally.totals()[name] == layout.CEILING, name
    report = tally.report()
    assert report.cross_entropy == pytest.approx(1) and all(
        v >= 0 for k, v in report.as_dict().items() if k != "max_token_excess"
    )


@pytest.mark.filterwarnings("ignore:pplmon.*reached its ceiling")
def test_many_ranks_at_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SUM over ranks cannot saturate, so that each gives at most its part: 64 ranks at the ceiling stay positive."""

    class Many(Group):
        size = property(lambda self: 64)  # type: ignore[assignment]

    def all_reduce(tensor: Tensor, op: Any, **how: Any) -> SimpleNamespace:
        if op == torch.distributed.ReduceOp.SUM:
            tensor.mul_(64)
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    tally = TokenTally()
    tally.update(*batch())
    one = tally.totals()
    many = ReadOut(tally.cells(), Many(), (), tally._layout, Doing()).totals()
    assert many["tokens"] == 64 * one["tokens"] and many["token_loss_bits"] == one["token_loss_bits"]
    tally.sums, tally.histogram = (
        torch.full_like(tally.sums, layout.CEILING),
        torch.full_like(tally.histogram, layout.CEILING),
    )
    many = ReadOut(tally.cells(), Many(), (), tally._layout, Doing()).totals()
    assert min(many.sums + many.histogram.buckets()) > 2**62 and many.report().cross_entropy == pytest.approx(1)


def test_fractions_carry() -> None:
    """Many losses whose fractions add past one nat give the exact sum, whatever the number of updates."""
    x = torch.rand(64, 32) * 0.999
    tally = TokenTally()
    for row in x:
        tally.update(TokenStats.from_losses(row[None], torch.zeros(1, 32, dtype=torch.int64)))
    totals = tally.totals()
    assert 0 <= totals["nll_fraction"] < 2**layout.FRACTION_BITS
    units = sum(round(v * 2**32) for v in x.flatten().tolist())
    assert (totals["nll_whole"] << 32) + totals["nll_fraction"] == units
    assert (totals["nll_whole"], x.numel()) == (units >> 32, totals["tokens"])


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"top_k": 0}, ValueError, "top_k.*at least 1.*0"),
        ({"min_sequence_tokens": 1.5}, ValueError, "min_sequence_tokens.*1.5"),
        ({"context": -1}, ValueError, "context.*-1"),
        ({"token_bytes": [1, -1]}, ValueError, "token_bytes"),
        ({"token_bytes": [0.5]}, ValueError, "token_bytes"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], text: str) -> None:
    """A setting that cannot be right is refused when it is given."""
    with pytest.raises(error, match=text):
        TokenTally(**settings)


def test_bad_updates_lose_nothing() -> None:
    """A call that does not fit names both shapes, and leaves what was counted."""
    logits, targets = batch()
    tally = TokenTally()
    tally.update(logits, targets)
    before = tally.totals()
    stats = token_stats(logits, targets)
    bad: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
        ((logits, targets[:2]), {}, ValueError, r"\(6, 40\).*\(2, 40\)"),
        ((logits,), {}, TypeError, "needs targets"),
        ((stats, targets), {}, TypeError, "already hold"),
        ((stats,), {"mask": targets == 0}, TypeError, "already hold"),
        ((stats,), {"document_ids": targets[0]}, ValueError, r"\(6, 40\).*\(40,\)"),
        ((stats,), {"document_ids": targets.float()}, TypeError, "document_ids.*float32"),
        ((stats,), {"sample_ids": targets}, ValueError, r"\[B\].*\(6, 40\)"),
        ((stats,), {"sample_ids": torch.rand(6)}, TypeError, "sample_ids.*float32"),
        ((stats,), {"step": -1}, ValueError, "step.*-1"),
        ((logits.flatten(0, 1), targets.flatten()), {"sample_ids": targets[:, 0]}, ValueError, "no rows"),
    ]
    for args, how, error, text in bad:
        with pytest.raises(error, match=text):
            tally.update(*args, **how)
    assert tally.totals() == before
