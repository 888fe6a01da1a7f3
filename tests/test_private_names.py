"""Canaries: each private name of a library that pplmon uses still does what it is used for. A failure names the release."""

from __future__ import annotations

import importlib
import inspect
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torchmetrics
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from pplmon import TokenTally
from pplmon.alerts.actions import save_batch
from pplmon.measure import private_names as of_torch
from pplmon.tally import GradNorm
from pplmon.tally.as_metric import AsMetric
from pplmon.tally.ranks import Group
from tests.models import loader, make_module

TORCH, TORCHMETRICS = f"torch {torch.__version__} changed", f"torchmetrics {torchmetrics.__version__} changed"

# What a tally reads of its base class, and what it puts in place of the base class's own.
READ = {"_defaults", "_is_synced", "_persistent", "_plot", "_reductions"}
REPLACED = {"_apply", "_load_from_state_dict", "_sync_dist"}


def test_torch_names_the_backward_pass_that_a_thread_is_in() -> None:
    """−1 outside, another number inside: so a recomputed forward is told from a new one."""
    inside: list[int] = []
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda grad: inside.append(of_torch.graph_task()))
    x.sum().backward()
    assert of_torch.graph_task() == -1 and len(inside) == 1 and inside[0] >= 0, f"{TORCH} _C._current_graph_task_id"


def test_torch_takes_the_norm_of_each_of_a_list() -> None:
    """In a wider type where that is named."""
    parts = [torch.full((3,), 2.0, dtype=torch.bfloat16), torch.full((1,), 1.0, dtype=torch.bfloat16)]
    norms = of_torch.norm_each(parts, 2, torch.float32)
    assert [norm.dtype for norm in norms] == [torch.float32] * 2, f"{TORCH} _foreach_norm"
    assert [norm.item() for norm in norms] == pytest.approx([12**0.5, 1.0]), f"{TORCH} _foreach_norm"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_torch_marks_the_flat_parts_of_parameters(tmp_path: Path) -> None:
    """Those of FullyShardedDataParallel, with and without the original parameters, and no others; no norm is taken of them."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for original in (False, True):
            parts = list(
                FullyShardedDataParallel(
                    nn.Linear(2, 2), use_orig_params=original, device_id=torch.device("cpu")
                ).parameters()
            )
            assert all(map(of_torch.is_flat_shard, parts)), f"{TORCH} _fsdp_flattened"
            parts[0].grad = torch.ones_like(parts[0])
            with pytest.raises(TypeError, match="FullyShardedDataParallel: use fully_shard"):
                GradNorm().squares(parts, Group())
    finally:
        dist.destroy_process_group()
    assert not of_torch.is_flat_shard(nn.Linear(2, 2).weight)


def test_torch_keeps_the_module_inside_a_compiled_one() -> None:
    """The wrapper gives it, and a plain module is itself."""
    module = nn.Linear(2, 2)
    assert of_torch.compiled_module(torch.compile(module)) is module, f"{TORCH} OptimizedModule._orig_mod"
    assert of_torch.compiled_module(module) is module


def test_torch_says_how_long_a_collective_may_take(tmp_path: Path) -> None:
    """As the group was made."""
    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1, timeout=timedelta(seconds=7))
    try:
        assert of_torch.timeout_of(dist.group.WORLD) == timedelta(seconds=7), f"{TORCH} options._timeout"
    finally:
        dist.destroy_process_group()


def test_torch_counts_how_often_a_tensor_was_written_to() -> None:
    """A write in place is seen, and an inference tensor has no count."""
    tensor = torch.zeros(2)
    before = save_batch.times_written(tensor)
    tensor.add_(1)
    assert save_batch.times_written(tensor) == (before or 0) + 1, f"{TORCH} Tensor._version"
    with torch.inference_mode():
        assert save_batch.times_written(torch.zeros(2)) is None


def test_torchmetrics_has_what_a_tally_reads_of_it() -> None:
    """By these names, a state's default, its reduction, and whether it is saved; and whether the metric is synced."""
    tally = TokenTally()
    assert all(hasattr(tally, name) for name in READ), f"{TORCHMETRICS} one of {READ}"
    for state in ("sums", "maxima"):
        assert torch.equal(tally._defaults[state], getattr(tally, state)), f"{TORCHMETRICS} _defaults"
        assert callable(tally._reductions[state]) and tally._persistent[state], (
            f"{TORCHMETRICS} _reductions, _persistent"
        )
    tally.sync(should_sync=False)
    assert tally.synced is False


