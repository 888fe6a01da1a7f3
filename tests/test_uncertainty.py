"""``Uncertainty``: an interval from the spread between documents, and whether two passes differ."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pplmon
from pplmon import Monitor, TokenStats, TokenTally, Uncertainty
from pplmon.extras.interval import students_t
from tests.extras_cases import students_t as added_up
from tests.extras_reference import error_of_mean, mixed
from tests.models import loader, make_module
from tests.test_lightning import trainer_for, windows

pl = pytest.importorskip("pytorch_lightning")


def losses(seed: int = 0, rows: int = 30, length: int = 50, spread: float = 0.5) -> Tensor:
    """Rows that differ in their mean."""
    chance = torch.Generator().manual_seed(seed)
    return torch.rand(rows, length, generator=chance) * 3 + torch.randn(rows, 1, generator=chance).abs() * spread


def stats_of(nll: Tensor, targets: Tensor | None = None) -> TokenStats:
    return TokenStats.from_losses(nll, torch.zeros(nll.shape, dtype=torch.long) if targets is None else targets)


def measured(*batches: tuple[Tensor, dict[str, Tensor]]) -> Any:
    """The report of a tally that was given these losses and ids."""
    tally = TokenTally(extras=[Uncertainty()])
    for nll, data in batches:
        targets = data.pop("targets", None)
        tally.update(stats_of(nll, targets), **data)
    return tally.report()


def apart(count: int, start: int = 0) -> Tensor:
    """Sample ids of which no two are put into one bucket."""
    found: dict[int, int] = {}
    while len(found) < count:
        found.setdefault(mixed(start) % 256, start)
        start += 1
    return torch.tensor(list(found.values()))


def by_rows(nll: Tensor) -> dict[Any, tuple[int, float]]:
    return {row: (len(values), math.fsum(values)) for row, values in enumerate(nll.double().tolist())}


def test_the_interval_is_that_of_the_documents() -> None:
    """As long as no two share a bucket."""
    nll = losses(rows=10)
    mu, error = error_of_mean(by_rows(nll))
    report = measured((nll, {"sample_ids": apart(10)}))
    assert report.uncertainty_is_lower_bound == 0
    assert report.perplexity_high == pytest.approx(math.exp(mu + added_up(9) * error), rel=2e-3)
    assert report.perplexity_low == pytest.approx(math.exp(mu - added_up(9) * error), rel=2e-3)


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 9, 30, 255])
def test_students_t(freedom: int) -> None:
    """Within 0.2 % of the sum of its density; from 12.7 down to 1.97."""
    exact = {1: 12.7062, 2: 4.3027}.get(freedom) or added_up(freedom)
    assert students_t(freedom) == pytest.approx(exact, rel=2e-3)


def test_a_document_is_one_wherever_its_parts_are() -> None:
    """In another row, batch or place in the row, as long as its ids say so; and a document is not its sample's other ones."""
    nll = losses(rows=8, length=40)
    samples, documents = torch.arange(8), (torch.arange(40) >= 15).long().expand(8, 40)
    whole = measured((nll, {"sample_ids": samples, "document_ids": documents}))
    left, right = (
        {"sample_ids": samples, "document_ids": documents[:, part]} for part in (slice(0, 22), slice(22, 40))
    )
    cut = measured((nll[:, 22:], right), (nll[:, :22], left))
    rows = measured((nll, {"sample_ids": samples}))
    for name in ("perplexity_low", "perplexity_high"):
        assert cut.numbers[name] == whole.numbers[name] != rows.numbers[name]


