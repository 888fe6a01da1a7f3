"""Several calls in a batch: each alone, all together, or pieces of one: the loss decides, on real modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import pplmon
from tests.sources import VOCAB, Module, batches, llama, mean, nll, run, said

transformers = pytest.importorskip("transformers")
both = pytest.mark.parametrize("stage", ["train", "val"])


class Head(torch.nn.Module):
    """Ids to logits through a head that can be named."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = torch.nn.Embedding(VOCAB, 16), torch.nn.Linear(16, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(ids) * 3)
        return logits


Together = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]  # logits and targets of each call -> the loss
TOGETHER: dict[str, Together] = {
    "sum": lambda logits, targets: torch.stack([mean(a, b) for a, b in zip(logits, targets)]).sum(),
    "mean": lambda logits, targets: torch.stack([mean(a, b) for a, b in zip(logits, targets)]).mean(),
    "pooled": lambda logits, targets: mean(torch.cat(list(logits)), torch.cat(list(targets))),
}


PLACES = ("first", "first, shifted", "last")
PAIRS = [  # each of either once in make test, and every pair in make test-all
    pytest.param(place, together, marks=[pytest.mark.slow] * (first != second))
    for first, place in enumerate(PLACES)
    for second, together in enumerate(TOGETHER)
]


@both
@pytest.mark.parametrize(("place", "together"), PAIRS)
def test_two_forwards_over_one_half_are_no_pieces(stage: str, place: str, together: str) -> None:
    """Over the first half twice, with targets at either shift, or over the last: by width they could be two pieces of a row."""
    columns, targets = {
        "first": (slice(0, 6), slice(0, 6)),
        "first, shifted": (slice(0, 6), slice(1, 7)),
        "last": (slice(6, 12), slice(6, 12)),
    }[place]

    def body(self: Any, batch: Any) -> Any:
        ids, labels = batch["input_ids"], batch["labels"][:, targets]
        logits = [self.model(x[:, columns]) for x in (ids, ids.roll(1, 0))]
        self.truth += [nll(x, labels) for x in logits]
        return TOGETHER[together](logits, [labels, labels])

    shown, true, told = run(Module(body, model=Head()), stage, logits="model.head", targets="labels")
    assert shown == pytest.approx(true, abs=1e-5)
    assert said(
        told, f"model.head, each at the {place.partition(',')[0]} columns", "equals the loss", "model.head does not"
    )


@both
def test_halves_that_are_pieces_of_a_row_are_joined(stage: str) -> None:
    """The loss is that of the whole row."""

    def body(self: Any, batch: Any) -> Any:
        logits = torch.cat([self.model(part) for part in batch["input_ids"].split(6, 1)], 1)
        self.truth.append(nll(logits, batch["labels"]))
        return mean(logits, batch["labels"])

    shown, true, told = run(Module(body, model=Head()), stage, logits="model.head", targets="labels")
    assert shown == pytest.approx(true, abs=1e-5) and not told


@both
def test_halves_of_which_no_loss_tells_are_joined(stage: str) -> None:
    """As before: without evidence, calls that fill a row are its pieces."""

    def body(self: Any, batch: Any) -> Any:
        logits = torch.cat([self.model(part) for part in batch["input_ids"].split(6, 1)], 1)
        self.truth.append(nll(logits, batch["labels"]))
        return mean(logits, batch["labels"]) if stage == "train" and len(self.truth) > 3 else None

    shown, true, told = run(Module(body, model=Head()), stage, logits="model.head", targets="labels")
    assert shown == pytest.approx(true, abs=1e-5) and not told


@both
@pytest.mark.parametrize("together", TOGETHER)
def test_two_looks_at_one_batch_through_a_named_head(stage: str, together: str) -> None:
    """As R-Drop has them: the loss is of both, so both count, and a line says so."""

    def body(self: Any, batch: Any) -> Any:
        ids, labels = batch["input_ids"], batch["labels"]
        logits = [self.model(ids), self.model(ids.roll(1, 0))]
        self.truth += [nll(x, labels) for x in logits]
        return TOGETHER[together](logits, [labels, labels])

    shown, true, told = run(Module(body, model=Head()), stage, logits="model.head", targets="labels")
    assert shown == pytest.approx(true, abs=1e-5)
    assert said(told, "model.head, all its calls of a batch", "equals the loss")


