"""Small models of the installed transformers, a task that they learn in seconds, and batches of it with all that a mistake needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD, ANSWER, START = 0, 1, 0  # ANSWER stands once in each row, where its prompt ends
TRAINING_STEPS, LEARNING_RATE = 150, 3e-3


@dataclass(frozen=True)
class Size:
    """Of models, batches and rows."""

    vocab: int = 64
    width: int = 32
    rows: int = 8
    shortest: int = 10
    longest: int = 24


@dataclass(frozen=True)
class Example:
    """One batch and what a model says of it. ``shift`` is the model's own: 0 for T5, whose labels stand under their logits."""

    logits: Tensor  # [B, T, V]
    of_labels: Tensor  # [B, T, V]: the logits where the decoder is given the labels themselves
    of_another: Tensor  # [B, T, V]: of another model of the same kind
    model_loss: Tensor  # what the model returns as its loss, with all that it adds
    text: Tensor  # [B, T] ids, with padding
    ids: Tensor  # [B, T]: what the decoder was given
    mask: Tensor  # [B, T]: its attention mask
    labels: Tensor  # [B, T]: text, −100 on padding
    answers: Tensor  # [B, T]: labels, −100 on prompts too
    shift: int


def config(name: str, size: Size) -> Any:
    """Return a causal model, or T5, of a few thousand parameters, with the weights that torch's seed gives."""
    import transformers as T

    common: dict[str, Any] = {
        "vocab_size": size.vocab,
        "hidden_size": size.width,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if name == "Llama":
        return T.LlamaForCausalLM(T.LlamaConfig(**common))
    if name == "Qwen3":
        return T.Qwen3ForCausalLM(T.Qwen3Config(**common, head_dim=8))
    if name == "Gemma-2":  # caps its logits after the head, and ties it
        return T.Gemma2ForCausalLM(T.Gemma2Config(**common, head_dim=8, final_logit_softcapping=5.0))
    if name == "Mixtral":
        experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
        return T.MixtralForCausalLM(T.MixtralConfig(**common, **experts, router_aux_loss_coef=0.02))
    if name == "GPT-NeoX":
        return T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**common))
    if name == "OPT":
        more = {"ffn_dim": 48, "word_embed_proj_dim": size.width, "dropout": 0.0}
        return T.OPTForCausalLM(T.OPTConfig(**common, **more))
    if name == "BART":
        sizes = {
            "d_model": size.width,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "decoder_ffn_dim": 48,
            "encoder_ffn_dim": 48,
        }
        heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "dropout": 0.0}
        marks = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD, "decoder_start_token_id": START}
        return T.BartForConditionalGeneration(T.BartConfig(vocab_size=size.vocab, **sizes, **heads, **marks))
    if name == "GPT-2":
        sizes = {"n_embd": size.width, "n_layer": 2, "n_head": 4, "n_positions": 1024}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        marks = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
        return T.GPT2LMHeadModel(T.GPT2Config(vocab_size=size.vocab, **sizes, **dropout, **marks))
    assert name == "T5", name
    sizes = {"d_model": size.width, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    marks = {"decoder_start_token_id": START, "pad_token_id": PAD}
    return T.T5ForConditionalGeneration(T.T5Config(vocab_size=size.vocab, **sizes, dropout_rate=0.0, **marks))


def texts(size: Size, seed: int, batches: int) -> Iterator[Tensor]:
    """Yield [B, T] ids: eight texts, cut anywhere, a tenth of their ids replaced by one, each with an end to its prompt."""
    made = torch.Generator().manual_seed(seed)
    known = torch.randint(3, size.vocab, (8, size.longest), generator=torch.Generator().manual_seed(1))
    for _ in range(batches):
        which = torch.randint(8, (size.rows,), generator=made)
        lengths = torch.randint(size.shortest, size.longest + 1, (size.rows,), generator=made)
        lengths[0] = size.longest
        rows = known[which].clone()
        rows[torch.rand(rows.shape, generator=made) < 0.1] = 5
        ends = 2 + torch.rand(size.rows, generator=made) * (lengths - 5)
        rows[torch.arange(size.rows), ends.long()] = ANSWER
        yield rows.masked_fill(torch.arange(size.longest) >= lengths.unsqueeze(1), PAD)


def is_encoder_decoder(model: nn.Module) -> bool:
    return bool(model.config.is_encoder_decoder)


def call(model: Any, text: Tensor, ids: Tensor, labels: Tensor | None = None) -> Any:
    """Run a model on a text; an encoder is given the text backwards."""
    if is_encoder_decoder(model):
        return model(input_ids=text.flip(1), decoder_input_ids=ids, labels=labels)
    return model(input_ids=ids, attention_mask=(text != PAD).long(), labels=labels)


def decoder_ids(model: nn.Module, text: Tensor) -> Tensor:
    return F.pad(text[:, :-1], (1, 0), value=START) if is_encoder_decoder(model) else text


def train(model: Any, size: Size, steps: int = TRAINING_STEPS) -> Any:
    """Train on the task, in place; it is learnt in two or three seconds."""
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    model.train()
    for text in texts(size, 1000, steps):
        call(model, text, decoder_ids(model, text), text.masked_fill(text == PAD, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def example(model: Any, another: Any, text: Tensor) -> Example:
    """Return a batch, as these two models see it."""
    both = is_encoder_decoder(model)
    labels, ids = text.masked_fill(text == PAD, -100), decoder_ids(model, text)
    prompt = (text == ANSWER).flip(1).cumsum(1).flip(1) > 0
    output = call(model, text, ids, labels)
    mask = F.pad((text != PAD)[:, :-1], (1, 0), value=True) if both else text != PAD
    return Example(
        output.logits,
        call(model, text, text).logits if both else output.logits,
        call(another, text, ids).logits,
        output.loss,
        text,
        ids,
        mask.long(),
        labels,
        labels.masked_fill(prompt, -100),
        0 if both else 1,
    )


def in_dtype(e: Example, dtype: torch.dtype) -> Example:
    """Round the logits, as a model of that dtype would have given them."""
    return replace(e, logits=e.logits.to(dtype), of_labels=e.of_labels.to(dtype), of_another=e.of_another.to(dtype))


def examples(name: str, size: Size, seed: int, trained: bool, batches: int) -> list[Example]:
    """Return batches of a model that is fresh, or trained; the other model is of another seed, and half as well trained."""
    torch.manual_seed(seed)
    model, another = config(name, size).eval(), config(name, size).eval()
    if trained:
        train(model, size)
        another = copy.deepcopy(another)
        train(another, size, TRAINING_STEPS // 2)
    return [example(model, another, text) for text in texts(size, 2000 + seed, batches)]


Change = Callable[[Example], Example]
