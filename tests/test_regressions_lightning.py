"""Faults of the callback that were found once, each with the smallest run that shows it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import pplmon
from pplmon.sinks import read_journal
from tests.models import LENGTH, VOCAB, loader, make_module, rows
from tests.test_lightning import override, trainer_for, windows

pl = pytest.importorskip("pytorch_lightning")


def fit(module: Any, where: Any, monitor: pplmon.PerplexityMonitor | None = None, **settings: Any) -> dict[str, float]:
    """Train on 16 full rows; returns the callback metrics."""
    trainer = trainer_for(where, monitor or pplmon.PerplexityMonitor(), max_epochs=1, **settings)
    trainer.fit(module, loader(16, ignored=False))
    return {key: value.item() for key, value in trainer.callback_metrics.items()}


def test_a_returned_hugging_face_output_is_measured_as_its_model_does(tmp_path: Any) -> None:
    """It has logits and a loss but no labels: the hooked model knows about the shift, the returned dict does not."""
    pytest.importorskip("transformers")
    from tests.test_huggingface import HF, build, data

    class Returns(HF):
        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> Any:
            output = self.model(**batch)
            self.losses.append(output.loss.item())
            return {"loss": output.loss, "logits": output.logits}

    module = Returns(build("gpt2"))
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(), max_epochs=1)
    trainer.fit(module, data())
    expected = sum(module.losses) / len(module.losses)
    assert trainer.callback_metrics["train/cross_entropy_epoch"].item() == pytest.approx(expected, abs=1e-5)


def test_a_causal_model_is_shifted_also_where_targets_are_named(tmp_path: Any) -> None:
    """The shift is the model's own, whoever passes the labels."""
    pytest.importorskip("transformers")
    from tests.test_huggingface import HF, T, build, data

    class Apart(HF):
        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> Any:
            logits = self.model(input_ids=batch["input_ids"]).logits
            return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())

    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(targets="labels"), max_epochs=1)
    trainer.fit(Apart(build("llama")), data())
    assert trainer.callback_metrics["train/tokens_seen"].item() == 8 * (T - 1)


def test_loaders_in_a_dict_are_counted_each(tmp_path: Any) -> None:
    """As Lightning numbers them."""
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor())
    trainer.validate(make_module(pl.LightningModule), {"a": loader(8), "b": loader(12)}, verbose=False)
    metrics = trainer.callback_metrics
    sizes = [metrics[f"val/sequences/dataloader_idx_{index}"].item() for index in (0, 1)]
    assert sizes == [8, 12] and metrics["val/sequences"].item() == 20


def test_a_source_that_fails_is_no_matter_where_a_higher_one_works(tmp_path: Any) -> None:
    """The module observes; that it also returns something called logits is its own business."""
    module = make_module(pl.LightningModule)

    def training_step(self: Any, batch: Any, index: int) -> Any:
        return {"loss": step(batch, index), "logits": torch.zeros(4, 13), "labels": batch["labels"]}

    step = override(module, "training_step", training_step)
    assert fit(module, tmp_path)["train/tokens_seen"] == 16 * LENGTH


def test_one_odd_batch_later_on_is_told_and_skipped(tmp_path: Any) -> None:
    """The first batch has to fit; a later one that does not must not end the run."""
    module = make_module(pl.LightningModule, "return")

    def training_step(self: Any, batch: Any, index: int) -> Any:
        outputs = step(batch, index)
        return {**outputs, "logits": outputs["logits"][:, :4]} if index == 2 else outputs

    step = override(module, "training_step", training_step)
    with pytest.warns(UserWarning, match="this batch is not counted"):
        assert fit(module, tmp_path)["train/tokens_seen"] == 12 * LENGTH


