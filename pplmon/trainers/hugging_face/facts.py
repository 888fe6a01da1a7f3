"""Read a Hugging Face ``Trainer``: its arguments, its rows and its passes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from pplmon.report.declared import find
from pplmon.report.numbers import Number
from pplmon.report.report import Report
from pplmon.report.texts import Decode


def logging_steps(args: Any, state: Any) -> int | None:
    """Return the optimizer steps between two rows of the trainer; ``None`` where it does not log by steps."""
    return int(state.logging_steps or args.logging_steps) if args.logging_strategy == "steps" else None


def logs_by_epoch(args: Any) -> bool:
    """Return True for a trainer that logs once an epoch."""
    return bool(args.logging_strategy == "epoch")


def decoder_of(processing_class: Any) -> Decode | None:
    """Return ids -> str of a tokenizer, or of the one in a processor."""
    decode = getattr(getattr(processing_class, "tokenizer", processing_class), "decode", None)
    return decode if callable(decode) else None


def is_train_row(logs: Mapping[str, Any]) -> bool:
    """Return True for a row with the trainer's own training loss."""
    return "loss" in logs


def is_summary(logs: Mapping[str, Any]) -> bool:
    """Return True for the row that the trainer logs when training is over."""
    return "train_runtime" in logs


def arguments(method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a method is called with, by name, with its defaults."""
    bound = inspect.signature(method).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def pass_of(given: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the stage and the part of an evaluation loop that is called with these arguments.

    Of several data sets each has a pass, whose prefix has its name; so has any other that is evaluated under its own prefix.
    """
    stage = "test" if given["description"] == "Prediction" else "val"
    usual = "test" if stage == "test" else "eval"
    part = given["metric_key_prefix"].removeprefix(usual).removeprefix("_")
    return stage, part or None


def tag_of(key: str) -> str:
    """Return the name under which W&B and TensorBoard have a key of the trainer's rows: transformers knows two prefixes."""
    head, _, name = key.partition("_")
    return f"{head}/{name}" if head in ("eval", "test") else f"train/{key}"


def loss_times(trainer: Any, items: Any) -> int:
    """Return by what the trainer multiplied a loss that it divided by the tokens of all ranks: gradients are averaged."""
    takes_items = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
    if items is None or not takes_items or not trainer.args.average_tokens_across_devices:
        return 1
    return int(trainer.accelerator.num_processes // trainer.get_tp_size())


def is_cross_entropy(trainer: Any, inputs: Mapping[str, Any]) -> bool:
    """Return True if the loss of a batch may be compared with its cross-entropy.

    One that is smoothed or weighted, and one of preferences or rewards, which has no labels, is known to be another.
    """
    weighted = getattr(trainer.args, "loss_type", "nll") != "nll"
    return "labels" in inputs and trainer.label_smoother is None and not weighted


def has_reference(trainer: Any) -> bool:
    """Return True for a trainer that compares its model with a reference, which may be the same model."""
    return hasattr(trainer, "ref_model")


def watched_key(args: Any) -> str | None:
    """Return the key of the metric that the trainer keeps its best checkpoint by."""
    key: str | None = args.metric_for_best_model
    return key if key is None or key.startswith("eval_") else f"eval_{key}"


def give_watched(args: Any, metrics: dict[str, float], head: str, report: Report) -> None:
    """Add the number that the trainer watches even if it is not logged, or not finite: it would raise without it.

    It asks for "eval_…" whatever the prefix of the evaluation.
    """
    key = watched_key(args) or ""
    for name, value in report.as_dict().items():
        if f"{head}{name}" in (key, key.removeprefix("eval_")):
            metrics.setdefault(key, value)


def mend_direction(args: Any) -> None:
    """Have the trainer keep the best checkpoint by a number of pplmon's, not the worst.

    It takes any metric whose name does not end in "loss" for one that should be high, unless it is told.
    """
    number = _number_of(watched_key(args) or "")
    if number is not None and number.best is not None and args.greater_is_better is not (number.best == "max"):
        args.greater_is_better = number.best == "max"
        warnings.warn(
            f"pplmon: the best {args.metric_for_best_model} is the {'highest' if args.greater_is_better else 'lowest'}: "
            f"greater_is_better={args.greater_is_better} is set. transformers takes the highest of a metric that is not named "
            "…loss, unless TrainingArguments say otherwise.",
            stacklevel=2,
        )


def _number_of(key: str) -> Number | None:
    """Return the number that ends a key such as "eval_wiki_perplexity"."""
    words = key.split("_")
    return next((found for at in range(len(words)) if (found := find("_".join(words[at:])))), None)
