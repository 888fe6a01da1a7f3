"""The findings of the doctor in words: what disagrees, with both values, and the line that mends it."""

from __future__ import annotations

from typing import Any

import torch

from pplmon.doctor.finding import Finding

TARGETS = {-1: "targets[t-1]", 0: "targets[t]", 1: "targets[t+1]", 2: "targets[t+2]"}
GIVE_LABELS = "Give the labels as the batch has them, with shift=True"
PLAIN_LOSS = {
    0: "loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())",
    1: "loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())",
}


def nats(value: float) -> str:
    """Return a value in five digits."""
    return f"{value:.5g}"


def both(loss: float, mean: float) -> str:
    """Return the two values that every finding about a loss gives."""
    return f"the loss is {nats(loss)}, the cross-entropy {nats(mean)}"


def not_logits(kind: str, rows: int, of: int) -> Finding:
    fix = (
        "Give the head's output itself, before softmax"
        if kind == "probabilities"
        else "Measure before the loss, which wrote over its logits"
    )
    return Finding("not_logits", f"what was given as logits are {kind}, in {rows} of {of} rows looked at", fix, {"rows": rows})


def outside_vocabulary(count: int, of: int, largest: int, vocab: int) -> Finding:
    return Finding(
        "outside_vocabulary",
        f"{count} of {of} targets are beyond the vocabulary: the largest id is {largest}, the logits have {vocab} columns",
        "model.resize_token_embeddings(len(tokenizer)), or use the tokenizer that the model was made with",
        {"targets": count, "largest": largest, "vocab_size": vocab},
    )


def ignore_index(count: int, of: int, value: int, expected: int | None) -> Finding:
    return Finding(
        "ignore_index",
        f"{count} of {of} targets are negative, up to {value}, and ignore_index is {expected}",
        f"TokenTally(ignore_index={value}), or targets.masked_fill(targets < 0, -100)",
        {"targets": count, "value": value, "ignore_index": expected},
    )


def all_ignored(positions: int, told: int) -> Finding:
    if told:
        text = f"all {told} scored targets are in the first column, which shift=True has no logits for"
        return Finding("all_ignored", text, "Pass shift=False if the targets are shifted already", {"positions": positions})
    return Finding(
        "all_ignored",
        f"all {positions} targets are ignored: there is nothing to score, and the loss is 0/0",
        "Look at the labels before they are masked: was everything taken for prompt or padding?",
        {"positions": positions},
    )


def truncated_rows(rows: int, of: int) -> Finding:
    return Finding(
        "truncated_rows",
        f"{rows} of {of} rows are full and have nothing to score: their answer was cut off",
        "Raise max_length, cut prompts from the left, or drop these rows",
        {"rows": rows, "of": of},
    )


def one_id(token: int, count: int, of: int) -> Finding:
    return Finding(
        "one_id",
        f"{count} of {of} scored targets are id {token}",
        f"If {token} is padding: targets.masked_fill(targets == {token}, -100); if it is unknown: use the model's own tokenizer",
        {"id": token, "targets": count, "of": of},
    )


def padded_targets(count: int) -> Finding:
    return Finding(
        "padded_vocabulary",
        f"{count} scored targets are ids whose logit is -inf, as that of columns that pad a vocabulary",
        "Use the tokenizer that the model was made with, or ignore these targets",
        {"targets": count},
    )


def shorter_vocabulary(loss: float, mean: float, size: int, vocab: int) -> Finding:
    return Finding(
        "padded_vocabulary",
        f"{both(loss, mean)}: the loss leaves out the last {vocab - size} of {vocab} ids",
        f"Give pplmon what the loss is given: logits[..., :{size}]",
        {"loss": loss, "cross_entropy": mean, "size": size, "vocab_size": vocab},
    )


def nonfinite_logits(count: int) -> Finding:
    return Finding(
        "nonfinite",
        f"{count} scored tokens have no finite loss: their logits are NaN or infinite",
        "torch.autograd.set_detect_anomaly(True) shows the operation",
        {"tokens": count},
    )


def nonfinite_loss(loss: float, mean: float) -> Finding:
    return Finding(
        "nonfinite",
        f"{both(loss, mean)}: the loss was divided by 0 tokens, of a row or a term, or overflowed in its dtype",
        "loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()); a row's mean needs .clamp(min=1)",
        {"loss": loss, "cross_entropy": mean},
    )


def other_labels(text: str, evidence: dict[str, Any]) -> Finding:
    fix = "Make labels of the input ids: labels = input_ids.masked_fill(attention_mask == 0, -100), with shift=True"
    return Finding("other_labels", text, fix, evidence)


