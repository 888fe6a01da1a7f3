"""Padding that the loss does not score, losses without logits, low precision, and a column that was cut off: on real modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

import pplmon
from tests.sources import VOCAB, Module, batches, llama, mean, nll, run, said

transformers = pytest.importorskip("transformers")
both = pytest.mark.parametrize("stage", ["train", "val"])
PAD = 0


def padded(left: bool = False, mask: bool = True, pad: int = PAD, inside: bool = False) -> DataLoader[Any]:
    """Rows of several lengths, padded by one id; ``inside``: it stands in the text, too."""
    made = []
    for index in range(5):
        ids = torch.randint(1, VOCAB, (4, 12), generator=torch.Generator().manual_seed(index))
        lengths = torch.tensor([12, 9, 7, 8 + index % 3])
        seen = torch.arange(12) < lengths[:, None]
        if inside:
            ids[:, 2] = pad
        seen, ids = (seen.flip(1), ids.flip(1)) if left else (seen, ids)
        ids = torch.where(seen, ids, pad)
        made.append({"input_ids": ids, "labels": ids.clone(), **({"attention_mask": seen.long()} if mask else {})})
    return DataLoader(made, batch_size=None)  # type: ignore[arg-type]


def scores(seen: Any) -> Any:
    """A step that shows all labels, and whose loss scores only those that ``seen`` of the batch says."""

    def body(self: Any, batch: Any) -> Any:
        logits = self.model(batch["input_ids"]).logits
        true = batch["labels"].masked_fill(~seen(batch), -100)
        self.truth.append(nll(logits, true, shift=True))
        pplmon.observe(self, logits, batch["labels"])
        return mean(logits[:, :-1], true[:, 1:])

    return body


def by_mask(batch: Any) -> Tensor:
    return batch["attention_mask"].bool()  # type: ignore[no-any-return]


def by_id(batch: Any) -> Tensor:
    return batch["labels"] != PAD  # type: ignore[no-any-return]


@both
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    ("seen", "data", "words"),
    [
        (by_mask, {}, "without the padding of the attention mask"),
        (by_mask, {"inside": True}, "without the padding of the attention mask"),
        (by_id, {"mask": False}, "without the padding, id 0"),
        (by_id, {"mask": False, "inside": True}, "without the padding, id 0"),
    ],
)
def test_padding_that_the_loss_does_not_score_is_left_out(
    seen: Any, data: dict[str, Any], words: str, left: bool, stage: str
) -> None:
    """By the mask, or by the id that rows end in, wherever else it stands; the shift is found with it."""
    shown, true, told = run(Module(scores(seen), model=llama()), stage, padded(left, **data))
    assert shown == pytest.approx(true, abs=1e-5)
    assert said(told, "with shift=True", words, "equals the loss")


@both
@pytest.mark.parametrize(
    "settings", [{"tally": pplmon.TokenTally(ignore_index=5)}, {"tally": pplmon.TokenTally(ignore_index=None)}]
)
def test_an_ignore_index_that_was_stated_is_kept(settings: dict[str, Any], stage: str) -> None:
    """The padding is told of, and counted as the user says."""

    def body(self: Any, batch: Any) -> Any:
        logits = self.model(batch["input_ids"]).logits
        stated = settings["tally"].ignore_index
        counted = batch["labels"].masked_fill(batch["labels"] == (-1 if stated is None else stated), -100)
        self.truth.append(nll(logits, counted, shift=True))
        pplmon.observe(self, logits, batch["labels"], shift=True)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=PAD)

    shown, true, told = run(Module(body, model=llama()), stage, padded(mask=False), **settings)
    assert shown == pytest.approx(true, abs=1e-5)
    assert told and not any("without the padding" in line for line in told), told


@both
def test_a_mask_that_was_given_is_kept(stage: str) -> None:
    """``mask`` in the batch states what is scored, whatever the loss scores."""

    def body(self: Any, batch: Any) -> Any:
        logits = self.model(batch["input_ids"]).logits
        self.truth.append(nll(logits, batch["labels"], shift=True))
        pplmon.observe(
            self, logits, batch["labels"], shift=True, mask=torch.ones_like(batch["labels"], dtype=torch.bool)
        )
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=PAD)

    shown, true, told = run(Module(body, model=llama()), stage, padded(mask=False))
    assert shown == pytest.approx(true, abs=1e-5) and not any("without the padding" in line for line in told)


@both
def test_padding_that_both_score_stays(stage: str) -> None:
    """The loss scores it, too: that is told as a finding, and changes nothing."""
    shown, true, told = run(Module(scores(lambda b: b["labels"] >= 0), model=llama()), stage, padded())
    assert shown == pytest.approx(true, abs=1e-5) and all("without the padding" not in line for line in told)


@both
@pytest.mark.parametrize("right", [True, False])
def test_losses_without_logits_are_compared_with_the_loss(stage: str, right: bool, caplog: Any) -> None:
    """A fused loss shows ``TokenStats``: all agrees, or the two values are told, however near they are."""

    def body(self: Any, batch: Any) -> Any:
        logits = self.model(batch["input_ids"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        pplmon.observe(self, pplmon.TokenStats.from_losses(each.detach(), labels))
        self.truth.append(nll(logits, labels))
        return mean(logits, labels) * (1.0 if right else 1.01)

    with caplog.at_level("INFO", "pplmon"):
        shown, true, told = run(Module(body, model=llama()), stage, batches(8))
    assert shown == pytest.approx(true, abs=1e-5)
    assert ("its cross-entropy equals the loss" in caplog.text) is right
    if stage == "train":
        assert not told if right else said(told, "the measured cross-entropy is", "returned a loss of")


@both
@pytest.mark.parametrize("loss_of", ["student", "fused"])
def test_losses_without_logits_and_a_hooked_model(stage: str, loss_of: str) -> None:
    """Of the two the one that equals the loss counts."""

    def body(self: Any, batch: Any) -> Any:
        output = self.model(**batch)
        each = torch.rand_like(batch["labels"], dtype=torch.float32) + 1
        pplmon.observe(self, pplmon.TokenStats.from_losses(each, batch["labels"]))
        fused = each[batch["labels"] != -100]
        self.truth.append(fused.double() if loss_of == "fused" else nll(output.logits, batch["labels"], shift=True))
        return fused.mean().requires_grad_() if loss_of == "fused" else output.loss

    shown, true, told = run(Module(body, model=llama()), stage)
    assert shown == pytest.approx(true, abs=1e-5)
    assert not told if loss_of == "fused" else said(told, "counts model", "equals the loss")


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_loss_of_low_precision_decides_what_it_can_tell(stage: str, dtype: torch.dtype) -> None:
    """The shifts of a model that knows something are far apart; a loss that is off by its dtype's rounding is not told."""

    def body(self: Any, batch: Any) -> Any:
        logits = self.model(batch["input_ids"]).logits.to(dtype)
        self.truth.append(nll(logits, batch["labels"], shift=True))
        pplmon.observe(self, logits, batch["labels"])
        return mean(logits[:, :-1], batch["labels"][:, 1:])

    ids = next(iter(batches(1)))["input_ids"]
    data = DataLoader([{"input_ids": ids, "labels": ids}] * 4, batch_size=None)  # type: ignore[arg-type]
    shown, true, told = run(Module(body, model=llama(scale=8.0)), stage, data)
    assert shown == pytest.approx(true, rel=1e-4) and said(told, "with shift=True", "equals the loss")


