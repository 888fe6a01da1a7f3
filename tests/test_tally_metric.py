"""``TokenTally`` lives as any torchmetrics Metric does: it is saved, copied, moved, collected and forwarded, and stays exact."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

import pplmon
from pplmon import Report, TokenStats, TokenTally, Totals

# torchmetrics warns where an empty metric is computed, which some tests do on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")


def batch(rows: int = 4, length: int = 20, vocab: int = 17) -> tuple[Tensor, Tensor]:
    """Clean logits and targets, some ignored."""
    logits, targets = torch.randn(rows, length, vocab) * 3, torch.randint(vocab, (rows, length))
    targets[torch.rand(rows, length) < 0.1] = -100
    return logits, targets


def filled(**settings: Any) -> tuple[TokenTally, Totals]:
    """A tally with two updates in it, and its totals."""
    tally = TokenTally(**settings)
    for step in range(2):
        tally.update(*batch(), step=step)
    return tally, tally.totals()


def through_state_dict(tally: TokenTally) -> TokenTally:
    """Save and load, strictly."""
    fresh = TokenTally()
    fresh.load_state_dict({k: v.clone() for k, v in tally.state_dict().items()}, strict=True)
    return fresh


COPIES: dict[str, Callable[[TokenTally], TokenTally]] = {
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "deepcopy": copy.deepcopy,
    "clone": lambda t: t.clone(),
    "state_dict": through_state_dict,
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_counts_on_by_itself(name: str) -> None:
    """A copy holds the same totals, counts on as the original would, and leaves the original alone."""
    tally, before = filled()
    other = COPIES[name](tally)
    assert other.totals() == before
    logits, targets = batch()
    other.update(logits, targets, step=5)
    assert tally.totals() == before
    tally.update(logits, targets, step=5)
    assert other.totals() == tally.totals() != before
    other.reset()
    assert tally.totals() != other.totals() and other.totals().empty


def test_state_dict_is_strict() -> None:
    """The state dict holds integers under stable names, and a key too many is refused, not swallowed."""
    state = filled()[0].state_dict()
    names = state.pop("names")
    states = {"sums", "maxima", "histogram", "token_rows", "sequence_rows", "extra_sums", "extra_maxima"}
    assert set(state) == states | {"_extra_state"}
    assert all(value.dtype == torch.int64 for value in state.values()) and names.dtype == torch.uint8
    state["names"] = names
    with pytest.raises(RuntimeError, match="surplus"):
        TokenTally().load_state_dict({**state, "surplus": torch.zeros(1)})


def test_reset_is_a_new_start() -> None:
    """After reset nothing of the past is left: the totals are those of a tally that never saw it."""
    tally, _ = filled()
    tally.reset()
    assert tally.totals() == TokenTally().totals()
    data = batch()
    tally.update(*data)
    fresh = TokenTally()
    fresh.update(*data)
    assert tally.totals() == fresh.totals()


@pytest.mark.parametrize("how", ["half", "bfloat16", "float", "double", "to", "parent"])
def test_no_cast_touches_the_integers(how: str) -> None:
    """What Lightning's bf16-true and user code do to a module leaves the tally exact, before and after."""
    tally, before = filled(token_bytes=[3] * 17)
    if how == "to":
        tally.to(torch.bfloat16)
    elif how == "parent":
        module = torch.nn.Module()
        module.tally, module.layer = tally, torch.nn.Linear(2, 2)
        module.to(dtype=torch.bfloat16).half()
    else:
        getattr(tally, how)()
        tally.set_dtype(torch.float16)
    assert tally.totals() == before
    data = batch()
    other = TokenTally(token_bytes=[3] * 17)
    other.update(*data)
    tally.update(*data)
    assert tally.report().numbers == (before + other.totals()).report().numbers


def test_inference_mode_then_training() -> None:
    """States made or reset under inference_mode (Lightning validates in it) are counted on outside, in place of an error."""
    data = batch()
    with torch.inference_mode():
        tally = TokenTally()
        tally.update(*data)
        tally.reset()
        tally.update(*data)
    tally.update(*data, step=1)
    tally.add_duplicates(1)
    want = TokenTally()
    for step in range(2):
        want.update(*data, step=step)
    want.add_duplicates(1)
    assert tally.totals() == want.totals()


def test_forward_counts_and_gives_the_batch() -> None:
    """forward returns the numbers of this batch alone and adds it once, with its address."""
    tally, want = TokenTally(), TokenTally()
    for step in range(3):
        data, alone = batch(), TokenTally()
        got = tally(*data, step=step)
        alone.update(*data)
        want.update(*data, step=step)
        assert {k: v.item() for k, v in got.items()} == {k: v.item() for k, v in alone.compute().items()}
    assert tally.totals() == want.totals()