def misaligned(offset: int, mean: float, right: float, shift: int, ids: int, *, loss: float | None, same: bool) -> Finding:
    """Logits are scored on the input that is ``offset`` ahead, by pplmon; and by the loss, where it is the ``same``."""
    by_both = "" if loss is None else f"; the loss {nats(loss)} does so, too" if same else f"; the loss is {nats(loss)}"
    values = f"{nats(mean)} nats, where the next one costs {nats(right)}{by_both}"
    evidence = {"offset": offset, "shift": shift, "cross_entropy": mean, "of_next": right, "loss": loss, "loss_too": same}
    fix = {0: "Pass shift=True", 1: "Pass shift=False"}.get(ids, GIVE_LABELS)
    if same and ids in (0, 1):
        fix += ", and " + PLAIN_LOSS[1 - ids]
    if offset == 0:
        return Finding("target_leakage", f"logits are scored on the id that they were computed from: {values}", fix, evidence)
    way = {2: "two ahead, shifted twice", -1: "before"}.get(offset, f"{offset} ahead")
    return Finding("shift", f"logits are scored on the input {way}: {values}", fix, evidence)


def pplmon_shift(loss: float, mean: float, shift: int, right: int) -> Finding:
    return Finding(
        "shift",
        f"{both(loss, mean)} with shift={bool(shift)}: the loss scores logits[t] on {TARGETS[right]}, pplmon on {TARGETS[shift]}",
        {0: "Pass shift=False", 1: "Pass shift=True"}.get(right, GIVE_LABELS),
        {"loss": loss, "cross_entropy": mean, "shift": shift, "loss_shift": right},
    )


def loss_shift(loss: float, mean: float, shift: int, found: int) -> Finding:
    return Finding(
        "shift",
        f"{both(loss, mean)}: the loss scores logits[t] on {TARGETS[found]}, and the input ids say {TARGETS[shift]}",
        PLAIN_LOSS.get(shift, GIVE_LABELS),
        {"loss": loss, "cross_entropy": mean, "shift": shift, "loss_shift": found},
    )


def shift_by_model(mean: float, shifted: float, uniform: float) -> Finding:
    return Finding(
        "shift",
        f"the cross-entropy is {nats(mean)}, above a uniform guess of {nats(uniform)}, and {nats(shifted)} with shift=True",
        "Pass shift=True",
        {"cross_entropy": mean, "shifted": shifted},
    )


def padding_scored(count: int, of: int, mean: float, without: float, loss: float | None) -> Finding:
    """Padding is among the targets that pplmon scores; ``loss`` where there is one that may or may not do so."""
    and_loss = "" if loss is None else f", the loss {nats(loss)}"
    return Finding(
        "padding_scored",
        f"{count} of {of} scored targets are padding: the cross-entropy is {nats(mean)}, without them {nats(without)}{and_loss}",
        "targets = labels.masked_fill(attention_mask == 0, -100)",
        {"targets": count, "cross_entropy": mean, "without_padding": without, "loss": loss},
    )


_IN_LOSS = {
    "padding too": ("padding_scored", "the loss scores padding too, which the targets ignore"),
    "prompt too": ("prompt_scored", "the loss scores prompts too, which the targets ignore"),
    "all": ("mask_dropped", "the loss scores every position, the ignored ones too"),
    "mask late": ("mask_off_by_one", "the loss masks each target by the mask of the one before it"),
    "mask early": ("mask_off_by_one", "the loss masks each target by the mask of the one after it"),
}


def other_tokens(scored: str, inner: bool, loss: float, mean: float, tokens: int, of: int, shift: int) -> Finding:
    """The loss scores another set of the same targets."""
    evidence = {"loss": loss, "cross_entropy": mean, "loss_tokens": tokens, "tokens": of, "scored": scored}
    values = f"{both(loss, mean)}: "
    if scored == "no padding":
        text = f"{values}pplmon scores {of - tokens} targets that are padding, which the loss does not"
        return Finding("padding_scored", text, "targets = labels.masked_fill(attention_mask == 0, -100)", evidence)
    kind, what = _IN_LOSS["all" if inner and scored == "prompt too" else scored]
    fix = PLAIN_LOSS.get(shift, PLAIN_LOSS[1]) + ", whose ignore_index is -100"
    return Finding(kind, f"{values}{what}, {tokens} tokens for {of}", fix, evidence)


def prompt_scored(place: str, loss: float, mean: float) -> Finding:
    return Finding(
        "prompt_scored",
        f"{both(loss, mean)}: the loss scores what follows {place} of each row, pplmon the prompt too",
        "Give pplmon the labels that the loss is given, with -100 on the prompt",
        {"loss": loss, "cross_entropy": mean, "from": place},
    )


