"""Sizes that no other test has: a vocabulary of 256k, a row of 128k tokens, and batches that worker processes load."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

import pplmon
from pplmon import TokenStats, TokenTally
from tests.models import loader, make_module

LONG = 128 * 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_vocabulary_of_256k(dtype: torch.dtype) -> None:
    """Losses, argmax and addresses are those of float64, with the largest logit at either end of the vocabulary."""
    vocab = 256 * 1024
    logits = (torch.randn(2, 8, vocab, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    logits[0, 0, vocab - 1] = logits[0, 1, 0] = 60.0
    targets = torch.randint(vocab, (2, 8), generator=torch.Generator().manual_seed(1))
    targets[0, 0], targets[0, 1], targets[1, 7] = vocab - 1, vocab - 1, -100
    tally = TokenTally(top_k=2)
    tally.update(logits, targets)
    report = tally.report()
    wide = logits.double()
    nll = (wide.logsumexp(-1) - wide.gather(-1, targets.clamp_min(0)[..., None]).squeeze(-1))[targets >= 0]
    hits = (wide.argmax(-1) == targets)[targets >= 0]
    assert report.cross_entropy == pytest.approx(nll.mean().item(), abs=1e-5)
    assert report.token_accuracy == hits.double().mean().item() and hits.any()
    assert report.tokens == 15
    assert (report.worst[0].target, report.worst[0].predicted, report.worst[0].position) == (vocab - 1, 0, 1)
    assert report.max_token_excess == pytest.approx(nll.max().item() - math.log(vocab) - math.log(15), abs=1e-4)


def test_one_row_of_128k_tokens() -> None:
    """One sequence: its mean is that of float64, and the worst token is found at its column, with its neighbours."""
    nll = torch.rand(1, LONG, generator=torch.Generator().manual_seed(0)) * 8
    targets = torch.randint(1000, (1, LONG), generator=torch.Generator().manual_seed(1))
    nll[0, LONG - 2] = 50.0
    tally = TokenTally(top_k=3, context=4)
    tally.update(TokenStats.from_losses(nll, targets, vocab_size=1000), step=7)
    report = tally.report()
    assert report.cross_entropy == pytest.approx(nll.double().mean().item(), rel=1e-8)
    assert report.tokens == LONG and report.sequences == 1
    (sequence,) = report.worst_sequences
    assert sequence.tokens == LONG and sequence.loss == pytest.approx(nll.double().mean().item(), abs=1e-6)
    assert report.max_sequence_loss == sequence.loss
    worst = report.worst[0]
    assert (worst.loss, worst.step, worst.sequence, worst.position) == (50.0, 7, 0, LONG - 2)
    assert worst.context_ids == (*targets[0, LONG - 6 :].tolist(), None, None, None)


@pytest.mark.slow  # worker processes take seconds to start
def test_batches_from_worker_processes_count_once(tmp_path: Path) -> None:
    """Workers that fork from a process with a monitor leave its journal alone, and change no number."""
    journals = []
    for workers in (0, 2):
        module, where = make_module(pl.LightningModule), tmp_path / str(workers)
        data = loader(24, num_workers=workers, persistent_workers=workers > 0)
        trainer = pl.Trainer(
            max_epochs=2,
            logger=False,
            default_root_dir=where,
            accelerator="cpu",
            log_every_n_steps=3,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[pplmon.PerplexityMonitor(alerts=[])],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(module, data, data)
        (path,) = where.rglob("pplmon.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        journals.append([row for row in rows if row["kind"] != "run"])
    assert journals[0] == journals[1]
    assert sum(row["kind"] == "judged" and row["stage"] == "train" for row in journals[1]) == 12