def test_torchmetrics_still_calls_what_a_tally_replaces() -> None:
    """The base class has these methods, and takes them like this; nothing else of its own is replaced by accident."""
    base = torchmetrics.Metric
    private = {
        name for name in {**vars(AsMetric), **vars(TokenTally)} if name.startswith("_") and not name.endswith("__")
    }
    assert {name for name in private if hasattr(base, name)} - {"_abc_impl"} == REPLACED, f"{TORCHMETRICS} its methods"
    taken = list(inspect.signature(base._sync_dist).parameters)
    assert taken == ["self", "dist_sync_fn", "process_group"], f"{TORCHMETRICS} _sync_dist"
    assert "self._sync_dist(" in inspect.getsource(base.sync), f"{TORCHMETRICS} sync"
    arguments = list(inspect.signature(base._load_from_state_dict).parameters)
    assert arguments[-3:] == ["missing_keys", "unexpected_keys", "error_msgs"], f"{TORCHMETRICS} _load_from_state_dict"


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_lightning_has_what_is_read_from_a_trainer(package: str, tmp_path: Any) -> None:
    """The step under way, the end of an optimizer step, and the keys that the module logs itself."""
    pl: Any = pytest.importorskip(package)
    facts = importlib.import_module("pplmon.trainers.lightning.private_names")
    moved = f"{package} {importlib.import_module(package.split('.', maxsplit=1)[0]).__version__} changed"
    seen: list[tuple[int, bool]] = []
    keys: set[str] = set()
    asked: list[int] = []
    repeats: list[bool] = []

    class Asks(pl.Callback):  # type: ignore[misc]
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            repeats.append(facts.repeats_batch(trainer))

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            seen.append((facts.step_of(trainer), facts.optimizer_stepped(trainer)))
            keys.update(facts.module_keys(trainer))
            repeats.append(facts.repeats_batch(trainer))
            asked.extend([index] if facts.optimizer_stepped(trainer) and facts.watchers_ask(trainer, index) else [])

    module = make_module(pl.LightningModule)
    module.on_train_batch_start = lambda batch, index: module.log("own", 1.0, on_step=True, on_epoch=True)
    trainer = pl.Trainer(
        max_epochs=1,
        accumulate_grad_batches=2,
        accelerator="cpu",
        logger=False,
        callbacks=[Asks(), pl.callbacks.ModelCheckpoint(tmp_path, monitor="own", every_n_train_steps=2)],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, loader(16))
    assert seen == [(0, False), (0, True), (1, False), (1, True)], f"{moved} epoch_loop: the steps it counts"
    assert repeats == [True, False] * 4, f"{moved} epoch_loop.batch_progress"
    assert asked == [3], f"{moved} ModelCheckpoint._every_n_train_steps"  # two optimizer steps
    assert keys == {"own", "own_step", "own_epoch"}, f"{moved} trainer._results"


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
@pytest.mark.parametrize("mode", ["sequential", "max_size"])
def test_lightning_says_how_it_takes_several_loaders(package: str, mode: str, tmp_path: Any) -> None:
    """In turn, each by itself, or at once; the callbacks are told of a pass when its loaders are there."""
    pl: Any = pytest.importorskip(package)
    facts = importlib.import_module("pplmon.trainers.lightning.private_names")
    combined = importlib.import_module(f"{package}.utilities.combined_loader").CombinedLoader
    seen: list[Any] = []

    class Asks(pl.Callback):  # type: ignore[misc]
        def on_validation_start(self, trainer: Any, *args: Any) -> None:
            seen.append(facts.loaders_of(trainer))

    loaders = [loader(4), loader(4)]
    module = make_module(pl.LightningModule)
    module.validation_step = lambda batch, index, dataloader_idx=0: None
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[Asks()], default_root_dir=tmp_path, **quiet)
    trainer.validate(module, combined(loaders, mode), verbose=False)
    assert seen == [loaders if mode == "sequential" else [None]], f"{package} changed _evaluation_loop._combined_loader"


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_lightning_says_how_its_processes_are_started(package: str) -> None:
    """A W&B run in a forked child has to be ended there."""
    pl: Any = pytest.importorskip(package)
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", logger=False)
    trainer.strategy._configure_launcher()
    assert trainer.strategy.launcher._start_method == "fork", f"{package} changed launcher._start_method"
