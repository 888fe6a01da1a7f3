"""A finding of the doctor: one thing that does not agree, and the line that mends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that does not agree. ``str(finding)`` is one line."""

    kind: str  # one of ``KINDS``, to branch on
    text: str  # what disagrees, with both values
    fix: str  # the line to write
    evidence: dict[str, Any] = field(default_factory=dict, hash=False)  # the numbers that the text is made of

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}. {self.fix}"


# Each kind, and what it means in a few words. docs/doctor.md has a paragraph of each.
KINDS = {
    "not_logits": "what was given as logits are probabilities, or gradients that a loss left behind",
    "nonfinite": "the loss, or the logits of scored tokens, are NaN or infinite",
    "outside_vocabulary": "targets are ids that the logits have no column for",
    "padded_vocabulary": "columns that pad the vocabulary are targets, or are left out by the loss alone",
    "ignore_index": "targets are marked by a negative number that is not ignore_index",
    "all_ignored": "the batch has nothing to score",
    "truncated_rows": "whole rows have nothing to score, because their end was cut off",
    "one_id": "half of the targets are one id",
    "other_labels": "the targets come from another tokenizer than the inputs",
    "target_leakage": "logits are scored on the id that they were computed from",
    "shift": "logits are scored on a target that is not the next one",
    "padding_scored": "padding is scored",
    "prompt_scored": "the prompt is scored by one of the two",
    "mask_dropped": "the loss scores what the targets ignore",
    "mask_opposite": "padding is scored in place of the text: a mask is of the opposite sense",
    "mask_off_by_one": "the loss uses the mask of the neighbouring token",
    "per_sequence_mean": "the loss is a mean of the sequences' means",
    "denominator": "the loss is divided by something else than its tokens",
    "accumulation": "the loss is divided by the accumulated batches twice, or not at all",
    "ranks": "the loss is multiplied or divided by the number of ranks",
    "scaled_loss": "the loss is a multiple of the cross-entropy",
    "unit": "the loss is in bits or digits, or is a perplexity",
    "label_smoothing": "the loss smooths its labels",
    "z_loss": "the loss holds a z-loss",
    "further_term": "the loss holds a further, positive term",
    "low_precision_loss": "the loss was added up in a low precision",
    "another_loss": "the loss is that of another model, or of other targets",
    "several_fit": "the loss is not the cross-entropy, and several explanations fit",
    "repeated_rows": "ranks train on the same rows",
}

# What a loss may well be meant to hold, and what is no more than a rounding.
OFTEN_MEANT = {"further_term", "label_smoothing", "z_loss", "per_sequence_mean", "low_precision_loss", "several_fit"}
TOLD_ELSEWHERE = {"not_logits", "outside_vocabulary", "nonfinite"}  # by a warning, an error and an alert of their own
