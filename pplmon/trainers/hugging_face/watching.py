"""``pplmon.watch``: one line that watches a Hugging Face ``Trainer``."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from pplmon.trainers.hugging_face.callback import PerplexityCallback


def watch(trainer: Any, **settings: Any) -> PerplexityCallback:
    """Watch a Hugging Face ``Trainer``, ``Seq2SeqTrainer`` or one of TRL's: its logs get pplmon's numbers.

    Args:
        trainer: the trainer, before ``train`` or ``evaluate`` is called.
        settings: by name, those of ``PerplexityMonitor``: ``alerts=[…]``, ``numbers="all"``, ``tally=…``. Not where the trainer
            has a ``PerplexityCallback`` already, which is bound then.

    Returns:
        the callback that watches.

    Raises:
        TypeError: not such a trainer, or an unknown setting. ValueError: it is watched already.
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"pplmon.watch takes a transformers.Trainer or a subclass of it, got {type(trainer).__name__}; under Lightning write "
            "Trainer(callbacks=[pplmon.PerplexityMonitor()]), in a loop of your own use pplmon.Monitor"
        )
    there = [c for c in trainer.callback_handler.callbacks if isinstance(c, PerplexityCallback)]
    if any(callback.is_bound for callback in there):
        raise ValueError("this trainer is watched already; pplmon.watch(trainer) is called once")
    if there and settings:
        raise ValueError(
            f"the trainer has a PerplexityCallback already: give {', '.join(settings)} to it, and call pplmon.watch(trainer) alone"
        )
    callback = there[0] if there else PerplexityCallback(**settings)
    if not there:
        trainer.add_callback(callback)
    callback.bind(trainer)
    return callback
