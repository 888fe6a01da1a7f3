"""What is read from a Lightning ``Trainer``: steps, directories, loggers, keys. Its private names are used here alone."""

from __future__ import annotations

from typing import Any

from pplmon.sinks import Console, Journal, Sink
from pplmon.sinks.lightning_logger import LightningLogger


def step_of(trainer: Any) -> int:
    """The 0-based optimizer step under way: the x of the rows of ``self.log``."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def optimizer_stepped(trainer: Any) -> bool:
    """True in ``on_train_batch_end`` of a micro-batch that completed an optimizer step."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def module_keys(trainer: Any) -> set[str]:
    """The keys that the user's module logs itself, in all the forms that Lightning gives them."""
    keys = set()
    for result in (trainer._results or {}).values():
        meta = result.meta
        keys |= {meta.name, meta.forked_name(True), meta.forked_name(False)}
    return keys


def watched_keys(trainer: Any) -> set[str]:
    """The keys that callbacks and learning-rate schedulers monitor."""
    keys = {getattr(callback, "monitor", None) for callback in trainer.callbacks}
    keys |= {getattr(config, "monitor", None) for config in trainer.lr_scheduler_configs}
    return {key for key in keys if isinstance(key, str)}


def sinks_of(trainer: Any, series: tuple[str, ...]) -> list[Sink]:
    """The trainer's loggers, the journal beside them, and the console through the progress bar.

    Every rank calls it (asking for the directory is a collective); only the first gets sinks.
    """
    directory = trainer.log_dir
    if not trainer.is_global_zero:
        return []
    bar = trainer.progress_bar_callback
    # A bar that is switched off prints nothing at all.
    sinks: list[Sink] = [Console(print=bar.print if getattr(bar, "is_enabled", False) else None, reports=False)]
    if trainer.fast_dev_run:
        return sinks  # its loggers are dummies, and it leaves no files
    run_directory = _wandb_directory(trainer)
    journal = Journal(run_directory or directory or ".", series=series)
    return [journal, *(LightningLogger(logger) for logger in trainer.loggers), *sinks]


def repeated_sequences(trainer: Any, loaders: Any) -> list[int | None]:
    """For each loader, how many sequences its ``DistributedSampler`` repeats to fill up; ``None`` where it has none."""
    return [_repeated(loader) for loader in (loaders if isinstance(loaders, (list, tuple)) else [loaders])]


def _repeated(loader: Any) -> int | None:
    sampler = getattr(loader, "sampler", None)
    replicas, total, dataset = (getattr(sampler, name, None) for name in ("num_replicas", "total_size", "dataset"))
    if not isinstance(replicas, int) or not isinstance(total, int) or not hasattr(dataset, "__len__"):
        return None
    return max(0, total - len(dataset))  # type: ignore[arg-type]


def _wandb_directory(trainer: Any) -> str | None:
    """The files of the first logger's W&B run, which W&B uploads when the run ends."""
    if trainer.loggers and "Wandb" in type(trainer.loggers[0]).__name__:
        directory = getattr(trainer.loggers[0].experiment, "dir", None)
        return directory if isinstance(directory, str) else None
    return None
