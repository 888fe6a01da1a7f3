"""Tiny Hugging Face models, rows of unlike lengths, a ``Trainer``, and what its model really predicted, in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

VOCAB = 64
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
Row = dict[str, Tensor]


def build(name: str = "llama") -> Any:
    """Build a tiny random model."""
    torch.manual_seed(0)
    if name == "t5":
        return transformers.T5ForConditionalGeneration(
            transformers.T5Config(**T5, decoder_start_token_id=0, pad_token_id=0)
        )
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))


def rows(count: int, seed: int = 1) -> list[Tensor]:
    """Rows of 8 to 24 ids."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(8, 25, (count,), generator=generator).tolist()
    return [torch.randint(3, VOCAB, (length,), generator=generator) for length in lengths]


def collate(batch: Sequence[Tensor]) -> Row:
    """Pad rows to the longest."""
    ids = pad_sequence(list(batch), batch_first=True)
    seen = pad_sequence([torch.ones_like(row) for row in batch], batch_first=True)
    return {"input_ids": ids, "attention_mask": seen, "labels": ids.masked_fill(seen == 0, -100)}


class Sums(NamedTuple):
    """Σ nll in float64, and the tokens."""

    nll: float
    tokens: int

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, shift: bool = True) -> Sums:
        """Sum over the tokens of a batch."""
        logits = logits.detach().double()
        if shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        nll = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        return cls(nll.item(), int((labels != -100).sum()))


class Heard:
    """What a model predicted, call by call: in training, and in evaluation."""

    def __init__(self, model: Any, shift: bool = True) -> None:
        self.train: list[Sums] = []
        self.eval: list[Sums] = []
        self._shift = shift
        model.register_forward_hook(self._hook, with_kwargs=True)

    def _hook(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if kwargs.get("labels") is not None:
            (self.train if module.training else self.eval).append(Sums.of(output.logits, kwargs["labels"], self._shift))


def mean(parts: Sequence[Sums]) -> float:
    """Σ nll / tokens."""
    return sum(part.nll for part in parts) / sum(part.tokens for part in parts)


class InOrder(transformers.Trainer):
    """A trainer that takes its rows in their order."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return None


class Mine(InOrder):
    """A trainer that evaluates under a prefix of its own."""

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        return super().evaluate(*args, **{**kwargs, "metric_key_prefix": "mine"})


def arguments(where: Path, **given: Any) -> transformers.TrainingArguments:
    """Arguments for a few steps of 4 micro-batches of 2 rows, without bars and reports."""
    usual = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "gradient_accumulation_steps": 4,
        "max_steps": 4,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "learning_rate": 1e-2,
    }
    kind = given.pop("kind", transformers.TrainingArguments)
    return kind(str(where), **{**usual, **given})


def trainer(where: Path, model: Any = None, kind: Any = InOrder, **given: Any) -> Any:
    """Make a trainer. ``given`` are its own arguments, and otherwise those of ``arguments``."""
    own = {name: given.pop(name) for name in ("callbacks", "compute_metrics", "data_collator") if name in given}
    own["data_collator"] = own.get("data_collator", collate)
    held_out = given.pop("eval_dataset", rows(10, seed=2))
    data = given.pop("train_dataset", rows(64))
    model = build() if model is None else model
    return kind(model, arguments(where, **given), train_dataset=data, eval_dataset=held_out, **own)


def logged(made: Any, key: str) -> list[tuple[int, float]]:
    """The steps and values of a key in a trainer's history."""
    return [(row["step"], row[key]) for row in made.state.log_history if key in row]


def told_of(run: Callable[[], Any]) -> list[str]:
    """What pplmon warns of in a run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(each.message) for each in caught if "pplmon" in str(each.message)]
