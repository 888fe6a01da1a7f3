"""Small models, data and modules for the tests of which logits, targets, shift and calls are counted. V = 37."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

import pplmon

FOLDER = tempfile.mkdtemp()  # of this process: two that write one journal are warned of it
VOCAB = 37
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def llama(seed: int = 0, scale: float = 3.0) -> Any:
    """A tiny Llama with logits far from uniform, so that every shift has another loss."""
    import transformers

    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    with torch.no_grad():
        model.lm_head.weight.mul_(scale * 10)
    return model


def batches(count: int = 4, rows: int = 3, length: int = 12) -> DataLoader[Any]:
    """Random ids as labels; in each batch some of the first are ignored."""
    made = []
    for index in range(count):
        ids = torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(index))
        labels = ids.clone()
        labels[:, : index % 3 + 1] = -100
        made.append({"input_ids": ids, "labels": labels})
    return DataLoader(made, batch_size=None)  # type: ignore[arg-type]


def nll(logits: Tensor, targets: Tensor, shift: bool = False) -> Tensor:
    """Return the losses of the scored targets in float64."""
    if shift:
        logits, targets = logits[:, :-1], targets[:, 1:]
    flat = F.cross_entropy(logits.detach().double().flatten(0, 1), targets.flatten(), reduction="none")
    return flat[targets.flatten() != -100]


def mean(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss as a user writes it."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Module(pl.LightningModule):
    """Runs ``body(module, batch)``, which returns what a step returns and notes the true losses in ``truth``."""

    def __init__(self, body: Callable[[Any, Any], Any], **parts: torch.nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.body, self.truth = body, []

    def training_step(self, batch: Any, index: int) -> Any:
        return self.body(self, batch)

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.0)


def run(
    module: Module, stage: str, data: Any = None, accumulate: int = 1, **settings: Any
) -> tuple[float, float, list[str]]:
    """Return what is shown of a stage, what is true, and what pplmon said."""
    settings = {"every_n_steps": 1, "alerts": [], **settings}
    trainer = pl.Trainer(
        default_root_dir=FOLDER,
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[pplmon.PerplexityMonitor(**settings)],
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if stage == "train":
            trainer.fit(module, batches() if data is None else data)
        else:
            trainer.validate(module, batches() if data is None else data, verbose=False)
    key = "train/cross_entropy_epoch" if stage == "train" else "val/cross_entropy"
    told = [str(w.message) for w in caught if str(w.message).startswith("pplmon")]
    return trainer.callback_metrics[key].item(), torch.cat(module.truth).mean().item(), told


def said(told: Sequence[str], *words: str) -> bool:
    """Tell whether one line, and no other, has all these words."""
    return len(told) == 1 and all(word in told[0] for word in words)
