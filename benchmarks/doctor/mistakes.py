"""Mistakes, each planted in a right set-up: what pplmon is given, and the finding that names it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.doctor.examples import PAD, Example
from pplmon.doctor import Run


@dataclass(frozen=True)
class Given:
    """The arguments of ``pplmon.diagnose``, and what a callback would know of the run."""

    logits: Tensor
    targets: Tensor
    loss: Tensor | None
    shift: bool
    input_ids: Tensor | None
    attention_mask: Tensor | None
    run: Run = field(default_factory=Run)
    ignore_index: int = -100
    mask: Tensor | None = None  # of the targets, as for ``Monitor.observe``


@dataclass(frozen=True)
class Mistake:
    """One mistake. ``by_loss``: nothing but the value of the loss tells of it."""

    text: str
    kinds: tuple[str, ...]  # any of these names it
    plant: Callable[[Example, Cross], Given]
    by_loss: bool


class Cross:
    """A cross-entropy as a training step would call it, in fp32 or in the logits' own dtype."""

    def __init__(self, in_fp32: bool = True) -> None:
        self.in_fp32 = in_fp32

    def __call__(self, logits: Tensor, targets: Tensor, shift: int, **kwargs: Any) -> Tensor:
        logits, targets = aligned(logits.float() if self.in_fp32 else logits, targets, shift)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), **kwargs)

    def each(self, logits: Tensor, targets: Tensor, shift: int) -> tuple[Tensor, Tensor]:
        """Return the losses and the mask, [B, T]."""
        logits, targets = aligned(logits.float() if self.in_fp32 else logits, targets, shift)
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return losses, (targets != -100).to(losses.dtype)


