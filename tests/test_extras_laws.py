"""The laws of tallies hold for every extra: any cut, ranks, checkpoints, no wait, no memory; and numbers are by definition."""

from __future__ import annotations

import gc
import io
import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

import pplmon
from pplmon import TokenStats, TokenTally, Totals, extras, token_stats
from pplmon.report.declared import fits
from pplmon.tally.count.numpy_or_torch import OnTorch
from pplmon.testing import assert_split_invariant, run_on_ranks
from tests import extras_reference as reference
from tests.extras_cases import CASES, all_extras, all_numbers, feed, real_text, tally_of
from tests.extras_reference import Batch, Numbers, random_batch, without
from tests.models import loader, make_module, rows
from tests.test_laws import watched
from tests.test_lightning import trainer_for, windows

BARE = ("document_ids", "input_ids", "sample_ids", "mask")
BATCHES: dict[str, Callable[[], Batch]] = {
    "everything given": lambda: random_batch(1),
    "shifted": lambda: random_batch(2, shift=True),
    "no input ids": lambda: without(random_batch(3), "input_ids"),
    "shifted, no input ids": lambda: without(random_batch(4, shift=True), "input_ids", "sample_ids"),
    "whole rows": lambda: without(random_batch(5), "document_ids"),
    "bare": lambda: without(random_batch(6), *BARE),
    "shifted and bare": lambda: without(random_batch(7, shift=True), *BARE),
    "positions given": lambda: without(random_batch(8, shift=True), position_ids=torch.randint(5000, (12, 40))),
    "groups of rows": lambda: without(random_batch(9, shift=True), group_ids=torch.arange(12) % 4 - 1),
    "real text": real_text,
    "real text, shifted": lambda: real_text(shift=True),
    "real text, bare": lambda: without(real_text(), *BARE),
}


def assert_same(report: pplmon.Report, expected: Numbers, off: float = 2e-6) -> None:
    """Counts and rates as they are; means within float32's rounding of one loss."""
    for name, want in expected.items():
        have: Any = report.numbers[name]
        if want is None or have is None:
            assert have is want, f"{name}: {have} instead of {want}"
        elif math.isnan(want):
            assert math.isnan(have), f"{name}: {have} instead of NaN"
        else:
            loose = 2e-3 if name in ("perplexity_low", "perplexity_high") else off  # t is within 0.2 %
            assert abs(have - want) <= loose * max(1.0, abs(want)), f"{name}: {have} instead of {want}"


def test_every_extra_has_a_case() -> None:
    """A new one is tried by all tests of this page."""
    assert {*CASES, "Entropy"} == set(extras.ALL)
    for name, (make, _) in CASES.items():
        assert type(make(30)) is extras.ALL[name] and getattr(pplmon, name) is extras.ALL[name]


@pytest.mark.parametrize("name", BATCHES)
def test_numbers_are_what_their_definition_gives(name: str) -> None:
    """Of all extras at once, whatever is given with the batch."""
    batch = BATCHES[name]()
    tally = tally_of(batch)
    feed(tally, batch, slice(None))
    expected = all_numbers(batch)
    declared = [number for extra in extras.ALL.values() for number in extra.declares]
    assert len(expected) > len(declared) - 3  # of Entropy, and of the pass before
    assert_same(tally.report(), expected)


@settings(max_examples=settings.default.max_examples // 3)
@given(seed=st.integers(0, 99), data=st.data())
def test_any_cut_gives_the_same_integers(seed: int, data: st.DataObject) -> None:
    """From logits, in any order, cut between sequences into batches, tallies, windows, and across a resume."""
    batch = random_batch(seed, shift=data.draw(st.booleans(), "shift"), length=24)
    whole = tally_of(batch)
    feed(whole, batch, slice(None))
    order = data.draw(st.permutations(range(12)), "order")
    cuts = sorted(data.draw(st.sets(st.integers(1, 11), max_size=11), "cuts"))
    tallies, window = [tally_of(batch), tally_of(batch)], Totals()
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, 12])):
        which = data.draw(st.integers(0, 1), "tally")
        feed(tallies[which], batch, order[start:stop], micro_batch=number)
        after = data.draw(st.sampled_from(["go on", "resume", "read out"]), "after")
        if after == "resume":
            tallies[which] = saved_and_loaded(tallies[which], tally_of(batch))
        elif after == "read out":
            window = window + tallies[which].totals()
            tallies[which].reset()
    found = tallies[0].totals() + (window + tallies[1].totals())
    for name in ("extra_sums", "extra_maxima"):
        assert getattr(found, name) == getattr(whole.totals(), name)
    assert repr(found.numbers()) == repr(whole.totals().numbers())


