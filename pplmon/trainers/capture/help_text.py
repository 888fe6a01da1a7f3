"""Write the error for no logits found: the line to write for each source of logits, and the nearest names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

# By who runs the training: where its step is, the module that is shown, what takes logits=, and how logits are handed back.
_DICT = '{"loss": loss, "logits": logits, "labels": labels}'
WIRES = {
    "lightning": (
        "in the module's step:",
        "self",
        "PerplexityMonitor(",
        "return them from the step:",
        f"return {_DICT}",
    ),
    "hugging_face": (
        "in compute_loss:",
        "model",
        "pplmon.watch(trainer, ",
        "return them beside the loss:",
        f"return loss, {_DICT}",
    ),
    "hook": (
        "in the loop:",
        "model",
        "monitor.hook(model, ",
        "give them by yourself:",
        "monitor.observe(logits, targets)",
    ),
    "loop": ("in the loop:", "model", "Settings(", "give them to end_batch:", f"session.end_batch({_DICT})"),
}
SOURCES = """\
pplmon found no logits and targets in the first {stage} batch. Use one of these:
  1. {where:<27} pplmon.observe({owner}, logits, targets)
                                 (a fused loss has no logits: pplmon.observe({owner}, pplmon.TokenStats.from_losses(nll, targets)))
  2. name them:                  {call}logits="model.head", targets="labels")
                                 (a submodule's path or a key of the step's output; a key, attribute or index of the batch)
  3. {back:<27} {give}
  4. a Hugging Face model that is a submodule of the module and is called with labels=...{hint}"""


def observe_call(wire: str) -> str:
    """Return the line by which logits are shown, and where it is, for one of ``WIRES``."""
    where, owner, *_ = WIRES[wire]
    return f"pplmon.observe({owner}, logits, targets) {where.rstrip(':')}"


def nothing_found(stage: str, module: nn.Module | None, logits: Any, hooked: bool, wire: str) -> str:
    """Return the text of the error (or, outside training, the warning), with the lines to write for one of ``WIRES``."""
    where, owner, call, back, give = WIRES[wire]
    hint = _near(module, logits, hooked)
    return SOURCES.format(stage=stage, where=where, owner=owner, call=call, back=back, give=give, hint=hint)


def no_logits(stage: str, model: str, wire: str, recompute: bool) -> str:
    """Say that a model's fused loss made no logits, and the line to write; ``recompute`` if that line is there already."""
    _, owner, call, *_ = WIRES[wire]
    told = (
        f"{model} gave a loss and no logits in the first {stage} batch, as with a fused loss (such as Liger's): nothing of "
        f"{stage} is measured. "
    )
    if recompute:
        return (
            f"{told}recompute_logits=True cannot help: no hidden states [B, T, H] that go into its head were seen. Give the losses of "
            f"its tokens: pplmon.observe({owner}, pplmon.TokenStats.from_losses(nll, targets))"
        )
    return (
        f"{told}Write {call}recompute_logits=True): they are then computed again from its hidden states, a "
        "few columns at a time, by one more product with its head"
    )


def _near(module: nn.Module | None, logits: Any, hooked: bool) -> str:
    if not isinstance(logits, str) or module is None:
        return ""
    if hooked:
        return f"\nThe submodule {logits!r} gave no logits that fit the targets."
    names = [name for name, _ in module.named_modules() if name]
    near = get_close_matches(logits, names, n=3, cutoff=0.3) or names[:5]
    return (
        f"\nlogits={logits!r} is neither a submodule of {type(module).__name__} (nearest: {', '.join(near) or 'none'}) "
        "nor a key of what the step returned."
    )


def no_fit(who: str, logits: Sequence[int], targets: Sequence[int], origin: str | None, wire: str) -> str:
    """Say that logits of this shape do not fit targets of that shape, where these are from, and the line to write."""
    whose = f". The targets are {origin}" if origin is not None else ""
    source, call = origin if origin is not None else 'batch["input_ids"]', WIRES[wire][2]
    return (
        f"{who} gave logits {tuple(logits)}, which do not fit targets {tuple(targets)}: "
        f"{_cut(logits, targets, source, call)}{whose}"
    )


def origin_of(targets: Any, batch: Any) -> str | None:
    """Return the expression that gives these targets from a batch; ``None`` where they are no part of it as it is."""
    if targets is batch:
        return "batch"
    parts = (
        batch.items() if isinstance(batch, Mapping) else enumerate(batch) if isinstance(batch, (list, tuple)) else ()
    )
    return next((f"batch[{key!r}]" for key, part in parts if part is targets), None)


def _cut(logits: Sequence[int], targets: Sequence[int], source: str, call: str) -> str:
    rows = len(logits) == 3 and len(targets) == 2 and logits[0] == targets[0]
    more = logits[1] - targets[1] if rows else 0
    if more > 0:
        return (
            f"if {more} columns stand before the text (a prefix, a soft prompt), give logits[:, {more}:], or "
            f"logits[:, {more - 1}:-1] where targets are not shifted by pplmon"
        )
    if more == -1:
        return (
            "if the last id has no logits, the targets are those from the second column on: "
            f"{call}targets=lambda batch: {source}[:, 1:], or shift=True)"
        )
    if more < 0 and logits[1] > 1:
        return (
            f"if they are of the last {logits[1]} columns: {call}targets=lambda batch: {source}[:, -{logits[1]}:], "
            "shift=True)"
        )
    return "logits [B, T, V] need targets [B, T], and [N, V] need [N]; calls that generate are not counted"
