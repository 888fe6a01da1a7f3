"""Mistakes and right set-ups that were written after the rules, and tried on them unchanged: the first try is in docs/doctor.md."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.doctor.examples import PAD, Example
from benchmarks.doctor.mistakes import Cross, Given, Mistake, ahead, aligned, right
from pplmon.doctor import Run

HELD_OUT: dict[str, Mistake] = {}
RIGHT_HELD_OUT: dict[str, tuple[str, Callable[[Example, Cross], Given]]] = {}


def mistake(text: str, *kinds: str) -> Callable[[Callable[[Example, Cross], Given]], Callable[[Example, Cross], Given]]:
    def keep(plant: Callable[[Example, Cross], Given]) -> Callable[[Example, Cross], Given]:
        HELD_OUT[plant.__name__] = Mistake(text, kinds, plant, by_loss=True)
        return plant

    return keep


def setup(text: str) -> Callable[[Callable[[Example, Cross], Given]], Callable[[Example, Cross], Given]]:
    def keep(make: Callable[[Example, Cross], Given]) -> Callable[[Example, Cross], Given]:
        RIGHT_HELD_OUT[make.__name__] = (text, make)
        return make

    return keep


@mistake("the loss scores prompts and padding, and its mean is over answers", "denominator", "mask_dropped")
def sum_of_all_over_answers(e: Example, ce: Cross) -> Given:
    losses, _ = ce.each(e.logits, e.text, e.shift)
    _, answers = ce.each(e.logits, e.answers, e.shift)
    return right(e, ce, targets=e.answers, loss=losses.sum() / answers.sum())


@mistake("labels are those of the next row of the batch", "other_labels", "another_loss", "further_term")
def next_rows_labels(e: Example, ce: Cross) -> Given:
    targets = e.labels.roll(1, 0)
    return right(e, ce, targets=targets)


@mistake(
    "the loss smooths its labels by 0.2, and is divided by accumulated batches",
    "label_smoothing",
    "scaled_loss",
    "accumulation",
)
def smoothed_and_divided(e: Example, ce: Cross) -> Given:
    loss = ce(e.logits, e.labels, e.shift, label_smoothing=0.2) / 4
    return right(e, ce, loss=loss, run=Run(accumulation=4))


@mistake("the loss is a focal loss, which weighs hard tokens more", "another_loss", "scaled_loss")
def focal(e: Example, ce: Cross) -> Given:
    losses, mask = ce.each(e.logits, e.labels, e.shift)
    weight = (1 - (-losses).exp()) ** 2
    return right(e, ce, loss=(weight * losses * mask).sum() / mask.sum())


@mistake("the loss is of a temperature of 2", "another_loss", "further_term")
def temperature(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=ce(e.logits / 2, e.labels, e.shift))


@mistake("the loss weighs each id, as class weights do", "another_loss", "further_term")
def class_weights(e: Example, ce: Cross) -> Given:
    made = torch.Generator().manual_seed(11)
    weight = torch.rand(e.logits.shape[-1], generator=made) * 3 + 0.1
    weight = weight.to(torch.float32 if ce.in_fp32 else e.logits.dtype)
    return right(e, ce, loss=ce(e.logits, e.labels, e.shift, weight=weight))


@mistake(
    "the last token of each row, its end, is not scored by the loss", "further_term", "another_loss", "mask_off_by_one"
)
def end_not_scored(e: Example, ce: Cross) -> Given:
    last = (e.labels != -100) & (ahead(e.labels, 1) == -100)
    return right(e, ce, loss=ce(e.logits, e.labels.masked_fill(last, -100), e.shift))


@mistake("the loss is the perplexity", "unit")
def perplexity(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=ce(e.logits, e.labels, e.shift).exp())


@mistake("the loss is divided by the batch's rows and the ranks", "denominator", "ranks", "scaled_loss")
def rows_and_ranks(e: Example, ce: Cross) -> Given:
    total = ce(e.logits, e.labels, e.shift, reduction="sum")
    return right(e, ce, loss=total / e.labels.shape[0] / 8, run=Run(ranks=8))


@mistake("padding on the left is scored by pplmon", "padding_scored")
def left_padding_scored(e: Example, ce: Cross) -> Given:
    text, mask = _to_the_right(e, e.text), _to_the_right(e, (e.text != PAD).long())
    logits, labels = _to_the_right(e, e.logits), _to_the_right(e, e.labels)
    ids = text if e.shift else None
    return right(
        e,
        ce,
        logits=logits,
        targets=text,
        loss=ce(logits, labels, e.shift),
        input_ids=ids,
        attention_mask=mask,
    )


@mistake("the z-loss is three times the usual one", "z_loss", "further_term")
def unusual_z_loss(e: Example, ce: Cross) -> Given:
    losses, mask = ce.each(e.logits, e.labels, e.shift)
    lse = aligned(e.logits.float().logsumexp(-1), e.labels, e.shift)[0].to(losses.dtype)
    return right(e, ce, loss=((losses + 3e-4 * lse**2) * mask).sum() / mask.sum())


@mistake("the loss is in decimal digits: log to the base of 10", "scaled_loss", "unit")
def in_digits(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=ce(e.logits, e.labels, e.shift) / math.log(10))


@mistake("log-probabilities of another temperature are given as logits", "another_loss", "further_term")
def processed_logits(e: Example, ce: Cross) -> Given:
    return right(
        e, ce, logits=(e.logits.float() * 1.25).log_softmax(-1).to(e.logits.dtype), loss=ce(e.logits, e.labels, e.shift)
    )


@mistake("the logits are of another batch", "another_loss", "further_term", "other_labels")
def old_logits(e: Example, ce: Cross) -> Given:
    return right(e, ce, logits=e.logits.roll(1, 0))


@setup("labels with a hole in the middle, ignored by both")
def hole(e: Example, ce: Cross) -> Given:
    labels = e.labels.clone()
    labels[:, 4:7] = -100
    return right(e, ce, targets=labels, loss=ce(e.logits, labels, e.shift))


@setup("log-probabilities as logits: their cross-entropy is the same")
def log_probabilities(e: Example, ce: Cross) -> Given:
    logits = e.logits.float().log_softmax(-1)
    return right(e, ce, logits=logits, loss=ce(logits, e.labels, e.shift))


@setup("one answer of a single token in each row")
def short_answers(e: Example, ce: Cross) -> Given:
    labels = e.labels.clone()
    labels[:, 6:] = -100
    labels[:, :5] = -100
    return right(e, ce, targets=labels, loss=ce(e.logits, labels, e.shift))


@setup("a row that is wholly ignored, among others")
def one_row_ignored(e: Example, ce: Cross) -> Given:
    labels, mask = e.labels.clone(), e.mask.clone()
    labels[0], mask[0] = -100, 0
    return right(e, ce, targets=labels, loss=ce(e.logits, labels, e.shift), attention_mask=mask)


@setup("logits that are a hundred too high, as of a head with a bias")
def offset(e: Example, ce: Cross) -> Given:
    logits = e.logits.float() + 100
    return right(e, ce, logits=logits, loss=ce(logits, e.labels, e.shift))


@setup("the loss in float64")
def wide(e: Example, ce: Cross) -> Given:
    plain, targets = aligned(e.logits.double(), e.labels, e.shift)
    return right(e, ce, loss=F.cross_entropy(plain.flatten(0, 1), targets.flatten()))


@setup("a boolean attention mask")
def boolean_mask(e: Example, ce: Cross) -> Given:
    return right(e, ce, attention_mask=e.mask.bool())


@setup("ids in int32")
def narrow_ids(e: Example, ce: Cross) -> Given:
    ids = None if e.ids is None else e.ids.int()
    return right(e, ce, targets=e.labels, input_ids=ids)


def _to_the_right(e: Example, x: Tensor) -> Tensor:
    lengths = (e.text != PAD).sum(1).tolist()
    return torch.stack([row.roll(row.shape[0] - n, 0) for row, n in zip(x, lengths)])