def test_generation_before_the_forward_is_not_pieces_of_a_batch(tmp_path: Any) -> None:
    """Calls of one position each, or of a prefix twice, add up to the batch's width by chance."""
    module = make_module(pl.LightningModule, "none")

    def training_step(self: Any, batch: Any, index: int) -> Any:
        with torch.no_grad():
            for position in range(LENGTH):
                self(batch["x"][:, position : position + 1])
            for _ in range(2):
                self(batch["x"][:, : LENGTH // 2])
        return step(batch, index)

    step = override(module, "training_step", training_step)
    with pytest.warns(UserWarning, match="not counted"):
        found = fit(module, tmp_path, pplmon.PerplexityMonitor(logits="head", targets="labels"))
    assert found["train/tokens_seen"] == 16 * LENGTH


def test_a_shift_of_one_call_is_not_that_of_the_next(tmp_path: Any) -> None:
    """``observe(…, shift=True)`` speaks for itself alone."""
    module = make_module(pl.LightningModule, "none")

    def training_step(self: Any, batch: Any, index: int) -> Any:
        logits = self(batch["x"])
        pplmon.observe(self, logits, batch["labels"], shift=True)
        pplmon.observe(self, logits, batch["labels"])
        return step(batch, index)

    step = override(module, "training_step", training_step)
    assert fit(module, tmp_path)["train/tokens_seen"] == 16 * (2 * LENGTH - 1)


def test_losses_without_logits_can_be_observed(tmp_path: Any) -> None:
    """A fused loss has TokenStats only."""
    module = make_module(pl.LightningModule, "none")

    def training_step(self: Any, batch: Any, index: int) -> Any:
        losses = torch.nn.functional.cross_entropy(self(batch["x"]).transpose(1, 2), batch["labels"], reduction="none")
        pplmon.observe(self, pplmon.TokenStats.from_losses(losses, batch["labels"], vocab_size=VOCAB))
        return losses.mean()

    override(module, "training_step", training_step)
    found = fit(module, tmp_path)
    assert found["train/tokens_seen"] == 16 * LENGTH and "train/token_accuracy" not in found


def test_flat_logits_keep_the_batchs_mask(tmp_path: Any) -> None:
    """A module that flattens both still has a batch whose mask is [B, T]; that its loss is without it is told."""
    module = make_module(pl.LightningModule, "none")

    def training_step(self: Any, batch: Any, index: int) -> Any:
        pplmon.observe(self, self(batch["x"]).flatten(0, 1), batch["labels"].flatten())
        return step(batch, index)

    step = override(module, "training_step", training_step)
    data = [{**item, "mask": torch.arange(LENGTH) < 5} for item in rows(16, ignored=False)]
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(), max_epochs=1)
    with pytest.warns(UserWarning, match="mask_dropped: .* the loss scores every position"):
        trainer.fit(module, DataLoader(data, batch_size=4))  # type: ignore[arg-type]
    assert trainer.callback_metrics["train/tokens_seen"].item() == 16 * 5


def test_a_batch_key_that_is_something_else_is_told_and_left_out(tmp_path: Any) -> None:
    """A float under one of our names is the user's own."""
    data = [{**item, "document_ids": torch.rand(LENGTH)} for item in rows(16, ignored=False)]
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(), max_epochs=1)
    with pytest.warns(UserWarning, match="document_ids.*not integer"):
        trainer.fit(make_module(pl.LightningModule), DataLoader(data, batch_size=4))  # type: ignore[arg-type]
    assert trainer.callback_metrics["train/tokens_seen"].item() == 16 * LENGTH


def test_a_users_rule_is_the_users_object(tmp_path: Any) -> None:
    """It may hold a file, and what it records is read after the run."""

    class Records:
        def __init__(self) -> None:
            self.steps: list[int] = []
            self.file = open(__file__)  # noqa: SIM115 - it is what cannot be copied

        def __call__(self, report: pplmon.Report) -> None:
            self.steps.append(report.step)

    rule = Records()
    fit(make_module(pl.LightningModule), tmp_path, pplmon.PerplexityMonitor(alerts=[rule]))
    rule.file.close()
    assert rule.steps == [0, 1, 2, 3]


def test_the_checkpoint_key_is_the_same_in_every_process() -> None:
    """A callable has an address in memory, which is no name."""
    one, two = (pplmon.PerplexityMonitor(logits=lambda outputs, batch: outputs) for _ in range(2))
    assert one.state_key == two.state_key and "0x" not in one.state_key
    assert one.state_key != pplmon.PerplexityMonitor(prefix="b/").state_key


def test_two_monitors_share_a_journal_without_losing_rows(tmp_path: Any) -> None:
    """Rows of the same step are told apart by the prefix."""
    trainer = trainer_for(
        tmp_path, pplmon.PerplexityMonitor(prefix="a/"), pplmon.PerplexityMonitor(prefix="b/"), max_epochs=1
    )
    trainer.fit(make_module(pl.LightningModule), loader(16))
    found = windows(tmp_path)
    assert sorted(row["prefix"] for row in found) == ["a/", "b/"]
    assert len({str(row["numbers"]) for row in found}) == 1
    assert len([row for row in read_journal(tmp_path) if row["kind"] == "judged"]) == 8


def test_a_subclass_of_a_logger_is_that_logger(tmp_path: Any) -> None:
    """Its alerts are shown as text, too."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Mine(pl.loggers.TensorBoardLogger):
        pass

    logger = Mine(tmp_path, name="tb")
    monitor = pplmon.PerplexityMonitor(alerts=[pplmon.Above("max_token_loss", 1.0)])
    fit(make_module(pl.LightningModule), tmp_path, monitor, logger=logger)
    board = EventAccumulator(logger.log_dir, {"tensors": 0})
    board.Reload()
    assert "pplmon/alerts/text_summary" in board.Tags()["tensors"]


def test_abandoning_a_run_reads_none_of_the_trainers_metrics(tmp_path: Any) -> None:
    """Computing them may be a collective that the other ranks never reach."""
    module = make_module(pl.LightningModule)
    asked: list[str] = []
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(every_n_steps=50), max_epochs=1)
    connector = type(trainer._logger_connector)

    def fails(self: Any, batch: Any, index: int) -> Any:
        if index == 2:
            patch.setattr(connector, "callback_metrics", property(lambda self: asked.append("callback_metrics") or {}))
            raise RuntimeError("planned")
        return step(batch, index)

    step = override(module, "training_step", fails)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="planned"):
        trainer.fit(module, loader(16))
    assert asked == []
    assert [row["numbers"]["tokens"] for row in windows(tmp_path)] != []
