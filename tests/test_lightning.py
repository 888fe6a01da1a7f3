"""The callback in a real ``Trainer``: the right numbers, at the right x, whatever the trainer's settings."""

from __future__ import annotations

import csv
import importlib
import types
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset

import pplmon
from pplmon.sinks import read_journal
from tests.models import LENGTH, VOCAB, loader, make_module, reference, rows
from tests.test_extras import Kinds

pl = pytest.importorskip("pytorch_lightning")

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
    "num_sanity_val_steps": 0,
}


def trainer_for(tmp_path: Any, *callbacks: Any, package: Any = pl, **settings: Any) -> Any:
    """A quiet trainer on the CPU."""
    return package.Trainer(**{**QUIET, "default_root_dir": tmp_path, **settings}, callbacks=list(callbacks))


def override(module: Any, name: str, method: Any) -> Any:
    """Give one module another method; returns the old one. (Lightning looks at signatures: it has to be bound.)"""
    old = getattr(module, name, None)
    setattr(module, name, types.MethodType(method, module))
    return old


def windows(tmp_path: Any, stage: str = "train") -> list[dict[str, Any]]:
    """The reports of one stage, from the journal."""
    return [
        line for line in read_journal(tmp_path / "pplmon.jsonl") if line["kind"] == "report" and line["stage"] == stage
    ]


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
@pytest.mark.parametrize("source", ["observe", "return", "head", "key", "callable"])
def test_each_source_of_logits_gives_the_float64_numbers(source: str, package: str, tmp_path: Any) -> None:
    """Every source, with both packages' trainers, counts each token once."""
    package = pytest.importorskip(package)
    module = make_module(package.LightningModule, {"observe": "observe", "head": "none"}.get(source, "return"))
    module.keep = True
    arguments: dict[str, dict[str, Any]] = {
        "head": {"logits": "head", "targets": "labels"},
        "key": {"logits": "logits", "targets": "labels"},
        "callable": {"logits": lambda outputs, batch: outputs["logits"], "targets": lambda batch: batch["labels"]},
    }
    monitor = pplmon.PerplexityMonitor(**arguments.get(source, {}), every_n_steps=16)
    trainer = trainer_for(tmp_path, monitor, package=package, max_epochs=1)
    trainer.fit(module, loader())
    expected = reference(module.seen)
    for name, value in expected.items():
        assert trainer.callback_metrics[f"train/{name}"].item() == pytest.approx(value, abs=1e-6), name


def test_accumulation_logs_the_token_weighted_mean_once_per_window_where_self_log_does(tmp_path: Any) -> None:
    """4 micro-batches a step, 2 steps a window: one row at the x of ``self.log``, over all 8 micro-batches."""
    module = make_module(pl.LightningModule)
    module.keep = True

    def logs_too(self: Any, batch: Any, index: int) -> Any:
        loss = old_step(batch, index)
        self.log("own", loss)
        return loss

    old_step = override(module, "training_step", logs_too)
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer = trainer_for(
        tmp_path,
        pplmon.PerplexityMonitor(),
        logger=logger,
        max_epochs=1,
        accumulate_grad_batches=4,
        log_every_n_steps=2,
    )
    trainer.fit(module, loader())
    with open(f"{logger.log_dir}/metrics.csv") as file:
        lines = list(csv.DictReader(file))
    own = [line["step"] for line in lines if line["own"]]
    ours = [line for line in lines if line["train/cross_entropy"]]
    assert [line["step"] for line in ours] == own == ["1", "3"]
    for index, line in enumerate(ours):
        expected = reference(module.seen[8 * index : 8 * index + 8])
        assert float(line["train/cross_entropy"]) == pytest.approx(expected["cross_entropy"], abs=1e-6)
        assert float(line["train/max_token_loss"]) == pytest.approx(expected["max_token_loss"], abs=1e-6)
    assert [w["step"] for w in windows(tmp_path / "lightning_logs/version_0")] == [1, 3]