def saved_and_loaded(tally: TokenTally, fresh: TokenTally) -> TokenTally:
    """What a resumed run has in hand: a new tally with the state that went through a file."""
    file = io.BytesIO()
    torch.save(tally.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


def test_stats_are_split_invariant() -> None:
    """By the test kit that users get, too; of stats there are no logits to read."""
    batch = random_batch(3)
    stats = token_stats(batch.logits, batch.targets, mask=batch.data["mask"])
    assert_split_invariant(stats, lambda: tally_of(batch))


def possible(batch: Batch) -> Batch:
    """A batch without targets outside the vocabulary, which a monitor refuses."""
    return Batch(batch.logits, batch.targets.clamp_max(batch.logits.shape[-1] - 1), batch.shift, **batch.data)


def on_rank(rank: int, shift: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Count every second row, in two validation passes of a monitor that is saved and loaded between them."""
    batch = possible(random_batch(11, shift))
    tally = tally_of(batch)
    monitor = pplmon.Monitor(every_n_steps=1, alerts=[], tally=tally)
    rows = [row for row in range(12) if row % 2 == rank]
    reports = []
    for piece in (rows[:2], rows[2:]):
        data = {name: values[piece] for name, values in batch.data.items()}
        monitor.observe(batch.logits[piece], batch.targets[piece], **data)
        state, monitor = monitor.state_dict(), pplmon.Monitor(every_n_steps=1, alerts=[], tally=tally_of(batch))
        monitor.load_state_dict(state)
    monitor.step()
    report = monitor.close()
    assert report is not None
    reports.append(report)
    with monitor.stage("val") as val:
        data = {name: values[rows] for name, values in batch.data.items()}
        monitor.observe(batch.logits[rows], batch.targets[rows], **data)
    assert val.report is not None
    return tuple({name: repr(value) for name, value in r.numbers.items()} for r in (report, val.report))  # type: ignore[return-value]


@pytest.mark.ranks
@pytest.mark.parametrize("shift", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_ranks_give_what_one_does(shift: bool) -> None:
    """To the bit, in a window that goes through a monitor's checkpoint in its middle, and in a validation pass."""
    batch = possible(random_batch(11, shift))
    whole = tally_of(batch)
    feed(whole, batch, slice(None))
    expected = {name: repr(value) for name, value in whole.report().numbers.items()}
    del expected["tokens_seen"]
    for train, val in run_on_ranks(on_rank, 2, shift):
        for found in (train, val):
            assert {name: found[name] for name in expected} == expected


def test_no_update_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 4, with all extras, from logits and from stats, with all that may be given and with none of it."""
    monkeypatch.setattr(pplmon.tally.count.by_arrays, "arrays_on", OnTorch)
    for batch in (random_batch(1), random_batch(2, shift=True), without(random_batch(3), *BARE, "group_ids")):
        tally = tally_of(batch)
        for _ in range(2):
            watch = watched(lambda batch=batch, tally=tally: feed(tally, batch, slice(None)))
            assert watch.waits == [] and sum(watch.count.values()) > 100
        stats = token_stats(batch.logits, batch.targets, shift=batch.shift)
        assert watched(lambda tally=tally, stats=stats: tally.update(stats)).waits == []


def test_without_extras_nothing_is_asked_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same operators as a tally that has never heard of extras: none of those of this page."""
    monkeypatch.setattr(pplmon.tally.count.by_arrays, "arrays_on", OnTorch)
    batch = random_batch(1)
    plain, none, all_on = TokenTally(), TokenTally(extras=()), tally_of(batch)
    counts = [watched(lambda tally=tally: feed(tally, batch, slice(None))).count for tally in (plain, none, all_on)]
    assert counts[0] == counts[1] and counts[2].total() > counts[0].total() + 100


def test_nothing_logits_sized_is_kept() -> None:
    """When the caller lets go of the logits they are gone, and the states do not grow."""
    batch = random_batch(1)
    tally, logits = tally_of(batch), batch.logits.clone()
    storage = StorageWeakRef(logits.untyped_storage())
    size = sum(value.untyped_storage().nbytes() for value in tally.state_dict().values())
    tally.update(logits, batch.targets, **batch.data)
    del logits
    gc.collect()
    assert storage.expired()
    assert sum(value.untyped_storage().nbytes() for value in tally.state_dict().values()) == size < 40 * 1024


@pytest.mark.parametrize("name", CASES)
def test_nothing_counted_is_nan_and_a_count_is_0(name: str) -> None:
    """A window without a valid token, and one of which everything is ignored."""
    batch = random_batch(1)
    extra = CASES[name][0](30)
    for ignored in (False, True):
        tally = tally_of(batch, extra)
        if ignored:
            tally.update(batch.logits, torch.full_like(batch.targets, -100), **batch.data)
        own = [n for n in tally.report().numbers if any(fits(n, d.name) for d in extra.declares)]
        assert own
        for number in own:
            value = tally.report().numbers[number]
            assert value == 0 if number.endswith("/tokens") else value is not None and math.isnan(value), number


@pytest.mark.parametrize("name", ["Novelty", "Positions", "Rollouts", "Uncertainty"])
def test_a_flat_batch_has_no_sequences(name: str) -> None:
    """[N, V] gives None, of any such batch in the window; with document ids it gives what a row of them gives."""
    batch = random_batch(2)
    flat, extra = batch.logits[:1].flatten(0, 1), CASES[name][0](30)
    data = {n: v[:1] for n, v in batch.data.items() if n in ("document_ids", "input_ids", "mask")}
    row, line, neither = (tally_of(batch, extra) for _ in range(3))
    row.update(batch.logits[:1], batch.targets[:1], **data)
    line.update(flat, batch.targets[0], **{n: v[0] for n, v in data.items()})
    assert row.totals().extra_sums == line.totals().extra_sums
    neither.update(batch.logits[:1], batch.targets[:1], **data)
    neither.update(flat, batch.targets[0])
    given_numbers = {n: neither.report().numbers[n] for n in neither.report().numbers if n in line.report().numbers}
    own = {n: v for n, v in given_numbers.items() if any(fits(n, d.name) for d in extra.declares)}
    assert own and set(own.values()) == {None}


def test_what_is_not_known_is_none() -> None:
    """Losses alone: no argmax, no probability, no logits, no groups; what they are enough for is there."""
    batch = without(random_batch(1), "group_ids", "mask")
    good = token_stats(batch.logits, batch.targets)
    stats = TokenStats.from_losses(good.nll.view(12, 40), batch.targets, vocab_size=30)
    tally = tally_of(batch)
    tally.update(stats, **batch.data)
    numbers = tally.report().numbers
    none = {name for name, value in numbers.items() if value is None} - {"tokens_seen", "bits_per_byte"}
    assert none >= {"structure_perplexity", "content_perplexity", "class_accuracy", "class/odd/token_accuracy"}
    assert none >= {"rollout_match_1", "mean_hit_run", "calibration_error", "overconfidence", "mean_top_probability"}
    assert none >= {"group/web/tokens", "macro_perplexity", "worst_group_cross_entropy", "position/4/token_accuracy"}
    for name in (
        "novel_cross_entropy",
        "seen_share",
        "class/odd/cross_entropy",
        "position/4/cross_entropy",
        "perplexity_low",
    ):
        assert numbers[name] is not None and not math.isnan(numbers[name]), name


@settings(max_examples=40)
@given(seed=st.integers(0, 2**20), spread=st.floats(0.01, 20), vocab=st.integers(2, 60))
def test_the_chain_from_inverse_perplexity_to_the_top(seed: int, spread: float, vocab: int) -> None:
    """inverse_perplexity ≤ mean_target_probability ≤ mean_top_probability, whatever the model."""
    chance = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 30, vocab, generator=chance) * spread
    tally = TokenTally(extras=[pplmon.Calibration()])
    tally.update(logits, torch.randint(vocab, (4, 30), generator=chance))
    numbers: Any = tally.report().numbers
    assert numbers["inverse_perplexity"] <= numbers["mean_target_probability"] + 1e-6
    assert numbers["mean_target_probability"] <= numbers["mean_top_probability"] + 1e-6
    assert numbers["overconfidence"] == pytest.approx(numbers["mean_top_probability"] - numbers["token_accuracy"])


@settings(max_examples=40)
@given(seed=st.integers(0, 2**20), vocab=st.integers(2, 60), classes=st.integers(1, 5))
def test_structure_times_content_is_the_perplexity(seed: int, vocab: int, classes: int) -> None:
    """nll = nll_class + nll_within, of integers, so the product is exact; with one class all is content, with V none is."""
    batch = random_batch(seed % 1000, vocab=max(vocab, 6))
    vocab = batch.logits.shape[-1]
    chance = torch.Generator().manual_seed(seed)
    names = [str(number) for number in range(classes)]
    tally = tally_of(batch, pplmon.TokenClasses(torch.randint(classes, (vocab,), generator=chance), names))
    feed(tally, batch, slice(None))
    numbers: Any = tally.report().numbers
    product = numbers["structure_perplexity"] * numbers["content_perplexity"]
    assert product == pytest.approx(numbers["perplexity"], rel=1e-12)
    if classes == 1:
        assert numbers["structure_perplexity"] == pytest.approx(1.0, abs=1e-5) and numbers["class_accuracy"] == 1.0
    own = tally_of(batch, pplmon.TokenClasses(range(vocab), [str(number) for number in range(vocab)]))
    feed(own, batch, slice(None))
    assert own.report().numbers["content_perplexity"] == pytest.approx(1.0, abs=1e-6)


def test_what_comes_with_a_batch_is_checked() -> None:
    """Shapes and dtypes that cannot be right are told, with what was expected."""
    batch = random_batch(1)
    tally = tally_of(batch)
    wrong: list[tuple[dict[str, Tensor], type[Exception], str]] = [
        (
            {"group_ids": torch.zeros(12, 39).long()},
            ValueError,
            r"group_ids must have the shape of targets \(12, 40\) or \[B\]",
        ),
        (
            {"input_ids": torch.zeros(12).long()},
            ValueError,
            r"input_ids must have the shape of targets \(12, 40\), got \(12,\)",
        ),
        ({"group_ids": torch.zeros(12)}, TypeError, "group_ids must be integers, got torch.float32"),
    ]
    for data, error, text in wrong:
        with pytest.raises(error, match=text):
            tally.update(batch.logits, batch.targets, **data)
    assert len(all_extras(30)) == len(extras.ALL)


def test_the_callback_takes_what_extras_read_from_the_batch(tmp_path: Any) -> None:
    """Groups of rows and the ids that were read, by their keys, in training and in validation."""
    pl = pytest.importorskip("pytorch_lightning")
    data = [{**row, "group_ids": torch.tensor(i % 3 - 1), "input_ids": row["x"]} for i, row in enumerate(rows(16))]
    names = ("web", "code")
    extra = [pplmon.Groups(names, 1), pplmon.Novelty()]
    monitor = pplmon.PerplexityMonitor(every_n_steps=4, tally=TokenTally(extras=extra))
    trainer = trainer_for(tmp_path, monitor, max_epochs=1)
    loaders = [torch.utils.data.DataLoader(data, batch_size=4) for _ in range(2)]  # type: ignore[arg-type]
    module = make_module(pl.LightningModule)
    trainer.fit(module, *loaders)
    found = windows(tmp_path, "val")[0]["numbers"]
    assert {"group/web/cross_entropy", "novel_share"} <= set(windows(tmp_path)[0]["numbers"])
    stacked = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    batch = Batch(
        module(stacked["x"]).detach(), stacked["labels"], group_ids=stacked["group_ids"], input_ids=stacked["x"]
    )
    expected = reference.groups(batch, names, 1) | reference.novelty(batch)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize(("numbers", "logged"), [("core", False), ("all", True)])
def test_without_a_tally_passes_have_two_extras(numbers: str, logged: bool, tmp_path: Any) -> None:
    """Rollouts and Novelty, in val only, in the journal always, and in loggers where all numbers are asked for."""
    pl = pytest.importorskip("pytorch_lightning")
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(numbers=numbers), max_epochs=1, logger=logger)
    trainer.fit(make_module(pl.LightningModule), loader(16), loader(16))
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    extra = {name for name in header if "rollout" in name or "novel" in name}
    assert "val/rollout_match_2" in trainer.callback_metrics, "callbacks may watch any number"
    assert bool(extra) == logged and all(name.startswith("val/") for name in extra)
    assert "rollout_match_2" in windows(tmp_path, "val")[0]["numbers"]
    assert "rollout_match_2" not in windows(tmp_path)[0]["numbers"]


def test_a_tally_that_is_given_is_taken_as_it_stands(tmp_path: Any) -> None:
    """Nothing is measured that it does not name."""
    pl = pytest.importorskip("pytorch_lightning")
    monitor = pplmon.PerplexityMonitor(numbers="all", tally=TokenTally())
    trainer_for(tmp_path, monitor, max_epochs=1).fit(make_module(pl.LightningModule), loader(16), loader(16))
    assert "rollout_match_2" not in windows(tmp_path, "val")[0]["numbers"]