@both
@pytest.mark.parametrize("together", TOGETHER)
def test_two_calls_of_a_model_whose_loss_is_of_both(stage: str, together: str) -> None:
    """They are told with both paths, once, and the loss is not taken for another one."""

    def body(self: Any, batch: Any) -> Any:
        other = {name: value.flip(0).roll(1, 1) for name, value in batch.items()}
        logits = [self.model(**x).logits for x in (batch, other)]
        targets = [batch["labels"], other["labels"]]
        self.truth += [nll(a, b, shift=True) for a, b in zip(logits, targets)]
        return TOGETHER[together]([x[:, :-1] for x in logits], [y[:, 1:] for y in targets])

    shown, true, told = run(Module(body, model=llama()), stage)
    assert shown == pytest.approx(true, abs=1e-5)
    assert said(told, "model, and in the same batch there are model (call 2): all of them count", "pplmon.observe")


@both
@pytest.mark.parametrize("order", ["policy first", "reference first"])
def test_a_policy_is_counted_and_its_frozen_reference_is_not(stage: str, order: str) -> None:
    """As DPO has them: chosen and rejected of both; the loss is that of none, and the policy's two calls are told."""
    reference = llama(3).requires_grad_(False)
    models = {"policy": llama(), "reference": reference}
    names = sorted(models, reverse=order == "reference first")

    def body(self: Any, batch: Any) -> Any:
        margin: Any = 0
        for sign, ids in ((1, batch["input_ids"]), (-1, batch["input_ids"].roll(2, 1))):
            with torch.no_grad():
                base = self.reference(ids, labels=ids).logits
            logits = self.policy(ids, labels=ids).logits
            self.truth.append(nll(logits, ids, shift=True))
            margin = margin + sign * (mean(base[:, :-1], ids[:, 1:]) - mean(logits[:, :-1], ids[:, 1:]))
        return -torch.nn.functional.logsigmoid(margin)

    shown, true, told = run(Module(body, **{name: models[name] for name in names}), stage)
    assert shown == pytest.approx(true, abs=1e-5)
    assert "policy (call 2): all of them count" in told[0] and "reference" not in told[0]
    assert [line for line in told[1:] if "a loss of" not in line] == []


@both
def test_a_shift_is_decided_by_the_sum_of_what_was_shown(stage: str) -> None:
    """``observe`` twice, without ``shift``: both are meant, and the loss is of both."""

    def body(self: Any, batch: Any) -> Any:
        total: Any = 0
        for ids in (batch["input_ids"], batch["input_ids"].roll(1, 0)):
            logits = self.model(ids).logits
            pplmon.observe(self, logits, ids)
            self.truth.append(nll(logits, ids, shift=True))
            total = total + mean(logits[:, :-1], ids[:, 1:])
        return total

    shown, true, told = run(Module(body, model=llama()), stage)
    assert shown == pytest.approx(true, abs=1e-5) and said(told, "with shift=True", "equals the loss")


@both
def test_a_number_of_calls_that_changes_keeps_the_choice(stage: str) -> None:
    """Three batches with two calls and then one with three: all count, and the sum is still the loss."""

    def body(self: Any, batch: Any) -> Any:
        ids, labels = batch["input_ids"], batch["labels"]
        logits = [self.model(ids.roll(k, 0)) for k in range(2 + (len(self.truth) >= 6))]
        self.truth += [nll(x, labels) for x in logits]
        return TOGETHER["sum"](logits, [labels] * len(logits))

    shown, true, told = run(Module(body, model=Head()), stage, batches(6), logits="model.head", targets="labels")
    assert shown == pytest.approx(true, abs=1e-5) and len(told) == 1