def test_the_last_shorter_window_is_logged_at_the_end_of_fit(tmp_path: Any) -> None:
    """16 steps in windows of 6: 6, 6 and 4, each with its own last step, and nothing counted twice."""
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(every_n_steps=6), max_epochs=1)
    trainer.fit(make_module(pl.LightningModule), loader())
    assert [w["step"] for w in windows(tmp_path)] == [5, 11, 15]
    total = sum((row["labels"] != -100).sum().item() for row in rows())
    assert sum(w["numbers"]["tokens"] for w in windows(tmp_path)) == total
    assert windows(tmp_path)[-1]["numbers"]["tokens_seen"] == total


def test_fit_again_then_validate_then_test_gives_unchanged_numbers(tmp_path: Any) -> None:
    """One callback object serves any sequence of runs; each starts from nothing."""

    def run(monitor: Any, where: Any) -> list[float]:
        module = make_module(pl.LightningModule)
        trainer = trainer_for(where, monitor, max_epochs=1, log_every_n_steps=4)
        trainer.fit(module, loader(), loader(seed=1))
        found = [trainer.callback_metrics[f"{s}/perplexity"].item() for s in ("train", "val")]
        trainer.validate(module, loader(seed=1), verbose=False)
        found.append(trainer.callback_metrics["val/perplexity"].item())
        trainer.test(module, loader(seed=2), verbose=False)
        found += [trainer.callback_metrics["test/perplexity"].item(), trainer.callback_metrics["test/tokens"].item()]
        return found

    monitor = pplmon.PerplexityMonitor(logits="head", targets="labels")
    first = run(monitor, tmp_path / "a")
    assert first[1] == first[2]
    assert run(monitor, tmp_path / "b") == first
    fresh = pplmon.PerplexityMonitor(logits="head", targets="labels")
    assert run(fresh, tmp_path / "c") == first


def test_validation_of_several_loaders_has_each_and_all_of_them(tmp_path: Any) -> None:
    """``val/name/dataloader_idx_i`` for each, ``val/name`` token-weighted over all."""
    module = make_module(pl.LightningModule)
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(), max_epochs=1)
    trainer.validate(module, [loader(12, seed=3), loader(40, seed=4)], verbose=False)
    metrics = trainer.callback_metrics
    parts = [
        (metrics[f"val/cross_entropy/dataloader_idx_{i}"].item(), metrics[f"val/tokens/dataloader_idx_{i}"].item())
        for i in (0, 1)
    ]
    tokens = sum(n for _, n in parts)
    assert metrics["val/tokens"].item() == tokens
    assert metrics["val/cross_entropy"].item() == pytest.approx(sum(c * n for c, n in parts) / tokens, rel=1e-9)


def test_checkpoint_and_early_stopping_see_our_keys_in_any_order(tmp_path: Any) -> None:
    """Both get val and epoch keys in time, also before us in the list and with ``val_check_interval``."""
    for first in (True, False):
        others = [
            pl.callbacks.EarlyStopping("val/perplexity", patience=50),
            pl.callbacks.EarlyStopping("train/cross_entropy_epoch", patience=50, check_on_train_epoch_end=True),
            pl.callbacks.ModelCheckpoint(
                tmp_path / f"ckpt{first}", monitor="val/perplexity", save_top_k=-1, filename="{step}"
            ),
        ]
        monitor = pplmon.PerplexityMonitor()
        trainer = trainer_for(
            tmp_path / str(first),
            *([monitor, *others] if first else [*others, monitor]),
            max_epochs=2,
            enable_checkpointing=True,
            val_check_interval=4,
        )
        trainer.fit(make_module(pl.LightningModule), loader(), loader(8, seed=1))
        reports = {w["step"]: w["numbers"]["perplexity"] for w in windows(tmp_path / str(first), "val")}
        best = trainer.checkpoint_callback.best_k_models
        assert len(reports) == len(best) == 8
        assert sorted(score.item() for score in best.values()) == sorted(reports.values())


@pytest.mark.parametrize("name", ["perplexity", "mean_entropy", "kind/1/max_token_loss"])
def test_a_callback_that_monitors_a_train_key_gets_the_window_of_its_own_step(tmp_path: Any, name: str) -> None:
    """The late read-out must not give a checkpoint the window before; of a number of an extra, too."""
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "c", monitor=f"train/{name}", every_n_train_steps=4, save_top_k=-1)
    monitor = pplmon.PerplexityMonitor(every_n_steps=4, tally=pplmon.TokenTally(extras=[pplmon.Entropy(), Kinds()]))
    trainer = trainer_for(tmp_path, monitor, saver, max_epochs=1, enable_checkpointing=True)
    trainer.fit(make_module(pl.LightningModule), loader())
    scores = [
        score.item()
        for _, score in sorted(saver.best_k_models.items(), key=lambda kv: int(kv[0].split("step=")[1][:-5]))
    ]
    assert scores == [w["numbers"][name] for w in windows(tmp_path)]


