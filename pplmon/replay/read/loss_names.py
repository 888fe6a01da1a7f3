"""Recognise the names that other trainers give to the cross-entropy, to the perplexity, and to the column of steps."""

from __future__ import annotations

import re
from collections.abc import Sequence

_STAGES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "eval", "evaluation", "dev"),
    "test": ("test",),
}
_LOSSES = ("loss", "lm_loss", "ce_loss", "nll_loss", "cross_entropy_loss", "loss_step", "nll", "ce")
_PERPLEXITIES = ("perplexity", "ppl")

# Names of the column that counts optimizer steps, the best first.
_STEPS = (
    "trainer_global_step",
    "train_global_step",
    "step",
    "global_step",
    "optimizer_step",
    "steps",
    "iteration",
    "iterations",
    "iter",
    "current_steps",
    "num_updates",
    "update",
)


def known_name(column: str) -> tuple[str, str] | None:
    """Return (stage, name) for ``loss``, ``train/loss``, ``lm loss``, ``eval_loss``, ``ppl`` and the like."""
    words = _words(column)
    stages = [stage for stage, names in _STAGES.items() if not {*words}.isdisjoint(names)]
    rest = "_".join(word for word in words if not any(word in names for names in _STAGES.values()))
    stage = stages[0] if stages else "train"
    if len(stages) > 1:
        return None
    if rest in _LOSSES or (rest == "loss_epoch" and stage != "train"):
        return stage, "cross_entropy"
    return (stage, "perplexity") if rest in _PERPLEXITIES else None


def steps_among(columns: Sequence[str]) -> str | None:
    """Return the column that counts optimizer steps, by its name; ``None`` where none does."""
    named = [("_".join(_words(column)), column) for column in columns]
    ranked = [(_STEPS.index(name), column.lower() != name, column) for name, column in named if name in _STEPS]
    return min(ranked)[2] if ranked else None  # of "_step" and "step" the one that has the very name


def _words(column: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", column.lower()) if word]
