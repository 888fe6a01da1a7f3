"""Read a Lightning ``Trainer``: its steps, directories, loggers and keys. Its private names are used here only."""

from __future__ import annotations

import math
from itertools import count
from typing import Any

from pplmon.sinks import Console, Journal, Sink
from pplmon.trainers.lightning.logger import LightningLogger, is_a


def step_of(trainer: Any) -> int:
    """Return the current optimizer step, 0-based: the x of the rows of ``self.log``."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def optimizer_stepped(trainer: Any) -> bool:
    """Return True in ``on_train_batch_end`` of a micro-batch that completed an optimizer step."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def repeats_batch(trainer: Any) -> bool:
    """Return True in the middle of a micro-batch, where a state is saved on a signal: a resumed run repeats the batch."""
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(progress.processed < progress.ready)


def batches_of(trainer: Any) -> int | None:
    """Return how many batches this rank's epoch of training has, ``None`` if its loader does not know."""
    batches = trainer.num_training_batches
    return int(batches) if math.isfinite(batches) else None


def epoch_ends(trainer: Any) -> bool:
    """Return True once the last batch of an epoch of training was taken."""
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


def module_keys(trainer: Any) -> set[str]:
    """Return the keys that the user's module logs itself, in all the forms that Lightning gives them."""
    keys = set()
    for result in (trainer._results or {}).values():
        meta = result.meta
        keys |= {meta.name, meta.forked_name(True), meta.forked_name(False)}
    return keys


def watched_keys(trainer: Any) -> set[str]:
    """Return the keys that callbacks and learning-rate schedulers monitor."""
    keys = {getattr(callback, "monitor", None) for callback in trainer.callbacks}
    keys |= {getattr(config, "monitor", None) for config in trainer.lr_scheduler_configs}
    return {key for key in keys if isinstance(key, str)}


def watchers_ask(trainer: Any, batch_index: int) -> bool:
    """Return True after an optimizer step at which a checkpoint or a scheduler looks at the key that it monitors."""
    savers = [getattr(callback, "_every_n_train_steps", 0) for callback in trainer.callbacks]
    schedulers = [config.frequency for config in trainer.lr_scheduler_configs if config.interval == "step"]
    return any(n and trainer.global_step % n == 0 for n in savers) or any(
        (batch_index + 1) % n == 0 for n in schedulers
    )


def sinks_of(trainer: Any, prefix: str) -> list[Sink]:
    """Return the trainer's loggers, the journal beside them, and the console through the progress bar.

    Every rank calls it (asking for the directory is a collective). Lightning has loggers on its first rank only; the
    others need a journal for what they could not merge, or when the group that they lead writes by itself.
    """
    directory = directory_of(trainer)
    bar = trainer.progress_bar_callback
    # A bar that is switched off prints nothing at all.
    console = Console(print=bar.print if getattr(bar, "is_enabled", False) else None, reports=False)
    if trainer.fast_dev_run:
        return [console]  # its loggers are dummies, and it leaves no files
    if not trainer.is_global_zero:
        return [Journal(directory, prefix=prefix), console]
    journal = Journal(_wandb_directory(trainer) or directory, prefix=prefix)
    return [journal, *map(LightningLogger, trainer.loggers, count()), console]


def directory_of(trainer: Any) -> str:
    """Return the directory for files of the run: its first logger's, or the trainer's where that logger has none.

    Every rank calls it: asking is a collective. A disabled W&B run says the working directory, and writes nothing there.
    """
    directory = trainer.log_dir
    if directory is None or (trainer.loggers and _is_disabled(trainer.loggers[0])):
        return str(trainer.default_root_dir)
    return str(directory)


def _is_disabled(logger: Any) -> bool:
    return is_a(logger, "WandbLogger") and getattr(logger.experiment, "disabled", False) is True


def decoder_of(trainer: Any, module: Any) -> Any:
    """Return the ``decode`` of a tokenizer that the datamodule or the module holds, as with Hugging Face models; else ``None``."""
    for owner in (getattr(trainer, "datamodule", None), module):
        for name in ("tokenizer", "processing_class"):
            decode = getattr(getattr(owner, name, None), "decode", None)
            if callable(decode):
                return decode
    return None


def loaders_of(trainer: Any) -> list[Any]:
    """Return the loaders of the pass that begins, in the order of their ``dataloader_idx``.

    A ``CombinedLoader`` that does not take them in turn gives a batch of each at once, all under index 0: it is one loader.
    """
    combined = trainer._evaluation_loop._combined_loader
    return list(combined.flattened) if combined._mode == "sequential" else [None]


def data_parallel_group(trainer: Any) -> Any:
    """Return the group of ranks with different data, ``None`` for all ranks. Tensor-parallel replicas count once."""
    mesh: Any = getattr(trainer.strategy, "device_mesh", None)
    names = getattr(mesh, "mesh_dim_names", None) or ()
    return mesh["data_parallel"].get_group() if "data_parallel" in names else None


def finish_forked_runs(trainer: Any) -> None:
    """Finish W&B runs in a forked child, because nothing else does and their buffered rows would be lost."""
    launcher = getattr(trainer.strategy, "launcher", None)
    if getattr(launcher, "_start_method", None) != "fork" or not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if is_a(logger, "WandbLogger"):
            logger.experiment.finish()


def _wandb_directory(trainer: Any) -> str | None:
    """Return the directory of the first logger's W&B run, which W&B uploads when the run ends."""
    if trainer.loggers and is_a(trainer.loggers[0], "WandbLogger") and not _is_disabled(trainer.loggers[0]):
        directory = getattr(trainer.loggers[0].experiment, "dir", None)
        return directory if isinstance(directory, str) else None
    return None