def test_compute_is_typed() -> None:
    """compute gives 0-dim tensors, counts as int64 and the rest as float64, equal to the report."""
    tally, totals = filled()
    for name, value in tally.compute().items():
        assert value.shape == () and value.dtype == (
            torch.int64 if isinstance(totals.report().numbers[name], int) else torch.float64
        )
        assert value.item() == totals.report().numbers[name]
    assert tally.totals() == totals


def test_the_process_group_stays_out_of_pickles() -> None:
    """A ProcessGroup cannot be pickled; a copy, which stays in the process, keeps it."""
    group = SimpleNamespace(lock=(i for i in ()))  # a generator cannot be pickled, either
    tally = TokenTally(process_group=group)
    assert pickle.loads(pickle.dumps(tally)).process_group is None
    assert copy.deepcopy(tally).process_group is group
    assert tally.clone().process_group is group and tally.process_group is group


# Views, and collections of them.


VIEWS: dict[str, Callable[..., TokenTally]] = {
    "perplexity": pplmon.Perplexity,
    "cross_entropy": pplmon.CrossEntropy,
    "token_accuracy": pplmon.TokenAccuracy,
    "max_token_loss": pplmon.MaxTokenLoss,
    "token_loss_p99": pplmon.TokenLossQuantile,
    "token_loss_p50": lambda **how: pplmon.TokenLossQuantile(q=0.5, **how),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_its_number(name: str) -> None:
    """Each view computes the tally's number of its name, as a 0-dim tensor; NaN where it cannot be had."""
    view, tally = VIEWS[name](ignore_index=3), TokenTally(ignore_index=3)
    assert view.compute().isnan()
    for _ in range(2):
        preds, target = batch()
        target[target == -100] = 3
        view.update(preds=preds, target=target)
        tally.update(preds, target)
    assert view.compute().shape == () and view.compute().item() == tally.report().numbers[name]
    unknown = VIEWS[name]()
    unknown.update(TokenStats.from_losses(torch.ones(5), torch.ones(5, dtype=torch.int64)))
    assert bool(unknown.compute().isnan()) == (name == "token_accuracy")


def test_a_quantile_needs_a_share() -> None:
    """q is a share; 99 is said to be 0.99."""
    for q in (0, 99, -0.5):
        with pytest.raises(ValueError, match=r"q must be in \(0, 1\].*0\.99"):
            pplmon.TokenLossQuantile(q=q)
    nll = torch.tensor([[1.0, 2.0, 4.0]])
    highest = pplmon.TokenLossQuantile(q=1.0)
    highest.update(TokenStats.from_losses(nll, torch.zeros(1, 3, dtype=torch.int64)))
    assert highest.compute().item() == 4.0


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize(("odd", "ignore_index"), [(-1, -100), (17, -100), (-100, None)])
def test_a_view_tells_of_targets_outside_the_vocabulary(name: str, odd: int, ignore_index: int | None) -> None:
    """Padding that is marked by another id is no number that is plausible and wrong: compute says how many, and shows one."""
    view = VIEWS[name](ignore_index=ignore_index)
    preds, target = batch()
    target.clamp_(min=0)
    target[:, 3:] = odd
    view.update(preds, target)
    text = rf"^{target[:, 3:].numel()} targets are outside the vocabulary \[0, 17\), for example {odd}; ignore_index is"
    with pytest.raises(ValueError, match=text):
        view.compute()
    view.reset()
    target[:, 3:] = 16
    view.update(preds, target)
    assert view.compute().item() == view.compute().item()


def test_targets_that_are_ignored_or_masked_are_no_concern_of_a_view() -> None:
    """Whatever their value."""
    preds, target = batch()
    target.clamp_(min=0)
    kept = torch.ones_like(target, dtype=torch.bool)
    kept[:, 3:] = False
    plain, padded, masked = pplmon.Perplexity(), pplmon.Perplexity(ignore_index=-1), pplmon.Perplexity()
    plain.update(preds[:, :3], target[:, :3])
    target[:, 3:] = -1
    padded.update(preds, target)
    masked.update(preds, target, mask=kept)
    assert plain.compute() == padded.compute() == masked.compute()


def test_forward_of_a_view_tells_of_them_at_once_and_has_no_gradient() -> None:
    """It computes the batch's number, so it waits anyhow; a number that is counted is no loss to train on."""
    preds, target = batch()
    assert not pplmon.Perplexity()(preds.requires_grad_(), target).requires_grad
    assert not pplmon.Perplexity.is_differentiable
    target[0, 0] = 99
    with pytest.raises(ValueError, match="1 targets are outside"):
        pplmon.Perplexity()(preds, target)


def test_a_metric_refuses_to_be_scripted_in_words() -> None:
    """By itself, and as a part of a model, which is then told how to do without."""
    with pytest.raises(TypeError, match=r"torch.jit.script cannot compile Perplexity.*set that to None first"):
        torch.jit.script(pplmon.Perplexity())
    with pytest.raises(TypeError, match=r"torch.jit.script cannot compile TokenTally"):
        torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 2), TokenTally()))


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_drawn(name: str) -> None:
    """Its own number, or those that it is given, on an axis of one's own."""
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    view = VIEWS[name]()
    view.update(*batch())
    _, axes = view.plot()
    assert axes.lines[0].get_ydata()[0] == view.compute().item()
    mine = plt.subplots()[1]
    assert view.plot([torch.tensor(2.0), torch.tensor(3.0)], ax=mine)[1] is mine
    assert list(mine.lines[0].get_ydata()) == [2.0, 3.0]
    plt.close("all")