OTHER_LOSSES = {
    "smoothed": lambda x, y: F.cross_entropy(x.flatten(0, 1), y.flatten(), label_smoothing=0.1),
    "a mean with another rank's": lambda x, y: 0.5 * mean(x, y) + 1.7,
    "of a part of the sequence": lambda x, y: mean(x[:, :6], y[:, :6]),
}


@both
@pytest.mark.parametrize("kind", OTHER_LOSSES)
def test_a_loss_that_is_no_cross_entropy_of_the_batch_decides_nothing(stage: str, kind: str) -> None:
    """Smoothed, averaged over ranks, or of a part of the sequence: the default is counted."""

    def body(self: Any, batch: Any) -> Any:
        logits = self.model(batch["input_ids"]).logits
        self.truth.append(nll(logits, batch["labels"]))
        pplmon.observe(self, logits, batch["labels"])
        return OTHER_LOSSES[kind](logits[:, :-1], batch["labels"][:, 1:])

    shown, true, told = run(Module(body, model=llama()), stage)
    assert shown == pytest.approx(true, abs=1e-5)
    assert not any("counts what pplmon.observe shows, with" in line for line in told)


@both
@pytest.mark.parametrize("form", ["a dict", "a tensor", "a pair"])
def test_a_column_that_was_cut_off_on_the_wrong_side_is_named(stage: str, form: str) -> None:
    """pplmon is given ids[:, :-1] for ids[:, 1:]: no set of its targets is the loss, and the batch has what is missing."""
    forms = {
        "a dict": (lambda ids: {"text": ids}, lambda b: b["text"], "batch['text'][:, 1:]"),
        "a tensor": (lambda ids: ids, lambda b: b, "batch[:, 1:]"),
        "a pair": (lambda ids: [ids, 1], lambda b: b[0], "batch[0][:, 1:]"),
    }
    make, read, line = forms[form]
    data = DataLoader([make(b["input_ids"]) for b in batches()], batch_size=None)  # type: ignore[arg-type]

    def body(self: Any, batch: Any) -> Any:
        ids = read(batch)
        logits = self.model(ids[:, :-1]).logits
        self.truth.append(nll(logits, ids[:, :-1]))
        pplmon.observe(self, logits, ids[:, :-1])
        return mean(logits, ids[:, 1:])

    shown, true, told = run(Module(body, model=llama()), stage, data)
    assert shown == pytest.approx(true, abs=1e-5)
    assert any("shift: the loss is" in entry and f"targets=lambda batch: {line}" in entry for entry in told)
    assert not any("another model" in entry for entry in told)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_a_loss_that_is_divided_by_the_accumulation_twice_is_told_as_such(factor: float) -> None:
    """The trainer divides it; a step that does so, too, or multiplies against it, hears of it."""

    def body(self: Any, batch: Any) -> Any:
        output = self.model(**batch)
        self.truth.append(nll(output.logits, batch["labels"], shift=True))
        return output.loss * factor

    shown, true, told = run(Module(body, model=llama()), "train", batches(12), accumulate=2)
    assert shown == pytest.approx(true, abs=1e-5)
    if factor == 1.0:
        assert not told
    else:
        words = {0.5: "divided by the 2 accumulated batches once more", 2.0: "not divided by the 2 accumulated"}[factor]
        assert any("accumulation: " in line and words in line for line in told)
