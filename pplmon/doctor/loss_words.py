"""Findings of a loss in words: what it is in place of the cross-entropy, with both values, and the line that mends it."""

from __future__ import annotations

from typing import Any

import torch

from pplmon.doctor.finding import Finding
from pplmon.doctor.words import GIVE_LABELS, PLAIN_LOSS, TARGETS, both, nats


def shorter_vocabulary(loss: float, mean: float, size: int, vocab: int) -> Finding:
    """Say that the loss leaves the last ids out."""
    return Finding(
        "padded_vocabulary",
        f"{both(loss, mean)}: the loss leaves out the last {vocab - size} of {vocab} ids",
        f"Give pplmon what the loss is given: logits[..., :{size}]",
        {"loss": loss, "cross_entropy": mean, "size": size, "vocab_size": vocab},
    )


def nonfinite_loss(loss: float, mean: float) -> Finding:
    """Say that the loss is NaN or infinite, and the cross-entropy is not."""
    return Finding(
        "nonfinite",
        f"{both(loss, mean)}: the loss was divided by 0 tokens, of a row or a term, or overflowed in its dtype",
        "loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()); a row's mean needs .clamp(min=1)",
        {"loss": loss, "cross_entropy": mean},
    )


def pplmon_shift(loss: float, mean: float, shift: int, right: int) -> Finding:
    """Say that the loss has another shift than pplmon."""
    return Finding(
        "shift",
        f"{both(loss, mean)} with shift={bool(shift)}: the loss scores logits[t] on {TARGETS[right]}, pplmon on {TARGETS[shift]}",
        {0: "Pass shift=False", 1: "Pass shift=True"}.get(right, GIVE_LABELS),
        {"loss": loss, "cross_entropy": mean, "shift": shift, "loss_shift": right},
    )


def loss_shift(loss: float, mean: float, shift: int, found: int) -> Finding:
    """Say that the loss has another shift than the input ids ask for."""
    return Finding(
        "shift",
        f"{both(loss, mean)}: the loss scores logits[t] on {TARGETS[found]}, and the input ids say {TARGETS[shift]}",
        PLAIN_LOSS.get(shift, GIVE_LABELS),
        {"loss": loss, "cross_entropy": mean, "shift": shift, "loss_shift": found},
    )


_IN_LOSS = {
    "padding too": ("padding_scored", "the loss scores padding too, which the targets ignore"),
    "prompt too": ("prompt_scored", "the loss scores prompts too, which the targets ignore"),
    "all": ("mask_dropped", "the loss scores every position, the ignored ones too"),
    "mask late": ("mask_off_by_one", "the loss masks each target by the mask of the one before it"),
    "mask early": ("mask_off_by_one", "the loss masks each target by the mask of the one after it"),
}


def other_tokens(scored: str, inner: bool, loss: float, mean: float, tokens: int, of: int, shift: int) -> Finding:
    """Say that the loss scores another set of the same targets."""
    evidence = {"loss": loss, "cross_entropy": mean, "loss_tokens": tokens, "tokens": of, "scored": scored}
    values = f"{both(loss, mean)}: "
    if scored == "no padding":
        text = f"{values}pplmon scores {of - tokens} targets that are padding, which the loss does not"
        return Finding("padding_scored", text, "targets = labels.masked_fill(attention_mask == 0, -100)", evidence)
    if scored == "opposite":
        text = f"{values}the loss scores the {tokens} targets that pplmon leaves out, and not the {of} that it scores"
        return Finding("mask_opposite", text, "mask=~mask: a mask is True where a target is scored", evidence)
    kind, what = _IN_LOSS["all" if inner and scored == "prompt too" else scored]
    fix = PLAIN_LOSS.get(shift, PLAIN_LOSS[1]) + ", whose ignore_index is -100"
    return Finding(kind, f"{values}{what}, {tokens} tokens for {of}", fix, evidence)


def prompt_scored(place: str, loss: float, mean: float) -> Finding:
    """Say that pplmon scores prompts that the loss does not."""
    return Finding(
        "prompt_scored",
        f"{both(loss, mean)}: the loss scores what follows {place} of each row, pplmon the prompt too",
        "Give pplmon the labels that the loss is given, with -100 on the prompt",
        {"loss": loss, "cross_entropy": mean, "from": place},
    )


def reduction(name: str, loss: float, mean: float) -> Finding:
    """Say that the losses are not made one number by the mean over tokens."""
    evidence = {"loss": loss, "cross_entropy": mean, "reduction": name}
    if name.startswith("sequence mean"):
        return Finding(
            "per_sequence_mean",
            f"{both(loss, mean)}: the loss is the mean over sequences of their means, in which short ones count more",
            "loss = nll.sum() / mask.sum(), if every token is to count the same",
            evidence,
        )
    divisors = {"sum": "nothing", "sum / sequences": "the sequences", "sum / told": "the tokens that pplmon scores"}
    by = divisors.get(name, "all positions, the ignored ones too")
    return Finding(
        "denominator",
        f"{both(loss, mean)}: the loss is a sum over tokens divided by {by}",
        "loss = nll.sum() / mask.sum()",
        evidence,
    )