def reduction(name: str, loss: float, mean: float) -> Finding:
    evidence = {"loss": loss, "cross_entropy": mean, "reduction": name}
    if name.startswith("sequence mean"):
        return Finding(
            "per_sequence_mean",
            f"{both(loss, mean)}: the loss is the mean over sequences of their means, in which short ones count more",
            "loss = nll.sum() / mask.sum(), if every token is to count the same",
            evidence,
        )
    by = {"sum": "nothing", "sum / sequences": "the sequences"}.get(name, "all positions, the ignored ones too")
    return Finding(
        "denominator",
        f"{both(loss, mean)}: the loss is a sum over tokens divided by {by}",
        "loss = nll.sum() / mask.sum()",
        evidence,
    )


def factor(name: str, loss: float, mean: float, accumulation: int, ranks: int) -> Finding:
    evidence: dict[str, Any] = {"loss": loss, "cross_entropy": mean, "factor": name}
    values = both(loss, mean)
    if name in ("bits", "perplexity"):
        what = "in bits: divided by ln 2" if name == "bits" else "a perplexity: exp of it"
        return Finding("unit", f"{values}: the loss is {what}", "Call backward() on the cross-entropy itself, in nats", evidence)
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
    way = f"{times:.4g} times" if times >= 1 else f"1/{1 / times:.4g} of"
    return Finding(
        "scaled_loss",
        f"{both(loss, mean)}: the loss is {way} it",
        "Give the loss before it is weighted, or divided by accumulated batches",
        {"loss": loss, "cross_entropy": mean, "times": times},
    )


def smoothed(epsilon: float, loss: float, mean: float) -> Finding:
    return Finding(
        "label_smoothing",
        f"{both(loss, mean)}: the loss smooths its labels by {epsilon:.3g}, so exp(loss) is no perplexity",
        "None needed: read cross_entropy, and compare losses only with losses of the same smoothing",
        {"loss": loss, "cross_entropy": mean, "epsilon": epsilon},
    )


def z_loss(weight: float, loss: float, mean: float) -> Finding:
    return Finding(
        "z_loss",
        f"{both(loss, mean)}: the loss holds {weight:.2g} times the mean of lse², a z-loss",
        "None needed: read cross_entropy, exp(loss) is no perplexity",
        {"loss": loss, "cross_entropy": mean, "weight": weight},
    )


def further_term(loss: float, mean: float, least: float, most: float) -> Finding:
    size = nats(least) if least == most else f"{nats(least)} to {nats(most)}"
    return Finding(
        "further_term",
        f"{both(loss, mean)}: the loss holds a further term of {size}, such as a router's auxiliary loss, or is that of another model",
        "None needed if you added one: read cross_entropy, exp(loss) is no perplexity; else look at what is added",
        {"loss": loss, "cross_entropy": mean, "least": least, "most": most},
    )


def low_precision(dtype: torch.dtype, loss: float, mean: float) -> Finding:
    name = str(dtype).removeprefix("torch.")
    return Finding(
        "low_precision_loss",
        f"{both(loss, mean)}, {abs(loss / mean - 1):.1%} apart: the loss was added up in {name}, or is no token mean",
        "loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()), and look again",
        {"loss": loss, "cross_entropy": mean, "dtype": name},
    )


def another_loss(loss: float, mean: float, whose: str | None = None) -> Finding:
    of = f"that of {whose}" if whose else "not that of these logits and targets: of another model, batch or set of labels"
    return Finding(
        "another_loss",
        f"{both(loss, mean)}, and no shift, mask or reduction gives it: it is {of}",
        f"Watch {whose}" if whose else "Give logits, targets and loss of one and the same call",
        {"loss": loss, "cross_entropy": mean, "whose": whose},
    )


def several_fit(loss: float, mean: float, names: list[str]) -> Finding:
    return Finding(
        "several_fit",
        f"{both(loss, mean)}: the loss scores other tokens, and several sets of them fit: {'; '.join(names)}",
        "Give a second batch, or input_ids and attention_mask",
        {"loss": loss, "cross_entropy": mean, "sets": names},
    )


def repeated_rows(rank: int, other: int, count: int, of: int) -> Finding:
    return Finding(
        "repeated_rows",
        f"{count} of the {of} rows of rank {rank} are those of rank {other}",
        "Give the loader a DistributedSampler, and its set_epoch(epoch) in every epoch",
        {"ranks": (other, rank), "rows": count, "of": of},
    )
