"""A mask of the opposite sense, True on padding: named by ``diagnose``, ``observe`` and the callback, and never changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

import pplmon
from tests.observe_tasks import told
from tests.sources import VOCAB, Module, llama, run, said

pytest.importorskip("transformers")

LENGTH, PAD = 12, 0
ENDS = torch.tensor([12, 9, 7, 5])


def padded(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits of a fresh model, ids with padding on the right, and True where a target is text."""
    made = torch.Generator().manual_seed(seed)
    text = torch.arange(LENGTH) < ENDS[:, None]
    ids = torch.randint(1, VOCAB, (len(ENDS), LENGTH), generator=made).masked_fill(~text, PAD)
    return torch.randn(*ids.shape, VOCAB, generator=made) * 0.01, ids, text


def loss_of(logits: Tensor, ids: Tensor, text: Tensor) -> Tensor:
    """Return the loss as a training step has it: over the text."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids.masked_fill(~text, -100)[:, 1:].flatten())


def kinds(labels: Tensor, mask: Tensor | None, loss: Tensor | None, seed: int = 0) -> list[str]:
    """Return the kinds of what diagnose says of a batch."""
    logits, ids, _ = padded(seed)
    return [f.kind for f in pplmon.diagnose(logits, labels, loss, shift=True, input_ids=ids, attention_mask=mask)]


@pytest.mark.parametrize("with_loss", [True, False])
def test_diagnose_names_labels_that_ignore_the_text(with_loss: bool) -> None:
    """With the loss or by the attention mask alone; right labels beside it are right."""
    logits, ids, text = padded()
    loss = loss_of(logits, ids, text) if with_loss else None
    assert kinds(ids.masked_fill(text, -100), text.long(), loss) == ["mask_opposite"]
    assert kinds(ids.masked_fill(~text, -100), text.long(), loss) == []


def test_diagnose_names_an_attention_mask_that_is_1_on_padding() -> None:
    """The loss agrees with the labels, so the line to write is that of the attention mask."""
    logits, ids, text = padded()
    labels, loss = ids.masked_fill(~text, -100), loss_of(logits, ids, text)
    (finding,) = pplmon.diagnose(logits, labels, loss, shift=True, input_ids=ids, attention_mask=1 - text.long())
    assert finding.kind == "mask_opposite" and finding.fix == "attention_mask is 1 on text"
    (without,) = pplmon.diagnose(
        logits, ids.masked_fill(text, -100), loss, shift=True, input_ids=ids, attention_mask=text.long()
    )
    assert without.fix.startswith("mask=~mask") and without.evidence["loss"] == pytest.approx(loss.item())


@pytest.mark.parametrize("right", [True, False])
def test_observe_names_it_and_counts_what_it_was_told(right: bool, tmp_path: Path) -> None:
    """A stated mask is not changed, however near the two values are."""
    monitor = pplmon.Monitor(every_n_steps=1, alerts=[])
    shown = []
    with told() as lines:
        for seed in range(3):
            logits, ids, text = padded(seed)
            mask = text if right else ~text
            monitor.observe(logits, ids, mask=mask, shift=True, loss=loss_of(logits, ids, text))
            shown.append(loss_of(logits, ids, mask).item())
            monitor.step()
        last = monitor.close()
    assert last is not None and last.cross_entropy == pytest.approx(shown[-1], abs=1e-5)
    assert not lines if right else said(lines, "train: mask_opposite", "mask=~mask")


@pytest.mark.parametrize("stage", ["train", "val"])
@pytest.mark.parametrize("right", [True, False])
def test_the_callback_names_the_mask_of_a_batch(stage: str, right: bool) -> None:
    """The key ``mask`` of a batch, in either stage."""
    seen = [padded(seed) for seed in range(3)]
    data = [{"input_ids": ids, "mask": text if right else ~text} for _, ids, text in seen]

    def body(self: Any, batch: Any) -> Any:
        logits, text = self.model(batch["input_ids"]).logits, batch["mask"] if right else ~batch["mask"]
        pplmon.observe(self, logits, batch["input_ids"], shift=True)
        scored = batch["mask"][:, 1:]
        nll = F.cross_entropy(logits.detach()[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
        self.truth.append(nll[scored].double())
        return loss_of(logits, batch["input_ids"], text)

    module = Module(body, model=llama(scale=0.1))
    loader: DataLoader[Any] = DataLoader(data, batch_size=None)  # type: ignore[arg-type]
    shown, counted, lines = run(module, stage, loader)
    assert shown == pytest.approx(counted, abs=1e-5)
    assert not lines if right else said(lines, f"{stage}: mask_opposite", "mask=~mask")
