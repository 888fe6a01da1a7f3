"""The one line that says what is counted and that it equals the loss: seen on the console, once for each stage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F

import pplmon
from tests.sources import VOCAB, Module, batches, llama

pytest.importorskip("transformers")


def step_of_hugging_face(self: Any, batch: Any) -> Any:
    return self.model(**batch).loss


def plain_step(self: Any, batch: Any) -> Any:
    logits, labels = self.model(batch["input_ids"])[:, :-1], batch["labels"][:, 1:]
    return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits, "labels": labels}


def shown(module: Any, where: Path, precision: Any, capsys: Any) -> list[str]:
    """Train and validate; return the lines of standard output that say what is counted."""
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        precision=precision,
        logger=False,
        default_root_dir=where,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[pplmon.PerplexityMonitor(alerts=[])],
    )
    trainer.fit(module, batches(), batches())
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("pplmon: ") and "counts" in line]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("hugging_face", [True, False])
def test_what_agrees_is_said_once_for_each_stage(
    hugging_face: bool, precision: str, tmp_path: Path, capsys: Any
) -> None:
    """It names the source and the shift, which nobody stated, and the loss."""
    if hugging_face:
        module, name, shift = Module(step_of_hugging_face, model=llama()), "model", True
    else:
        torch.manual_seed(0)
        parts = torch.nn.Sequential(torch.nn.Embedding(VOCAB, 16), torch.nn.Linear(16, VOCAB))
        module, name, shift = Module(plain_step, model=parts), "what the step returned", False
    lines = shown(module, tmp_path, precision, capsys)
    for line, stage in zip(lines, ("train", "val"), strict=True):
        assert line.startswith(
            f"pplmon: {stage} counts {name}, with shift={shift}: its cross-entropy equals the loss, "
        )
        assert 0 < float(line.split()[-4]) < 100 and line.endswith(" nats per token")


def test_a_divisor_that_is_not_the_tokens_is_said_with_both_values(tmp_path: Path, capsys: Any) -> None:
    """As transformers divides GPT-2's: by all labels, the first of each row among them, so the loss is not the number."""

    def step(self: Any, batch: Any) -> Any:
        return self.model(**batch, num_items_in_batch=2 * batch["labels"][:, 1:].ne(-100).sum()).loss

    lines = shown(Module(step, model=llama()), tmp_path, "32-true", capsys)
    for line, stage in zip(lines, ("train", "val"), strict=True):
        said = re.fullmatch(
            f"pplmon: {stage} counts model, with shift=True: its cross-entropy of (.+) nats per token is the loss of (.+), "
            "but for its divisor: num_items_in_batch is not the number of these tokens",
            line,
        )
        assert said is not None and float(said[1]) == pytest.approx(2 * float(said[2]), rel=1e-3)


@pytest.mark.filterwarnings("ignore:pplmon.* over .* the measured cross-entropy")
def test_what_does_not_agree_has_no_such_line(tmp_path: Path, capsys: Any) -> None:
    """A loss with a further term equals nothing."""

    def step(self: Any, batch: Any) -> Any:
        given = plain_step(self, batch)
        return {**given, "loss": given["loss"] * 1.5 + 0.3}

    parts = torch.nn.Sequential(torch.nn.Embedding(VOCAB, 16), torch.nn.Linear(16, VOCAB))
    assert not shown(Module(step, model=parts), tmp_path, "32-true", capsys)


def test_a_plain_loop_shows_it_where_it_has_a_console(capsys: Any) -> None:
    """``observe(loss=)`` in the same words; without the sink it is only logged."""
    for sinks in ([pplmon.sinks.Console()], []):
        monitor = pplmon.Monitor(every_n_steps=1, alerts=[], sinks=sinks)
        for seed in range(2):
            logits = torch.randn(3, 9, VOCAB, generator=torch.Generator().manual_seed(seed))
            targets = torch.arange(27).view(3, 9)
            monitor.observe(logits, targets, loss=F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
            monitor.step()
        monitor.close()
        lines = [line for line in capsys.readouterr().out.splitlines() if "equals the loss" in line]
        assert len(lines) == len(sinks)
        assert all(line.startswith("pplmon: train counts with shift=False: its cross-entropy") for line in lines)