def test_perplexity_is_on_the_progress_bar(tmp_path: Any) -> None:
    """Under both progress bars' common source."""
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(every_n_steps=4), max_epochs=1)
    trainer.fit(make_module(pl.LightningModule), loader())
    assert trainer.progress_bar_metrics["train/perplexity"] == trainer.callback_metrics["train/perplexity"].item()


def test_the_sanity_check_and_predict_are_left_alone(tmp_path: Any) -> None:
    """Neither is counted nor logged."""
    module = make_module(pl.LightningModule)
    override(module, "predict_step", lambda self, batch, index: self(batch["x"]))
    trainer = trainer_for(
        tmp_path, pplmon.PerplexityMonitor(logits="head", targets="labels"), max_epochs=1, num_sanity_val_steps=2
    )
    trainer.fit(module, loader(), loader(8, seed=1))
    assert len(windows(tmp_path, "val")) == 1
    assert trainer.callback_metrics["val/sequences"].item() == 8
    before = (tmp_path / "pplmon.jsonl").read_text()
    trainer.predict(module, loader(8))
    assert (tmp_path / "pplmon.jsonl").read_text() == before


def test_a_key_of_the_modules_own_is_never_mixed_with_ours(tmp_path: Any) -> None:
    """One warning names the key and ``prefix``; ours is under ``pplmon/``, theirs is theirs."""
    module = make_module(pl.LightningModule)

    def validation_step(self: Any, batch: Any, index: int) -> Any:
        self.log("val/perplexity", 7.0)
        return old(batch, index)

    old = override(module, "validation_step", validation_step)
    override(module, "on_train_epoch_end", lambda self: self.log("train/cross_entropy_epoch", 3.0))
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(), logger=logger, max_epochs=1)
    with pytest.warns(UserWarning, match="prefix") as caught:
        trainer.fit(module, loader(), loader(8, seed=1))
    assert sum("val/perplexity" in str(w.message) for w in caught) == 1
    assert trainer.callback_metrics["val/perplexity"].item() == 7.0
    assert trainer.callback_metrics["pplmon/val/perplexity"].item() > 8
    with open(f"{logger.log_dir}/metrics.csv") as file:
        lines = list(csv.DictReader(file))
    for key, own in (("val/perplexity", 7.0), ("train/cross_entropy_epoch", 3.0)):
        assert {float(line[key]) for line in lines if line[key]} == {own}
        assert [line[f"pplmon/{key}"] for line in lines if line[f"pplmon/{key}"]]


def test_prefix_moves_every_key(tmp_path: Any) -> None:
    """The prefix stands before the stage."""
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(prefix="lm/"), max_epochs=1)
    trainer.fit(make_module(pl.LightningModule), loader(), loader(8, seed=1))
    assert {key.split("/")[0] for key in trainer.callback_metrics} == {"lm"}
    assert "lm/val/perplexity" in trainer.callback_metrics


def test_fast_dev_run_leaves_no_files_and_log_every_zero_logs_no_window(tmp_path: Any) -> None:
    """Two settings under which Lightning itself is silent."""
    trainer = trainer_for(tmp_path / "dev", pplmon.PerplexityMonitor(), fast_dev_run=2)
    trainer.fit(make_module(pl.LightningModule), loader(), loader(8, seed=1))
    assert not list(tmp_path.rglob("*.jsonl"))
    assert trainer.callback_metrics["val/perplexity"].item() > 1
    trainer = trainer_for(tmp_path / "zero", pplmon.PerplexityMonitor(), max_epochs=1, log_every_n_steps=0)
    trainer.fit(make_module(pl.LightningModule), loader())
    assert windows(tmp_path / "zero") == []
    assert len(windows(tmp_path / "zero", "train_epoch")) == 1


