"""A tiny Llama that is really patched by Liger, under the Trainer: run where Triton compiles, or where it interprets."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from liger_kernel.transformers import apply_liger_kernel_to_llama

import pplmon
from tests.hf_kit import Sums, build, logged, rows, told_of, trainer
from tests.interpreter import DEVICE


def train(where: str) -> dict[str, Any]:
    """Train two steps, evaluate, and return what the history has, beside float64 of the model before the patch."""
    plain = build()
    model = copy.deepcopy(plain)
    # Only what this is about: the other patches are of the module of all Llamas, and would stay there.
    apply_liger_kernel_to_llama(rope=False, rms_norm=False, swiglu=False, fused_linear_cross_entropy=True, model=model)
    made = trainer(Path(where), model, learning_rate=0.0, max_steps=2, use_cpu=DEVICE == "cpu")
    pplmon.watch(made, recompute_logits=True)
    metrics: dict[str, float] = {}
    told = told_of(lambda: (made.train(), metrics.update(made.evaluate())))
    double = plain.double().eval()
    parts = [
        [Sums.of(double(row[None]).logits, row[None]) for row in data] for data in (rows(64)[:16], rows(10, seed=2))
    ]
    return {
        "told": told,
        "train": logged(made, "cross_entropy")[0][1],
        "loss": logged(made, "loss")[0][1],
        "eval": metrics["eval_cross_entropy"],
        "float64": [sum(part.nll for part in group) / sum(part.tokens for part in group) for group in parts],
    }