def test_a_view_that_cannot_be_drawn_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib is optional."""
    monkeypatch.setattr("torchmetrics.utilities.plot._MATPLOTLIB_AVAILABLE", False)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        pplmon.Perplexity().plot(torch.tensor(2.0))


def test_agrees_with_torchmetrics() -> None:
    """On clean data the views give what torchmetrics' Perplexity and micro MulticlassAccuracy give."""
    theirs = torchmetrics.MetricCollection([torchmetrics.text.Perplexity(ignore_index=-100)])
    accuracy = MulticlassAccuracy(num_classes=17, average="micro", ignore_index=-100)
    mine = torchmetrics.MetricCollection([pplmon.Perplexity(), pplmon.TokenAccuracy()])
    for _ in range(3):
        preds, target = batch()
        theirs.update(preds.double(), target)
        accuracy.update(preds.flatten(0, 1), target.flatten())
        mine.update(preds, target)
    got = mine.compute()
    assert got["Perplexity"].item() == pytest.approx(theirs.compute()["Perplexity"].item(), rel=1e-5)
    assert got["TokenAccuracy"].item() == pytest.approx(accuracy.compute().item(), rel=1e-6)


def test_a_collection_updates_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views of one setting share one update from the second batch on; other settings are another group, also if they agree so far."""
    real, calls = TokenTally.update, []

    def counted(self: TokenTally, *args: Any, **how: Any) -> None:
        calls.append(self)
        real(self, *args, **how)

    monkeypatch.setattr(TokenTally, "update", counted)
    parts = {name: make() for name, make in VIEWS.items()}
    collection = torchmetrics.MetricCollection({**parts, "padded": pplmon.CrossEntropy(ignore_index=3)})
    data = []
    for index in range(4):
        preds, target = batch()
        # The first batch holds nothing that tells ignore_index −100 from 3, so that their states are equal after it.
        target[(target == -100) | (target == 3)] = 4 if index == 0 else 3
        data.append((preds, target))
        calls.clear()
        collection.update(preds, target)
        assert len(calls) == (7 if index == 0 else 2)
    alone, padded = TokenTally(), TokenTally(ignore_index=3)
    for preds, target in data:
        real(alone, preds, target)
        real(padded, preds, target)
    values = collection.compute()
    for name in VIEWS:
        assert values[name].item() == alone.report().numbers[name], name
    assert values["padded"].item() == padded.report().cross_entropy != alone.report().cross_entropy
    collection.reset()
    assert all(value.isnan() for value in collection.compute().values())


# Extras: a measurement of one's own.


class Digits:
    """Counts valid targets that are digits (ids below 10), and those of them that the step number says are new."""

    size = 2

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        """Count one batch."""
        digit = valid & (stats.targets < 10)
        groups = batch_data.get("group_ids")
        new = digit if groups is None else digit & (groups.reshape(-1) == 1)
        return torch.stack([digit.sum(), new.sum()])

    def numbers(self, sums: Sequence[int]) -> Mapping[str, float | int | None]:
        """Name the numbers."""
        return {"digits/tokens": sums[0], "digits/new": sums[1]}

    def __repr__(self) -> str:
        return "Digits()"


def test_an_extra_of_ones_own() -> None:
    """An extra's integers are merged, saved and reported with the rest, and a rule may watch its numbers."""
    tally = TokenTally(extras=[Digits()])
    logits, targets = batch()
    groups = torch.randint(2, targets.shape)
    tally.update(logits, targets, group_ids=groups)
    tally.update(logits, targets)
    digits = int(((targets >= 0) & (targets < 10)).sum())
    new = int(((targets >= 0) & (targets < 10) & (groups == 1)).sum())
    report: Report = tally.report()
    assert (report.numbers["digits/tokens"], report.numbers["digits/new"]) == (2 * digits, digits + new)
    assert tally.compute()["digits/tokens"].item() == 2 * digits
    assert (tally.totals() + tally.totals()).report().numbers["digits/tokens"] == 4 * digits
    assert pplmon.Above("digits/tokens", 1)(report) is not None
    loaded = TokenTally(extras=[Digits()])
    loaded.load_state_dict(tally.state_dict())
    assert loaded.report().numbers == report.numbers
    assert tally.clone().report().numbers == pickle.loads(pickle.dumps(tally)).report().numbers == report.numbers
