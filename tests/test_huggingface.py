"""The source of logits that needs no arguments: a Hugging Face model inside the module."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import pplmon
from pplmon.trainers.lightning import PerplexityMonitor

pl = pytest.importorskip("pytorch_lightning")
transformers = pytest.importorskip("transformers")

V, T = 61, 24
SMALL = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def build(name: str) -> Any:
    """Build a tiny random model from a config. Gemma-2 caps its logits, Cohere and Granite scale them after the head."""
    torch.manual_seed(0)
    configs = {
        "llama": lambda: transformers.LlamaConfig(**SMALL),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=V,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        "gemma2": lambda: transformers.Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=5.0),
        "cohere": lambda: transformers.CohereConfig(**SMALL, logit_scale=0.25),
        "granite": lambda: transformers.GraniteConfig(**SMALL, logits_scaling=4.0),
    }
    model = transformers.AutoModelForCausalLM.from_config(configs[name]())
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # confident logits, so that capping and scaling matter
    return model


class HF(pl.LightningModule):
    """A module that lets the model compute its loss."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


def data(count: int = 8) -> DataLoader[Any]:
    """Rows of one length, so that the mean of the batches' losses is the mean over tokens."""
    ids = torch.randint(3, V, (count, T), generator=torch.Generator().manual_seed(1))
    return DataLoader([{"input_ids": row, "labels": row} for row in ids], batch_size=4)  # type: ignore[arg-type]


def fit(module: Any, tmp_path: Any, monitor: PerplexityMonitor | None = None, **settings: Any) -> Any:
    """Train one epoch without a logger."""
    options: dict[str, Any] = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = pl.Trainer(
        **{**options, **settings},
        callbacks=[monitor or PerplexityMonitor()],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data(), data())
    return trainer


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "cohere", "granite"])
def test_reads_the_models_own_loss_without_arguments(name: str, tmp_path: Any) -> None:
    """The number is the model's own loss, also where logits are scaled or capped after the head."""
    module = HF(build(name))
    trainer = fit(module, tmp_path)
    expected = sum(module.losses) / len(module.losses)
    assert trainer.callback_metrics["train/cross_entropy_epoch"].item() == pytest.approx(expected, abs=1e-5)
    assert trainer.callback_metrics["val/cross_entropy"].item() == pytest.approx(expected, abs=1e-5)
    assert trainer.callback_metrics["val/tokens"].item() == 8 * (T - 1)


def test_a_checkpointed_model_is_counted_once(tmp_path: Any) -> None:
    """Recomputation during backward is not a second batch, in either kind of checkpointing."""
    for reentrant in (False, True):
        model = build("llama")
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        trainer = fit(HF(model), tmp_path)
        assert trainer.callback_metrics["train/tokens_seen"].item() == 8 * (T - 1)


class Heads(pl.LightningModule):
    """A head that is recomputed in backward, or applied to pieces of the sequence."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.kind = torch.nn.Embedding(V, 16), torch.nn.Linear(16, V), kind

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        hidden = self.body(batch["input_ids"])
        if self.kind == "chunked":
            logits = torch.cat([self.head(piece) for piece in hidden.split(7, dim=1)], dim=1)
        else:
            reentrant = self.kind == "reentrant"
            logits = torch.utils.checkpoint.checkpoint(self.head, hidden, use_reentrant=reentrant)
        return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, V), batch["labels"][:, 1:].reshape(-1))

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


@pytest.mark.parametrize("kind", ["reentrant", "nonreentrant", "chunked"])
def test_a_hooked_head_is_counted_once(kind: str, tmp_path: Any) -> None:
    """A head that runs again in backward, or piece by piece, gives each token once."""
    module = Heads(kind)
    tally = pplmon.TokenTally(extras=[pplmon.Entropy()])
    trainer = fit(module, tmp_path, PerplexityMonitor(logits="head", shift=True, tally=tally))
    metrics = trainer.callback_metrics
    assert metrics["train/tokens_seen"].item() == 8 * (T - 1)
    with torch.no_grad():
        losses = [module.training_step(batch, 0).item() for batch in data()]
    assert metrics["val/cross_entropy"].item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert 0 < metrics["val/mean_entropy"].item() < math.log(V)


def test_generation_is_not_counted(tmp_path: Any) -> None:
    """Calls without labels (generation inside the step) are left alone."""

    class Generates(HF):
        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
            self.model.generate(batch["input_ids"][:1, :4], max_new_tokens=3, do_sample=False)
            return super().training_step(batch, index)

    trainer = fit(Generates(build("llama")), tmp_path)
    assert trainer.callback_metrics["train/tokens_seen"].item() == 8 * (T - 1)


def test_an_encoder_decoder_model_is_not_shifted(tmp_path: Any) -> None:
    """T5 moves its decoder's inputs, not its labels."""
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=V,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=1,
            num_heads=4,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        )
    )
    module = HF(model)
    trainer = fit(module, tmp_path)
    assert trainer.callback_metrics["val/tokens"].item() == 8 * T
    expected = sum(module.losses) / len(module.losses)
    assert trainer.callback_metrics["train/cross_entropy_epoch"].item() == pytest.approx(expected, abs=1e-5)