def aligned(logits: Tensor, targets: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Cut logits and targets so that logits at t meet targets at t + shift."""
    length = logits.shape[1]
    return logits[:, max(-shift, 0) : length - max(shift, 0)], targets[:, max(shift, 0) : length - max(-shift, 0)]


def ahead(x: Tensor, by: int) -> Tensor:
    """Return ``x[:, t + by]`` at column t, −100 beyond the row."""
    return F.pad(x[:, by:], (0, by), value=-100) if by >= 0 else F.pad(x[:, :by], (-by, 0), value=-100)


MISTAKES: dict[str, Mistake] = {}


def mistake(text: str, *kinds: str, by_loss: bool = False) -> Callable[[Any], Any]:
    def keep(plant: Callable[[Example, Cross], Given]) -> Callable[[Example, Cross], Given]:
        MISTAKES[plant.__name__] = Mistake(text, kinds, plant, by_loss)
        return plant

    return keep


def right(e: Example, ce: Cross, **changed: Any) -> Given:
    """Return a right set-up, with what is changed in it."""
    given = {
        "logits": e.logits,
        "targets": e.labels,
        "loss": ce(e.logits, e.labels, e.shift),
        "shift": bool(e.shift),
        "input_ids": e.ids,
        "attention_mask": e.mask,
    }
    return Given(**(given | changed))


@mistake("pplmon is told the wrong shift", "shift", "target_leakage")
def wrong_shift(e: Example, ce: Cross) -> Given:
    return right(e, ce, shift=not e.shift)


@mistake("the same, without input ids", "shift", by_loss=True)
def wrong_shift_without_ids(e: Example, ce: Cross) -> Given:
    return right(e, ce, shift=not e.shift, input_ids=None, attention_mask=None)


@mistake("targets that are shifted already are shifted again by pplmon", "shift")
def shifted_twice(e: Example, ce: Cross) -> Given:
    return right(e, ce, targets=ahead(e.labels, 1))


@mistake("the loss shifts what is shifted already", "shift", by_loss=True)
def loss_shifted_twice(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=ce(e.logits, e.labels, e.shift + 1))


@mistake("the loss and pplmon score each id on its own logits", "target_leakage")
def leakage(e: Example, ce: Cross) -> Given:
    return right(e, ce, logits=e.of_labels, shift=False, input_ids=e.text, loss=ce(e.of_labels, e.labels, 0))


@mistake("targets are moved in the wrong direction", "shift")
def backwards(e: Example, ce: Cross) -> Given:
    targets = ahead(e.ids.masked_fill(e.mask == 0, -100), -1)
    return right(e, ce, targets=targets, shift=False, loss=ce(e.logits, targets, 0))


@mistake("pplmon scores padding", "padding_scored")
def padding_in_targets(e: Example, ce: Cross) -> Given:
    return right(e, ce, targets=e.text)


@mistake("pplmon scores padding; no mask is given", "padding_scored")
def padding_without_mask(e: Example, ce: Cross) -> Given:
    return right(e, ce, targets=e.text, attention_mask=None)


@mistake("the loss and pplmon score padding", "padding_scored")
def padding_in_both(e: Example, ce: Cross) -> Given:
    return right(e, ce, targets=e.text, loss=ce(e.logits, e.text, e.shift))


@mistake("the loss scores padding", "padding_scored", by_loss=True)
def padding_in_loss(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=ce(e.logits, e.text, e.shift))


@mistake("the loss scores prompts", "prompt_scored", by_loss=True)
def prompt_in_loss(e: Example, ce: Cross) -> Given:
    return right(e, ce, targets=e.answers)


@mistake("pplmon scores prompts", "prompt_scored", by_loss=True)
def prompt_in_targets(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=ce(e.logits, e.answers, e.shift))


@mistake("the loss drops the mask of prompts and padding", "mask_dropped", by_loss=True)
def mask_dropped(e: Example, ce: Cross) -> Given:
    return right(e, ce, targets=e.answers, loss=ce(e.logits, e.text, e.shift))


@mistake("the loss uses the mask of the logits for the targets", "mask_off_by_one", by_loss=True)
def mask_off_by_one(e: Example, ce: Cross) -> Given:
    late = e.text.masked_fill(ahead(e.answers, -1) == -100, -100)
    return right(e, ce, targets=e.answers, loss=ce(e.logits, late, e.shift))


@mistake("pplmon's mask is True on padding", "mask_opposite")
def mask_opposite(e: Example, ce: Cross) -> Given:
    return right(e, ce, targets=e.text, input_ids=None, attention_mask=None, mask=e.labels == -100)


@mistake("labels are ignored where the text is", "mask_opposite")
def labels_opposite(e: Example, ce: Cross) -> Given:
    return right(e, ce, targets=e.text.masked_fill(e.labels != -100, -100))


@mistake("labels are ignored where the answers are, and nowhere else", "mask_opposite", "padding_scored")
def answers_opposite(e: Example, ce: Cross) -> Given:
    return right(e, ce, targets=e.text.masked_fill(e.answers != -100, -100), loss=ce(e.logits, e.answers, e.shift))


@mistake("the attention mask is 1 on padding", "mask_opposite")
def attention_mask_opposite(e: Example, ce: Cross) -> Given:
    return right(e, ce, attention_mask=1 - e.mask)


@mistake("all labels are ignored", "all_ignored")
def all_ignored(e: Example, ce: Cross) -> Given:
    nothing = torch.full_like(e.labels, -100)
    return right(e, ce, targets=nothing, loss=ce(e.logits, nothing, e.shift))


@mistake("two rows lost their answers to truncation", "truncated_rows")
def truncated(e: Example, ce: Cross) -> Given:
    targets = e.answers.clone()
    rows = (e.mask[:, -1] == 1).nonzero()[:2, 0]  # no padding: the row is full
    targets[rows] = -100
    return right(e, ce, targets=targets, loss=ce(e.logits, targets, e.shift))


@mistake("most targets are the unknown id", "one_id")
def unknown_id(e: Example, ce: Cross) -> Given:
    unknown = torch.rand(e.labels.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    targets = e.labels.masked_fill(unknown & (e.labels != -100), 2)
    return right(e, ce, targets=targets, loss=ce(e.logits, targets, e.shift))


@mistake("the loss smooths its labels", "label_smoothing", by_loss=True)
def smoothing(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=ce(e.logits, e.labels, e.shift, label_smoothing=0.1))


@mistake("the loss holds an auxiliary term", "further_term", by_loss=True)
def auxiliary(e: Example, ce: Cross) -> Given:
    own = e.model_loss.to(e.logits.dtype) if not ce.in_fp32 else e.model_loss
    plain = ce(e.logits, e.labels, e.shift)
    if own.item() > plain.item() + 1e-3:  # Mixtral's router has one of its own
        return right(e, ce, loss=own)
    return right(e, ce, loss=plain + 0.02 * (1 + 0.3 * e.logits.float().std()).to(plain.dtype))


@mistake("the loss holds a z-loss", "z_loss", by_loss=True)
def z_loss(e: Example, ce: Cross) -> Given:
    losses, mask = ce.each(e.logits, e.labels, e.shift)
    lse = aligned(e.logits.float().logsumexp(-1), e.labels, e.shift)[0].to(losses.dtype)
    return right(e, ce, loss=((losses + 1e-4 * lse**2) * mask).sum() / mask.sum())


@mistake("the loss is divided by accumulated batches twice", "accumulation", by_loss=True)
def divided_twice(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=ce(e.logits, e.labels, e.shift) / 4, run=Run(accumulation=4))


@mistake("the loss is not divided by accumulated batches", "accumulation", by_loss=True)
def not_divided(e: Example, ce: Cross) -> Given:
    return right(e, ce, run=Run(accumulation=4, divided=True))


@mistake("the loss is multiplied by the ranks", "ranks", by_loss=True)
def times_ranks(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=ce(e.logits, e.labels, e.shift) * 8, run=Run(ranks=8))


@mistake("the loss is divided by something that is not known", "scaled_loss", by_loss=True)
def divided(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=ce(e.logits, e.labels, e.shift) / 6)


@mistake("the loss is the mean of the sequences' means", "per_sequence_mean", by_loss=True)
def sequence_mean(e: Example, ce: Cross) -> Given:
    losses, mask = ce.each(e.logits, e.labels, e.shift)
    return right(e, ce, loss=((losses * mask).sum(1) / mask.sum(1)).mean())


@mistake("the masked loss is averaged over all positions", "denominator", by_loss=True)
def over_positions(e: Example, ce: Cross) -> Given:
    losses, mask = ce.each(e.logits, e.labels, e.shift)
    return right(e, ce, loss=(losses * mask).mean())


@mistake("the loss is a sum", "denominator", by_loss=True)
def summed(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=ce(e.logits, e.labels, e.shift, reduction="sum"))


@mistake("the loss is in bits", "unit", by_loss=True)
def in_bits(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=ce(e.logits, e.labels, e.shift) / math.log(2))


@mistake("labels are of a tokenizer with more ids", "outside_vocabulary")
def larger_tokenizer(e: Example, ce: Cross) -> Given:
    more = (e.labels % 5 == 0) & (e.labels > 0)
    return right(e, ce, targets=torch.where(more, e.labels + e.logits.shape[-1], e.labels), loss=None)


@mistake("labels are of a tokenizer with other ids", "other_labels")
def other_tokenizer(e: Example, ce: Cross) -> Given:
    renumber = torch.randperm(e.logits.shape[-1], generator=torch.Generator().manual_seed(5))
    targets = torch.where(e.labels == -100, -100, renumber[e.labels.clamp_min(0)])
    return right(e, ce, targets=targets, loss=ce(e.logits, targets, e.shift))


@mistake("targets are ids that pad the vocabulary", "padded_vocabulary")
def padded_targets(e: Example, ce: Cross) -> Given:
    logits = e.logits.clone()
    logits[..., -8:] = -torch.inf
    return right(e, ce, logits=logits, loss=None)


@mistake("the loss leaves out columns that pad the vocabulary", "padded_vocabulary", by_loss=True)
def padded_columns(e: Example, ce: Cross) -> Given:
    used = e.logits.shape[-1] - 5
    targets = e.labels.masked_fill(e.labels >= used, -100)
    return right(e, ce, targets=targets, loss=ce(e.logits[..., :used], targets, e.shift))


@mistake("the loss was added up in bf16", "low_precision_loss", by_loss=True)
def added_in_bf16(e: Example, ce: Cross) -> Given:
    losses, mask = Cross().each(e.logits, e.labels, e.shift)
    total = torch.zeros((), dtype=torch.bfloat16)
    for loss in (losses * mask).flatten().bfloat16().repeat(4):  # as a larger batch would
        total += loss
    return right(e, ce, loss=total / (4 * mask.sum()).bfloat16())


@mistake("the loss is another model's", "another_loss", "further_term", by_loss=True)
def another_model(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=ce(e.of_another, e.labels, e.shift))


@mistake("probabilities are given as logits", "not_logits")
def probabilities(e: Example, ce: Cross) -> Given:
    return right(e, ce, logits=e.logits.float().softmax(-1).to(e.logits.dtype))


@mistake("padding is marked by -1", "ignore_index")
def other_mark(e: Example, ce: Cross) -> Given:
    return right(e, ce, targets=e.labels.masked_fill(e.labels == -100, -1))


@mistake("the loss is NaN: it divides by a row without targets", "nonfinite")
def row_without_targets(e: Example, ce: Cross) -> Given:
    targets = e.answers.clone()
    targets[1] = -100
    losses, mask = ce.each(e.logits, targets, e.shift)
    return right(e, ce, targets=targets, loss=((losses * mask).sum(1) / mask.sum(1)).mean())


assert PAD == 0  # text with padding is scored at id 0