def test_without_samples_a_document_is_known_by_its_text() -> None:
    """The same text is the same document wherever it stands in a row; other targets, or another order of them, are another."""
    text = torch.randint(50, (6, 20), generator=torch.Generator().manual_seed(1))
    nll, one_document = losses(rows=6, length=20, seed=2), torch.zeros(6, 20).long()

    def given(texts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return nll, {"targets": texts, "document_ids": one_document}

    # Two texts side by side in each row: with other neighbours, and at another place.
    side_by_side = {"targets": text.view(3, 40), "document_ids": (torch.arange(40) // 20).expand(3, 40) + 7}
    once, packed = measured(given(text)), measured((nll.view(3, 40), side_by_side))
    assert once.perplexity_high == packed.perplexity_high
    for others in (text.flip(1), text + 1):
        assert measured(given(others)).perplexity_high == pytest.approx(once.perplexity_high)
        twelve = measured(given(text), given(others))
        assert twelve.perplexity_high < once.perplexity_high - 0.01  # twelve are surer than six
    twice = measured(given(text), given(text))
    assert twice.perplexity_high == pytest.approx(once.perplexity_high)  # and the same six twice are six


def test_rows_alone_are_a_lower_bound() -> None:
    """Documents of four rows: the rows' interval is half as wide, and says so; and there is no change to compare."""
    nll = losses(rows=60, length=30, spread=2.0).repeat_interleave(4, 0)
    texts = torch.randint(10_000, nll.shape)
    known = measured((nll, {"sample_ids": torch.arange(60).repeat_interleave(4)}))
    bare = measured((nll, {"targets": texts}))
    assert (known.uncertainty_is_lower_bound, bare.uncertainty_is_lower_bound) == (0, 1)
    widths = [math.log(report.perplexity_high / report.perplexity_low) for report in (known, bare)]
    assert 0.4 < widths[1] / widths[0] < 0.7
    with_ids = measured((nll, {"targets": texts, "input_ids": texts}))
    assert with_ids.uncertainty_is_lower_bound == 0


def test_one_document_has_no_interval() -> None:
    """None, as it cannot be had."""
    report = measured((losses(rows=1), {"sample_ids": torch.arange(1)}))
    assert report.perplexity_low is None and report.perplexity_high is None


def passes(monitor: Monitor, *all_losses: Tensor, **data: Tensor) -> list[Any]:
    """The reports of validation passes over the same targets."""
    reports = []
    for nll in all_losses:
        with monitor.stage("val") as val:
            monitor.observe(stats_of(nll, torch.arange(nll.numel()).view(nll.shape)), **data)
        reports.append(val.report)
    return reports


def new_monitor() -> Monitor:
    return Monitor(alerts=[], tally=TokenTally(extras=[Uncertainty()]))


def test_a_change_has_the_error_of_its_differences() -> None:
    """Bucket by bucket, which is far below that of either mean; from the second pass on."""
    before = losses(rows=12, spread=3.0)
    after = before - 0.1 + 0.02 * losses(rows=12, seed=5)
    reports = passes(new_monitor(), before, after, sample_ids=apart(12))
    mu, error = error_of_mean(by_rows((after - before).double() + 1))
    assert reports[0].cross_entropy_change is None and reports[0].cross_entropy_change_error is None
    assert reports[1].cross_entropy_change == pytest.approx(mu - 1, abs=1e-6)
    assert reports[1].cross_entropy_change_error == pytest.approx(error, rel=1e-3)
    assert error < 0.1 * error_of_mean(by_rows(after))[1]
    same = passes(new_monitor(), before, before, sample_ids=torch.arange(12))
    assert same[1].cross_entropy_change == same[1].cross_entropy_change_error == 0.0


def test_a_pass_over_other_documents_is_compared_as_such() -> None:
    """The errors of both means add; none is left out for want of a partner."""
    one, two = losses(rows=12), losses(rows=9, seed=3)
    monitor = new_monitor()
    ids = apart(21)
    passes(monitor, one, sample_ids=ids[:12])
    report = passes(monitor, two, sample_ids=ids[12:])[0]
    (mu, first), (nu, second) = error_of_mean(by_rows(one)), error_of_mean(by_rows(two))
    assert report.cross_entropy_change == pytest.approx(nu - mu, abs=1e-6)
    assert report.cross_entropy_change_error == pytest.approx(math.hypot(first, second), rel=0.05)


def test_rows_alone_are_not_compared() -> None:
    """Nor a pass with the last one that had ids."""
    monitor = new_monitor()
    passes(monitor, losses(rows=12), sample_ids=torch.arange(12))
    for report in passes(monitor, losses(rows=12), losses(rows=12)):
        assert report.cross_entropy_change is None and report.perplexity_high is not None


def test_a_resumed_run_compares_with_the_pass_before_the_checkpoint() -> None:
    """Stage by stage; a window of training is no pass."""
    monitor, whole = new_monitor(), new_monitor()
    one, two = losses(rows=12), losses(rows=12, seed=1)
    data = {"sample_ids": torch.arange(12)}
    passes(monitor, one, **data)
    expected = passes(whole, one, two, **data)[1]
    resumed = new_monitor()
    resumed.load_state_dict(monitor.state_dict())
    resumed.observe(stats_of(one), **data)
    resumed.step()
    with resumed.stage("test") as test:
        resumed.observe(stats_of(one), **data)
    found = passes(resumed, two, **data)[0]
    train: Any = resumed.close()
    assert found.numbers["cross_entropy_change"] == expected.numbers["cross_entropy_change"] != 0
    assert found.numbers["cross_entropy_change_error"] == expected.numbers["cross_entropy_change_error"] > 0
    assert test.report is not None and test.report.numbers["cross_entropy_change"] is None
    assert train.cross_entropy_change is None and train.perplexity_high is not None


def test_totals_are_compared_by_hand() -> None:
    """Without a monitor: the totals of one pass are given to the report of the next."""
    tally = TokenTally(extras=[Uncertainty()])
    tally.update(stats_of(losses(rows=12)), sample_ids=torch.arange(12))
    before = tally.totals()
    tally.reset()
    tally.update(stats_of(losses(rows=12) - 0.05), sample_ids=torch.arange(12))
    report: Any = tally.totals().report(step=7, stage="val", before=before)
    assert report.cross_entropy_change == pytest.approx(-0.05, abs=2e-3)


def test_a_checkpoint_can_be_chosen_by_the_upper_end(tmp_path: Path) -> None:
    """Lightning's ModelCheckpoint monitors it; several loaders are compared each with itself."""
    saver = pl.callbacks.ModelCheckpoint(
        tmp_path / "c", monitor="val/perplexity_high", save_top_k=-1, filename="{step}"
    )
    tally = TokenTally(extras=[Uncertainty()])
    trainer = trainer_for(
        tmp_path, pplmon.PerplexityMonitor(tally=tally), saver, max_epochs=3, enable_checkpointing=True
    )
    trainer.fit(make_module(pl.LightningModule), loader(), [loader(8, seed=1), loader(8, seed=2)])
    reports = [row["numbers"] for row in windows(tmp_path, "val")]
    assert sorted(score.item() for score in saver.best_k_models.values()) == sorted(
        r["perplexity_high"] for r in reports
    )
    assert ["cross_entropy_change" in r for r in reports] == [False, True, True]
    assert reports[2]["cross_entropy_change"] == pytest.approx(
        reports[2]["cross_entropy"] - reports[1]["cross_entropy"], abs=1e-9
    )
    first = [row["numbers"] for row in windows(tmp_path, "val/dataloader_idx_0")]
    assert first[1]["cross_entropy_change"] == pytest.approx(
        first[1]["cross_entropy"] - first[0]["cross_entropy"], abs=1e-9
    )


def test_parts_of_sequences_are_refused() -> None:
    """Under context parallelism a rank has no whole sequence; what looks at neighbours would be wrong, and says so."""
    for extra in (Uncertainty(), pplmon.Rollouts(), pplmon.Novelty()):
        with pytest.raises(ValueError, match=r"\(\) needs whole sequences, and with context_parallel=True"):
            TokenTally(extras=[extra], context_parallel=True)
    TokenTally(extras=[pplmon.Positions(), pplmon.Calibration()], context_parallel=True)