def factor(name: str, loss: float, mean: float, accumulation: int, ranks: int) -> Finding:
    """Say what the loss was multiplied or divided by, or its unit."""
    evidence: dict[str, Any] = {"loss": loss, "cross_entropy": mean, "factor": name}
    values = both(loss, mean)
    units = {
        "bits": "in bits: divided by ln 2",
        "digits": "in digits: divided by ln 10",
        "perplexity": "a perplexity: exp of it",
    }
    if name in units:
        what = units[name]
        return Finding(
            "unit", f"{values}: the loss is {what}", "Call backward() on the cross-entropy itself, in nats", evidence
        )
    if name == "accumulated twice":
        text = f"{values}: it is divided by the {accumulation} accumulated batches once more than it should be"
        return Finding("accumulation", text, "Return the loss undivided: the trainer divides it", evidence)
    if name == "not accumulated":
        text = f"{values}: it is not divided by the {accumulation} accumulated batches"
        return Finding("accumulation", text, f"(loss / {accumulation}).backward()", evidence)
    way = "multiplied" if name == "times ranks" else "divided"
    fix = "Leave the ranks to the trainer: DDP takes the mean of gradients"
    return Finding("ranks", f"{values}: the loss is {way} by {ranks} ranks", fix, evidence)


def scaled(times: float, loss: float, mean: float) -> Finding:
    """Say that the loss is a multiple of the cross-entropy."""
    way = f"{times:.4g} times" if times >= 1 else f"1/{1 / times:.4g} of"
    return Finding(
        "scaled_loss",
        f"{both(loss, mean)}: the loss is {way} it",
        "Give the loss before it is weighted, or divided by accumulated batches",
        {"loss": loss, "cross_entropy": mean, "times": times},
    )


def smoothed(epsilon: float, loss: float, mean: float) -> Finding:
    """Say that the loss smooths its labels."""
    return Finding(
        "label_smoothing",
        f"{both(loss, mean)}: the loss smooths its labels by {epsilon:.3g}, so exp(loss) is no perplexity",
        "None needed: read cross_entropy, and compare losses only with losses of the same smoothing",
        {"loss": loss, "cross_entropy": mean, "epsilon": epsilon},
    )


def z_loss(weight: float, loss: float, mean: float) -> Finding:
    """Say that the loss holds a z-loss."""
    return Finding(
        "z_loss",
        f"{both(loss, mean)}: the loss holds {weight:.2g} times the mean of lse², a z-loss",
        "None needed: read cross_entropy, exp(loss) is no perplexity",
        {"loss": loss, "cross_entropy": mean, "weight": weight},
    )


def further_term(loss: float, mean: float, least: float, most: float) -> Finding:
    """Say that the loss is above the cross-entropy, by what no hypothesis gives."""
    size = nats(least) if least == most else f"{nats(least)} to {nats(most)}"
    return Finding(
        "further_term",
        f"{both(loss, mean)}: the loss holds a further term of {size}, an auxiliary loss, label smoothing or a penalty, or it is another model's",
        "None needed if you added one: read cross_entropy, exp(loss) is no perplexity; else look at what is added",
        {"loss": loss, "cross_entropy": mean, "least": least, "most": most},
    )


def low_precision(dtype: torch.dtype, loss: float, mean: float) -> Finding:
    """Say that a loss of low precision is further off than it should be."""
    name = str(dtype).removeprefix("torch.")
    more = "is no token mean" if loss < mean else "is no token mean, or holds a further term"
    return Finding(
        "low_precision_loss",
        f"{both(loss, mean)}, {nats(abs(loss - mean))} apart: the loss was added up in {name}, or {more}",
        "loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()), and look again",
        {"loss": loss, "cross_entropy": mean, "dtype": name},
    )


def another_loss(loss: float, mean: float) -> Finding:
    """Say that the loss is not that of these logits and targets."""
    return Finding(
        "another_loss",
        f"{both(loss, mean)}, and no shift, mask or reduction gives it: it is not that of these logits and targets, "
        "but of another model or batch",
        "Give logits, targets and loss of one and the same call",
        {"loss": loss, "cross_entropy": mean},
    )


def several_fit(loss: float, mean: float, names: list[str]) -> Finding:
    """Say that nothing is decided."""
    return Finding(
        "several_fit",
        f"{both(loss, mean)}, and several explanations fit: {'; '.join(names)}",
        "Give a second batch, or input_ids and attention_mask",
        {"loss": loss, "cross_entropy": mean, "fit": names},
    )
