"""Findings of a batch in words, with or without a loss: what is wrong with it, and the line that mends it."""

from __future__ import annotations

from typing import Any

from pplmon.doctor.finding import Finding
from pplmon.doctor.words import GIVE_LABELS, PLAIN_LOSS, nats


def not_logits(kind: str, rows: int, of: int) -> Finding:
    """Say that what was given are probabilities, or gradients."""
    fix = (
        "Give the head's output itself, before softmax"
        if kind == "probabilities"
        else "Measure before the loss, which wrote over its logits"
    )
    return Finding(
        "not_logits", f"what was given as logits are {kind}, in {rows} of {of} rows looked at", fix, {"rows": rows}
    )


def outside_vocabulary(count: int, of: int, largest: int, vocab: int) -> Finding:
    """Say that targets have no column in the logits."""
    return Finding(
        "outside_vocabulary",
        f"{count} of {of} targets are beyond the vocabulary: the largest id is {largest}, the logits have {vocab} columns",
        "model.resize_token_embeddings(len(tokenizer)), or use the tokenizer that the model was made with",
        {"targets": count, "largest": largest, "vocab_size": vocab},
    )


def ignore_index(count: int, of: int, value: int, expected: int | None) -> Finding:
    """Say that targets are marked by another negative number than is ignored."""
    return Finding(
        "ignore_index",
        f"{count} of {of} targets are negative, up to {value}, and ignore_index is {expected}",
        f"TokenTally(ignore_index={value}), or targets.masked_fill(targets < 0, -100)",
        {"targets": count, "value": value, "ignore_index": expected},
    )


def all_ignored(positions: int, told: int) -> Finding:
    """Say that there is nothing to score: of no target, or of targets in a column without logits."""
    if told:
        text = f"all {told} scored targets are in the first column, which shift=True has no logits for"
        return Finding(
            "all_ignored", text, "Pass shift=False if the targets are shifted already", {"positions": positions}
        )
    return Finding(
        "all_ignored",
        f"all {positions} targets are ignored: there is nothing to score, and the loss is 0/0",
        "Look at the labels before they are masked: was everything taken for prompt or padding?",
        {"positions": positions},
    )


def truncated_rows(rows: int, of: int) -> Finding:
    """Say that full rows have nothing to score."""
    return Finding(
        "truncated_rows",
        f"{rows} of {of} rows are full and have nothing to score: their answer was cut off",
        "Raise max_length, cut prompts from the left, or drop these rows",
        {"rows": rows, "of": of},
    )


def one_id(token: int, count: int, of: int) -> Finding:
    """Say that one id is half of the targets."""
    return Finding(
        "one_id",
        f"{count} of {of} scored targets are id {token}",
        f"If {token} is padding: targets.masked_fill(targets == {token}, -100); if it is unknown: use the model's own tokenizer",
        {"id": token, "targets": count, "of": of},
    )


def padded_targets(count: int) -> Finding:
    """Say that targets have a logit of −inf."""
    return Finding(
        "padded_vocabulary",
        f"{count} scored targets are ids whose logit is -inf, as that of columns that pad a vocabulary",
        "Use the tokenizer that the model was made with, or ignore these targets",
        {"targets": count},
    )


def nonfinite_logits(count: int) -> Finding:
    """Say that scored tokens have no finite loss."""
    return Finding(
        "nonfinite",
        f"{count} scored tokens have no finite loss: their logits are NaN or infinite",
        "torch.autograd.set_detect_anomaly(True) shows the operation",
        {"tokens": count},
    )


def other_labels(text: str, evidence: dict[str, Any]) -> Finding:
    """Say that the targets are not made of the input ids."""
    fix = "Make labels of the input ids: labels = input_ids.masked_fill(attention_mask == 0, -100), with shift=True"
    return Finding("other_labels", text, fix, evidence)


def misaligned(
    offset: int, mean: float, right: float, shift: int, ids: int, *, loss: float | None, same: bool
) -> Finding:
    """Say that logits are scored on the input that is ``offset`` ahead, by pplmon; and by the loss, where it is the ``same``."""
    by_both = "" if loss is None else f"; the loss {nats(loss)} does so, too" if same else f"; the loss is {nats(loss)}"
    values = f"{nats(mean)} nats, where the next one costs {nats(right)}{by_both}"
    evidence = {
        "offset": offset,
        "shift": shift,
        "cross_entropy": mean,
        "of_next": right,
        "loss": loss,
        "loss_too": same,
    }
    fix = {0: "Pass shift=True", 1: "Pass shift=False"}.get(ids, GIVE_LABELS)
    if same and ids in (0, 1):
        fix += ", and " + PLAIN_LOSS[1 - ids]
    if offset == 0:
        return Finding(
            "target_leakage", f"logits are scored on the id that they were computed from: {values}", fix, evidence
        )
    way = {2: "two ahead, shifted twice", -1: "before"}.get(offset, f"{offset} ahead")
    return Finding("shift", f"logits are scored on the input {way}: {values}", fix, evidence)


def shift_by_model(mean: float, shifted: float, uniform: float) -> Finding:
    """Say that the model itself tells that targets are to be shifted."""
    return Finding(
        "shift",
        f"the cross-entropy is {nats(mean)}, above a uniform guess of {nats(uniform)}, and {nats(shifted)} with shift=True",
        "Pass shift=True",
        {"cross_entropy": mean, "shifted": shifted},
    )


def padding_scored(count: int, of: int, mean: float, without: float, loss: float | None) -> Finding:
    """Say that padding is among the targets that pplmon scores; the loss may score it, too."""
    and_loss = "" if loss is None else f", the loss {nats(loss)}"
    return Finding(
        "padding_scored",
        f"{count} of {of} scored targets are padding: the cross-entropy is {nats(mean)}, without them {nats(without)}{and_loss}",
        "targets = labels.masked_fill(attention_mask == 0, -100)",
        {"targets": count, "cross_entropy": mean, "without_padding": without, "loss": loss},
    )


def mask_opposite(count: int, left_out: int, mean: float, loss: float | None, agrees: bool) -> Finding:
    """Say that padding is scored in place of the text; or, where the loss ``agrees``, that the attention mask says so."""
    of = "the attention mask marks the text" if agrees else "pplmon scores padding in place of the text"
    and_loss = "" if loss is None else f", the loss {nats(loss)}"
    return Finding(
        "mask_opposite",
        f"{of}: all {count} scored targets are padding by it, and {left_out} others are not scored. The cross-entropy is "
        f"{nats(mean)}{and_loss}",
        "attention_mask is 1 on text" if agrees else "mask=~mask: a mask is True where a target is scored",
        {"targets": count, "left_out": left_out, "cross_entropy": mean, "loss": loss},
    )


def repeated_rows(ranks: int) -> Finding:
    """Say that ranks have the same rows."""
    return Finding(
        "repeated_rows",
        f"the first batches of {ranks} ranks are the same rows",
        "Give the loader a DistributedSampler, and its set_epoch(epoch) in every epoch",
        {"ranks": ranks},
    )
