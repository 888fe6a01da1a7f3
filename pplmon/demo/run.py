"""``pplmon demo``: train a small model for a minute or two, corrupt one sequence on purpose, and see it found."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning.callbacks import TQDMProgressBar
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import pplmon
from pplmon.demo.model import ByteModel
from pplmon.demo.plan import Plan
from pplmon.demo.summary import answer
from pplmon.demo.text import CONTEXT, HeldOutWindows, Sequences, TrainingWindows, decode, language_reference
from pplmon.page.command import NAME
from pplmon.report.answer import Answer
from pplmon.sinks import read_journal
from pplmon.sinks.journal import FILE_NAME
from pplmon.sinks.wandb import STEP

MOST_THREADS = 4  # more do not make a model this small faster
VALIDATIONS = 6  # in a run, about, ...
VALIDATE_EVERY = 25  # ... but not more often than after as many steps
WINDOWS = 48  # logged windows in a run, about


class Bar(TQDMProgressBar):
    """The usual bar, without the logger's version number: it makes room for the perplexities."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return the numbers that stand behind the bar."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class Announce(pl.Callback):
    """Says that a sequence is corrupted, just before it is."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Print the announcement at its step."""
        bar = trainer.progress_bar_callback
        if trainer.global_step == self._plan.corrupted_step and trainer.is_global_zero and bar is not None:
            bar.print(f"step {self._plan.corrupted_step}: now comes row {self._plan.corrupted_row}, the random bytes")


def run(plan: Plan) -> Iterator[Answer]:
    """Run the demo. The first rank yields its answer, whose code tells whether an alert named the corrupted step."""
    _hush()
    _share_cores()
    pl.seed_everything(plan.seed, verbose=False)
    if _rank() == 0:
        print(plan.opening(), flush=True)
    directory = _next_directory(plan.out)
    logger = _logger(plan, directory)
    trainer = _trainer(plan, logger, directory)
    started = time.monotonic()
    try:
        trainer.fit(ByteModel(plan.steps), *_loaders(plan))
    except SystemExit:  # Lightning ends the process so at Ctrl-C, with the code of a step that was not found
        raise KeyboardInterrupt from None
    seconds = time.monotonic() - started
    if trainer.is_global_zero:
        journal, places = _finish(plan, logger, directory)
        rows = read_journal(journal)
        shown = pplmon.page(journal).save(journal.with_name(NAME))
        yield answer(plan, rows, seconds, journal, shown, places)


def _trainer(plan: Plan, logger: Any, directory: Path) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=plan.devices,
        strategy="ddp" if plan.devices > 1 else "auto",  # it starts this very command once more for each other rank
        max_steps=plan.steps,
        max_epochs=1,
        val_check_interval=max(plan.steps // VALIDATIONS, min(plan.steps, VALIDATE_EVERY)),
        log_every_n_steps=max(1, plan.steps // WINDOWS),
        gradient_clip_val=1.0,
        callbacks=[
            pplmon.PerplexityMonitor(decode=decode, on_alert=[pplmon.SaveBatch()], min_severity="info"),
            Announce(plan),
            Bar(),
        ],
        logger=logger,
        default_root_dir=directory,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _loaders(plan: Plan) -> tuple[DataLoader[Any], DataLoader[Any]]:
    text, tail = language_reference()
    # One epoch is the run, so that the progress bar counts its steps.
    training = TrainingWindows(text, CONTEXT, plan.rows, plan.seed, plan.corrupted_row)
    return _loader(plan, training, plan.rank_batch), _loader(plan, HeldOutWindows(tail, CONTEXT), 2 * plan.rank_batch)


def _loader(plan: Plan, rows: Dataset[Sequences], batch: int) -> DataLoader[Sequences]:
    # The windows are from random places already, and unshuffled a row tells its step. So the sampler is made here: on
    # several ranks Lightning would put in one that shuffles.
    sampler: DistributedSampler[Sequences] = DistributedSampler(
        rows, num_replicas=plan.devices, rank=_rank(), shuffle=False
    )
    return DataLoader(rows, batch, sampler=sampler)


def _logger(plan: Plan, directory: Path) -> Any:
    if plan.logger == "tensorboard":
        from pytorch_lightning.loggers import TensorBoardLogger

        return TensorBoardLogger(directory.parent, name="", version=directory.name)
    if plan.logger == "csv":
        from pytorch_lightning.loggers import CSVLogger

        return CSVLogger(directory.parent, name="", version=directory.name)
    if plan.logger == "wandb":
        from pytorch_lightning.loggers import WandbLogger

        os.environ.setdefault("WANDB_MODE", "offline")  # so that it works without an account
        os.environ.setdefault("WANDB_SILENT", "true")  # the summary says where things are
        plan.out.mkdir(parents=True, exist_ok=True)
        return WandbLogger(save_dir=plan.out, project="pplmon-demo", experiment=_wandb_run(plan))
    return False


def _wandb_run(plan: Plan) -> Any:
    """Return the run of the first rank. The logger would make it with a setting that W&B warns of."""
    if _rank() > 0:
        return None
    import wandb

    run = wandb.init(dir=plan.out, project="pplmon-demo")
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    return run


def _finish(plan: Plan, logger: Any, directory: Path) -> tuple[Path, dict[str, str]]:
    """Close the logger; return the journal's path, and where the rest is and what opens it."""
    if plan.logger == "wandb":
        return _finish_wandb(logger)
    places = {}
    if plan.logger == "tensorboard":
        places["event files"] = str(directory)
        places["dashboard"] = f"pplmon view {plan.out}"
    elif plan.logger == "csv":
        places["metrics"] = str(directory / "metrics.csv")
    return directory / FILE_NAME, places


def _finish_wandb(logger: Any) -> tuple[Path, dict[str, str]]:
    import wandb

    files, url = Path(logger.experiment.dir), logger.experiment.url
    wandb.finish()
    journal = Path(os.path.relpath(files / FILE_NAME))
    if url:
        return journal, {"dashboard": url}
    run_directory = os.path.relpath(files.parent)
    return journal, {
        "W&B run": run_directory,
        "dashboard": f"wandb sync {run_directory}",
        "or, here": f"wandb leet run {run_directory}",
    }


def _next_directory(out: Path) -> Path:
    """Return ``out/version_N``, N one more than the last, as Lightning's loggers name theirs."""
    taken = [path.name.removeprefix("version_") for path in out.glob("version_*")]
    return out / f"version_{max((int(number) for number in taken if number.isdigit()), default=-1) + 1}"


def _rank() -> int:
    """Return this process's rank, before the ranks know of each other: Lightning starts them with it in LOCAL_RANK."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _share_cores() -> None:
    """Use only cores that are free: in a model this small, threads that share a core mostly wait for each other."""
    if "OMP_NUM_THREADS" not in os.environ and hasattr(os, "getloadavg"):
        free = (os.cpu_count() or 1) - os.getloadavg()[0]  # the mean of the last minute
        torch.set_num_threads(max(1, min(MOST_THREADS, round(free))))


def _hush() -> None:
    """Silence Lightning's tips and its advice on loaders, which tell a newcomer nothing."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated")  # Lightning's own, about its use of torch