def test_manual_optimization_with_two_optimizers(tmp_path: Any) -> None:
    """The step is that of ``self.log``: one a batch, however many optimizers stepped."""
    module = make_module(pl.LightningModule)
    module.automatic_optimization = False

    def training_step(self: Any, batch: Any, index: int) -> None:
        loss = step(batch, index)
        for optimizer in module.optimizers():
            optimizer.zero_grad()
        module.manual_backward(loss)
        for optimizer in module.optimizers():
            optimizer.step()

    step = override(module, "training_step", training_step)
    override(
        module,
        "configure_optimizers",
        lambda self: [torch.optim.SGD(part.parameters(), 1e-2) for part in (self.body, self.head)],
    )
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(every_n_steps=4), max_epochs=1)
    trainer.fit(module, loader())
    assert trainer.global_step == 32
    assert [w["step"] for w in windows(tmp_path)] == [3, 7, 11, 15]


def test_an_iterable_dataset_of_unknown_length(tmp_path: Any) -> None:
    """Nothing asks for a length."""

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(rows(20))

    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(every_n_steps=3), max_epochs=1)
    trainer.fit(make_module(pl.LightningModule), DataLoader(Stream(), batch_size=4))
    assert [w["step"] for w in windows(tmp_path)] == [2, 4]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true"])
def test_low_precision_is_measured_in_float32(precision: str, tmp_path: Any) -> None:
    """States stay integers, and the number is that of the logits the model really gave."""
    module = make_module(pl.LightningModule)
    module.keep = True
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(), max_epochs=1, precision=precision)
    trainer.fit(module, loader())
    expected = reference(module.seen)["cross_entropy"]
    assert trainer.callback_metrics["train/cross_entropy_epoch"].item() == pytest.approx(expected, abs=1e-6)


def test_hooks_go_away_after_an_exception(tmp_path: Any) -> None:
    """Lightning calls neither teardown nor on_train_end then; the next run must not count twice."""
    module = make_module(pl.LightningModule, "none")
    monitor = pplmon.PerplexityMonitor(logits="head", targets="labels")

    def fails(self: Any, batch: Any, index: int) -> Any:
        if index == 3:
            raise RuntimeError("planned")
        return step(batch, index)

    step = override(module, "training_step", fails)
    with pytest.raises(RuntimeError, match="planned"):
        trainer_for(tmp_path / "a", monitor, max_epochs=1).fit(module, loader())
    assert not module.head._forward_hooks
    module.training_step = step
    trainer = trainer_for(tmp_path / "b", monitor, max_epochs=1)
    trainer.fit(module, loader(ignored=False))
    assert trainer.callback_metrics["train/tokens_seen"].item() == 64 * LENGTH
    assert not module.head._forward_hooks


def test_no_logits_names_the_sources_and_a_wrong_path_its_neighbours(tmp_path: Any) -> None:
    """The first batch tells; in validation it is one warning."""
    module = make_module(pl.LightningModule, "none")
    with pytest.raises(ValueError, match=r"pplmon\.observe\(self, logits, targets\)"):
        trainer_for(tmp_path, pplmon.PerplexityMonitor(), max_epochs=1).fit(module, loader())
    with pytest.raises(ValueError, match=r"'haed' is neither a submodule.*nearest: head"):
        trainer_for(tmp_path, pplmon.PerplexityMonitor(logits="haed"), max_epochs=1).fit(module, loader())
    with pytest.raises(ValueError, match=r"targets='label' is no key.*keys x, labels"):
        trainer_for(tmp_path, pplmon.PerplexityMonitor(logits="head", targets="label"), max_epochs=1).fit(
            module, loader()
        )
    with pytest.warns(UserWarning, match="found no logits and targets in the first val batch") as caught:
        trainer_for(tmp_path, pplmon.PerplexityMonitor()).validate(module, loader(), verbose=False)
    assert sum("found no logits" in str(w.message) for w in caught) == 1


