"""Every causal head of the installed transformers: does the callback show the model's own loss?

    python -m benchmarks.heads [--only NAME...]

Each head that can be built from a tiny config is validated on random ids without any setting. One row for each: the
model's loss, what is shown, and why the two differ where they do.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

import pplmon

VOCAB, ROWS, LENGTH = 64, 3, 16
NAMES = (
    "ForCausalLM",
    "LMHeadModel",
    "ModelWithLMHead",
    "DoubleHeadsModel",
    "WithLMHeadModel",
    "ForConditionalGeneration",
)
# Where the model's loss is not the cross-entropy of its logits, and what it is.
EXCEPTIONS = {
    "ProphetNetForCausalLM": "its loss is over n-grams: it also holds the logits of the second next token, smoothed",
    "ProphetNetForConditionalGeneration": "its loss is over n-grams: it also holds the logits of the second next token, smoothed",
    "XLMProphetNetForCausalLM": "its loss is over n-grams",
    "XLMProphetNetForConditionalGeneration": "its loss is over n-grams",
}
# Sizes under the names that configs have for them; those that a config does not have are left out.
TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "n_ctx": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_layers": 2,
    "n_head": 4,
    "n_heads": 4,
    "n_inner": 32,
    "d_model": 32,
    "d_ff": 32,
    "d_kv": 8,
    "dff": 32,
    "emb_dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "ffn_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "embedding_size": 32,
    "input_embedding_size": 32,
    "output_embedding_size": 32,
    "word_embed_proj_dim": 32,
    "moe_intermediate_size": 32,
    "num_local_experts": 2,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "state_size": 4,
    "is_decoder": True,
    "causal": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    **dict.fromkeys(
        (
            "dropout attention_dropout activation_dropout hidden_dropout_prob attention_probs_dropout_prob hidden_dropout "
            "resid_pdrop embd_pdrop attn_pdrop dropout_rate"
        ).split(),
        0.0,
    ),
}
LARGEST = 40_000_000  # parameters: a config that knows none of the names above is not tiny


class Row(NamedTuple):
    """One head."""

    name: str
    loss: float  # the model's own; NaN where it could not be built or run
    shown: float
    note: str

    @property
    def agrees(self) -> bool:
        """True where the shown value is the model's loss, within what fp32 keeps."""
        return abs(self.shown - self.loss) <= 2e-5 * abs(self.loss) + 1e-6


def heads() -> Iterator[tuple[str, type]]:
    """Yield every class that ``AutoModelForCausalLM`` makes, and every other one that is named like a causal head."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = {name for name in dir(transformers) if name.endswith(NAMES) and not name.startswith(("TF", "Flax", "Auto"))}
    for name in sorted(named | set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())):
        if isinstance(name, str):
            try:
                found = getattr(transformers, name)
            except (ImportError, RuntimeError):
                continue  # it wants a package that is not here
            if inspect.isclass(found) and getattr(found, "config_class", None) is not None:
                yield name, found


def build(head: Any) -> Any:
    """Return a tiny model of this class; raises whatever its config or constructor raises."""
    config_class = head.config_class
    known = inspect.signature(config_class.__init__).parameters
    known = {**known, **getattr(config_class, "__dataclass_fields__", {})}
    torch.manual_seed(0)
    config = config_class(**{name: value for name, value in TINY.items() if name in known})
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = TINY["pad_token_id"]  # some configs no longer take it as an argument
    with torch.device("meta"):
        size = sum(p.numel() for p in head(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters from a tiny config")
    model = head(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # so that each shift has a loss of its own
    return model.eval()


class Own(pl.LightningModule):
    """Validates a model on its own loss."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.losses = model, []

    def validation_step(self, batch: Any, index: int) -> None:
        """Return nothing: the model alone knows its loss."""
        self.losses.append(self.model(**batch).loss.item())


def row(name: str, head: Any) -> Row:
    """Build one head, validate it, and say what was shown."""
    try:
        model = build(head)
        ids = torch.randint(3, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
        batch = {"input_ids": ids, "labels": ids.clone()}
        with torch.no_grad():
            output = model(**batch)
        if output.loss is None or output.loss.numel() != 1 or not math.isfinite(output.loss.item()):
            return Row(name, math.nan, math.nan, "it gives no loss for ids and labels alone")
    except Exception as error:
        return Row(name, math.nan, math.nan, f"not built: {type(error).__name__}: {error}".splitlines()[0][:90])
    module = Own(model)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=tempfile.gettempdir(),  # its journal goes there
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[pplmon.PerplexityMonitor(alerts=[])],
    )
    trainer.validate(module, DataLoader([batch] * 3, batch_size=None), verbose=False)  # type: ignore[arg-type]
    shown = trainer.callback_metrics.get("val/cross_entropy", torch.tensor(math.nan)).item()
    return Row(name, sum(module.losses) / len(module.losses), shown, EXCEPTIONS.get(name, ""))


def sweep(only: list[str] | None = None) -> list[Row]:
    """Return a row for each head."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [row(name, head) for name, head in heads() if not only or name in only]


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if a head differs without a reason."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="names of classes")
    options = parser.parse_args(arguments)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    rows = sweep(options.only)
    table = Table("head", "its loss", "shown", "")
    for one in rows:
        verdict = "" if math.isnan(one.loss) else "equal" if one.agrees else "DIFFERS"
        table.add_row(one.name, f"{one.loss:.5f}", f"{one.shown:.5f}", one.note or verdict)
    Console(width=max(Console().width, 130)).print(table)
    built = [one for one in rows if not math.isnan(one.loss)]
    wrong = [one.name for one in built if not one.agrees and one.name not in EXCEPTIONS]
    print(f"{len(rows)} heads, {len(built)} built, {len(wrong)} differ without a reason: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