def test_a_loss_that_is_not_the_cross_entropy_is_told_once(tmp_path: Any) -> None:
    """More than 5 % apart over the first logged window, accumulation taken into account."""
    for factor, expected in ((1.0, 0), (1.2, 1)):
        module = make_module(pl.LightningModule)
        step = module.training_step

        def scaled(self: Any, batch: Any, index: int, step: Any = step, factor: float = factor) -> Any:
            return step(batch, index) * factor

        override(module, "training_step", scaled)
        trainer = trainer_for(
            tmp_path, pplmon.PerplexityMonitor(every_n_steps=1), max_epochs=1, accumulate_grad_batches=4
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(module, loader())
        told = [str(w.message) for w in caught if "training_step returned a loss" in str(w.message)]
        assert len(told) == expected
        assert all("auxiliary" in text and "shift=True" in text for text in told)


def test_targets_outside_the_vocabulary_stop_the_first_steps_only(tmp_path: Any) -> None:
    """A ValueError with the number and an example, at the first read-out."""
    module = make_module(pl.LightningModule)
    data = rows(8)
    data[1]["labels"][3] = VOCAB + 7

    def training_step(self: Any, batch: Any, index: int) -> Any:
        logits = self(batch["x"])
        pplmon.observe(self, logits, batch["labels"])
        return F.cross_entropy(logits.view(-1, VOCAB), batch["labels"].clamp_max(VOCAB - 1).view(-1))

    override(module, "training_step", training_step)
    with pytest.raises(
        ValueError, match=rf"1 targets are outside the vocabulary \[0, {VOCAB}\), for example {VOCAB + 7}"
    ):
        trainer_for(tmp_path, pplmon.PerplexityMonitor(), max_epochs=1).fit(module, DataLoader(data, batch_size=4))


def test_bad_settings_are_errors_at_construction() -> None:
    """Nothing waits for the first step that can be known before."""
    with pytest.raises(ValueError, match="every_n_steps must be at least 1"):
        pplmon.PerplexityMonitor(every_n_steps=0)
    with pytest.raises(ValueError, match="judge_every_n_steps must be at least 1"):
        pplmon.PerplexityMonitor(judge_every_n_steps=-1)
    with pytest.raises(ValueError, match="did you mean perplexity"):
        pplmon.PerplexityMonitor(numbers=["perplexty"])
    with pytest.raises(TypeError, match="a rule is a callable"):
        pplmon.PerplexityMonitor(alerts=["max_token_loss"])  # type: ignore[list-item]


def test_an_alert_of_the_callback_has_its_evidence(tmp_path: Any) -> None:
    """Step, micro-batch, row of the batch, position, and the dataset's row by ``sample_ids``."""
    found: list[pplmon.Alert] = []
    module = make_module(pl.LightningModule, lr=0.0)
    module.head.bias.data[5] = 60.0
    data = rows(32, ignored=False)
    for item in data:
        item["labels"].fill_(5)
    data[21]["labels"][9] = 6  # batch 5, row 1: optimizer step 2, micro-batch 1
    monitor = pplmon.PerplexityMonitor(alerts=[pplmon.Above("max_token_loss", 40.0)], on_alert=found.append)
    trainer = trainer_for(tmp_path, monitor, max_epochs=1, accumulate_grad_batches=2)
    trainer.fit(module, DataLoader(data, batch_size=4))
    (alert,) = found
    worst = alert.worst[0]
    assert (alert.step, worst.step, worst.micro_batch, worst.sequence, worst.position) == (2, 2, 1, 1, 9)
    assert (worst.sample_id, worst.target, worst.predicted) == (21, 6, 5)
    lines = [line for line in read_journal(tmp_path / "pplmon.jsonl") if line["kind"] == "alert"]
    assert [(line["step"], line["worst"][0]["sample_id"]) for line in lines] == [(2, 21)]


@pytest.mark.parametrize(
    ("source", "arguments"),
    [("none", {"logits": "head", "targets": "labels"}), ("observe", {})],
    ids=["hook", "observe"],
)
def test_a_compiled_module_is_measured(source: str, arguments: dict[str, Any], tmp_path: Any) -> None:
    """What measures is outside the user's graph; the number is that of the eager module."""
    losses = []
    for compiled in (False, True):
        module = make_module(pl.LightningModule, source)
        if compiled:
            importlib.import_module("torch._dynamo").reset()
            module = torch.compile(module, backend="eager")
        trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(**arguments), max_epochs=1)
        trainer.fit(module, loader(), loader(8, seed=1))
        losses.append(
            [
                trainer.callback_metrics[f"{key}"].item()
                for key in ("train/cross_entropy_epoch", "val/cross_entropy", "val/tokens")
            ]
        )
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
