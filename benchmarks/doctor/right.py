"""Right set-ups, in which pplmon's number and the loss are what they should be: the doctor has nothing to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.doctor import examples
from benchmarks.doctor.examples import ANSWER, PAD, Example, Size
from benchmarks.doctor.mistakes import Cross, Given, ahead, right
from pplmon.doctor import Run

RIGHT: dict[str, tuple[str, Callable[[Example, Cross], Given]]] = {}  # of a model's batch, in any state and dtype
ALONE: dict[str, tuple[str, Callable[[], list[Given]]]] = {}  # that bring a model or data of their own


def setup(text: str) -> Callable[[Any], Any]:
    def keep(make: Callable[[Example, Cross], Given]) -> Callable[[Example, Cross], Given]:
        RIGHT[make.__name__] = (text, make)
        return make

    return keep


def alone(text: str) -> Callable[[Any], Any]:
    def keep(make: Callable[[], list[Given]]) -> Callable[[], list[Given]]:
        ALONE[make.__name__] = (text, make)
        return make

    return keep


@setup("labels with padding ignored, ids and mask")
def usual(e: Example, ce: Cross) -> Given:
    return right(e, ce)


@setup("the model's own loss")
def own_loss(e: Example, ce: Cross) -> Given:
    plain = F.cross_entropy(*flat(e.logits.float(), e.labels, e.shift))
    own = (
        e.model_loss if abs(e.model_loss.item() - plain.item()) < 1e-5 else plain
    )  # Mixtral's has a router's term; bf16
    return right(e, ce, loss=own)


@setup("targets shifted beforehand")
def shifted_beforehand(e: Example, ce: Cross) -> Given:
    targets = ahead(e.labels, e.shift)
    return right(e, ce, targets=targets, shift=False, loss=ce(e.logits, targets, 0))


@setup("neither ids nor mask")
def labels_alone(e: Example, ce: Cross) -> Given:
    return right(e, ce, input_ids=None, attention_mask=None)


@setup("no loss")
def no_loss(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=None)


@setup("nothing but logits and targets")
def bare(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=None, input_ids=None, attention_mask=None)


@setup("prompts ignored by both")
def answers_alone(e: Example, ce: Cross) -> Given:
    return right(e, ce, targets=e.answers, loss=ce(e.logits, e.answers, e.shift))


@setup("padding on the left")
def left_padding(e: Example, ce: Cross) -> Given:
    lengths = (e.text != PAD).sum(1).tolist()

    def turned(x: Tensor) -> Tensor:
        return torch.stack([row.roll(row.shape[0] - n, 0) for row, n in zip(x, lengths)])

    if e.shift == 0:
        return right(e, ce)  # T5 has its padding on the right
    labels, ids, mask = turned(e.labels), turned(e.ids), turned(e.mask)
    labels[:, 0] = -100
    logits = turned(e.logits)
    return right(
        e, ce, logits=logits, targets=labels, input_ids=ids, attention_mask=mask, loss=ce(logits, labels, e.shift)
    )


@setup("the end-of-sequence is the padding, and the first of a row is learnt")
def first_padding_learnt(e: Example, ce: Cross) -> Given:
    first = (e.labels == -100) & (ahead(e.labels, -1) != -100)
    targets = torch.where(first, PAD, e.labels)
    return right(e, ce, targets=targets, loss=ce(e.logits, targets, e.shift))


@setup("padding ignored by its id")
def ignored_by_id(e: Example, ce: Cross) -> Given:
    loss = ce(e.logits, e.text, e.shift, ignore_index=PAD)
    return replace(right(e, ce, targets=e.text, loss=loss), ignore_index=PAD)


@setup("padding marked by -1, and ignore_index=-1")
def ignored_by_one(e: Example, ce: Cross) -> Given:
    return replace(right(e, ce, targets=e.labels.masked_fill(e.labels == -100, -1)), ignore_index=-1)


@setup("flat logits [N, V]")
def flat_logits(e: Example, ce: Cross) -> Given:
    targets = ahead(e.labels, e.shift).flatten()
    return right(
        e, ce, logits=e.logits.flatten(0, 1), targets=targets, shift=False, input_ids=None, attention_mask=None,
        loss=ce(e.logits, e.labels, e.shift),
    )  # fmt: skip


@setup("a batch filled up with rows of padding")
def empty_rows(e: Example, ce: Cross) -> Given:
    ids, mask, labels = e.ids.clone(), e.mask.clone(), e.labels.clone()
    ids[-2:], mask[-2:], labels[-2:] = PAD, 0, -100
    return right(e, ce, targets=labels, input_ids=ids, attention_mask=mask, loss=ce(e.logits, labels, e.shift))


@setup("the same, without a mask")
def empty_row_without_mask(e: Example, ce: Cross) -> Given:
    ids, labels = e.ids.clone(), e.labels.clone()
    ids[-1], labels[-1] = PAD, -100
    return right(e, ce, targets=labels, input_ids=ids, attention_mask=None, loss=ce(e.logits, labels, e.shift))


@setup("rows of one length, and a mean of sequences")
def equal_rows(e: Example, ce: Cross) -> Given:
    labels = e.labels.clone()
    labels[:, e.shift + 5 :] = -100
    losses, mask = ce.each(e.logits, labels, e.shift)
    return right(e, ce, targets=labels, loss=((losses * mask).sum(1) / mask.sum(1)).mean())


@setup("one row")
def one_row(e: Example, ce: Cross) -> Given:
    cut = {name: getattr(e, name)[:1] for name in ("logits", "text", "ids", "mask", "labels", "answers")}
    return right(replace(e, **cut), ce)


@setup("the sum over num_items_in_batch")
def items(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=ce(e.logits, e.labels, e.shift, reduction="sum") / 500, run=Run(items=500.0))


@setup("divided by the accumulated batches in the step, as it should be")
def divided_once(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=ce(e.logits, e.labels, e.shift) / 4, run=Run(accumulation=4, divided=True))


@setup("the loss in bf16")
def loss_in_bf16(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=Cross(False)(e.logits.bfloat16(), e.labels, e.shift))


@setup("the loss in bf16, cast to fp32")
def loss_was_in_bf16(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=Cross(False)(e.logits.bfloat16(), e.labels, e.shift).float())


@setup("the loss in fp16")
def loss_in_fp16(e: Example, ce: Cross) -> Given:
    return right(e, ce, loss=Cross(False)(e.logits.half(), e.labels, e.shift))


@setup("the loss of logits that were not rounded to bf16, as in a fused head")
def fused_head(e: Example, ce: Cross) -> Given:
    return right(e, ce, logits=e.logits.bfloat16(), loss=Cross()(e.logits, e.labels, e.shift))


@setup("an encoder's ids of the targets' shape")
def encoder_ids(e: Example, ce: Cross) -> Given:
    return right(e, ce, input_ids=e.text.flip(1), attention_mask=None)


@setup("a tenth of the input ids replaced by noise")
def noisy_inputs(e: Example, ce: Cross) -> Given:
    noise = torch.rand(e.ids.shape, generator=torch.Generator().manual_seed(1)) < 0.1
    return right(e, ce, input_ids=torch.where(noise & (e.mask == 1), 7, e.ids))


@setup("an attention mask with holes, as of dropped tokens")
def mask_with_holes(e: Example, ce: Cross) -> Given:
    holes = torch.rand(e.ids.shape, generator=torch.Generator().manual_seed(2)) < 0.1
    holes[:, 0] = holes[:, -1] = False
    return right(e, ce, attention_mask=torch.where(holes, 0, e.mask))


def flat(logits: Tensor, labels: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    length = logits.shape[1]
    return logits[:, : length - shift].flatten(0, 1), labels[:, shift:].flatten()


# Models and data of their own.

SIZE = Size()


def batches_of(model: Any, size: Size = SIZE, count: int = 3, train: bool = False) -> Iterator[Given]:
    """Yield right set-ups whose logits and loss are one call of a causal model."""
    model.train(train)
    for text in examples.texts(size, 4000, count):
        labels = text.masked_fill(text == PAD, -100)
        output = examples.call(model, text, text, labels)
        yield Given(output.logits.detach(), labels, output.loss.detach(), True, text, (text != PAD).long())


def seeded(name: str, **changed: Any) -> Any:
    """Return a fresh model, with some settings of it changed before its weights are made."""
    torch.manual_seed(11)
    model = examples.config(name, SIZE)
    return type(model)(type(model.config)(**{**model.config.to_dict(), **changed})) if changed else model


@alone("dropout")
def dropout() -> list[Given]:
    return list(batches_of(seeded("GPT-2", resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3), train=True))


@alone("gradient checkpointing")
def checkpointing() -> list[Given]:
    model = seeded("Llama")
    model.gradient_checkpointing_enable()
    return list(batches_of(model, train=True))


@alone("DistributedDataParallel")
def wrapped() -> list[Given]:
    """Return a rank's own batches: the loss that it has in hand is that of its own tokens."""
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = seeded("GPT-2")
        return list(batches_of_calls(nn.parallel.DistributedDataParallel(model)))
    finally:
        distributed.destroy_process_group()


@alone("torch.compile")
def compiled() -> list[Given]:
    """Return what a compiled forward gives; ``aot_eager`` needs no compiler of C++."""
    return list(batches_of_calls(torch.compile(seeded("Llama").eval(), backend="aot_eager")))


def batches_of_calls(run: Callable[..., Any]) -> Iterator[Given]:
    """Yield right set-ups whose logits and loss are one call of something that wraps a causal model."""
    for text in examples.texts(SIZE, 4000, 3):
        labels = text.masked_fill(text == PAD, -100)
        output = run(input_ids=text, attention_mask=(text != PAD).long(), labels=labels)
        yield Given(output.logits.detach(), labels, output.loss.detach(), True, text, (text != PAD).long())


@alone("LoRA on the attention of a trained model")
def lora() -> list[Given]:
    model = examples.train(seeded("Llama"), SIZE, 60)

    class Lora(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.a = base, nn.Linear(base.in_features, 4, bias=False)
            self.b = nn.Linear(4, base.out_features, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.b(self.a(x))

    for layer in model.model.layers:
        layer.self_attn.q_proj = Lora(layer.self_attn.q_proj)
    return list(batches_of(model))


@alone("a soft prompt: six columns before the text")
def soft_prompt() -> list[Given]:
    model, given = seeded("GPT-2").eval(), []
    prefix = torch.randn(1, 6, SIZE.width)
    for text in examples.texts(SIZE, 4000, 3):
        before = torch.full((len(text), 6), -100)
        labels = torch.cat([before, text.masked_fill(text == PAD, -100)], 1)
        mask = torch.cat([torch.ones_like(before), (text != PAD).long()], 1)
        embeds = torch.cat([prefix.expand(len(text), -1, -1), model.transformer.wte(text)], 1)
        with torch.no_grad():
            output = model(inputs_embeds=embeds, attention_mask=mask, labels=labels)
        given.append(Given(output.logits, labels, output.loss, True, None, mask))
    return given


@alone("packed documents, whose borders are not scored")
def packed() -> list[Given]:
    model, given = seeded("Llama").eval(), []
    made = torch.Generator().manual_seed(6)
    for _ in range(3):
        ids = torch.randint(3, SIZE.vocab, (2, 60), generator=made)
        positions = torch.cat([torch.arange(n) for n in (25, 5, 30)]).expand(2, 60)
        labels = ids.masked_fill(positions == 0, -100)
        with torch.no_grad():
            output = model(input_ids=ids, position_ids=positions, labels=labels)
        given.append(Given(output.logits, labels, output.loss, True, ids, None))
    return given


def plain(
    head: Callable[[nn.Embedding], nn.Module], vocab: int, ids: Callable[[torch.Generator], Tensor]
) -> list[Given]:
    """Return batches of a fresh model that is an embedding and a head, on ids [B, T + 1]."""
    torch.manual_seed(12)
    embedding = nn.Embedding(vocab, 32)
    model, given = head(embedding), []
    made = torch.Generator().manual_seed(7)
    for _ in range(3):
        rows = ids(made)
        with torch.no_grad():
            logits = model(embedding(rows[:, :-1]))
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        given.append(Given(logits, rows[:, 1:].contiguous(), loss, False, rows[:, :-1].contiguous(), None))
    return given


class Tied(nn.Module):
    """A head that is the embedding."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.embedding.weight.T


def zeros(embedding: nn.Embedding) -> nn.Module:
    head = nn.Linear(32, embedding.num_embeddings, bias=False)
    nn.init.zeros_(head.weight)
    return head


def large(embedding: nn.Embedding) -> nn.Module:
    head = nn.Linear(32, embedding.num_embeddings, bias=False)
    nn.init.normal_(head.weight, std=5.0)
    return head


def linear(embedding: nn.Embedding) -> nn.Module:
    return nn.Linear(32, embedding.num_embeddings)


def uniform_ids(vocab: int, rows: int = 4, length: int = 50) -> Callable[[torch.Generator], Tensor]:
    return lambda made: torch.randint(vocab, (rows, length), generator=made)


@alone("a head tied to embeddings of standard deviation 1, fresh")
def tied() -> list[Given]:
    return plain(Tied, 64, uniform_ids(64))


@alone("the same, without ids and loss")
def tied_bare() -> list[Given]:
    return [replace(g, input_ids=None, loss=None) for g in tied()]


@alone("a head that starts at zero: every token costs ln V")
def zero_head() -> list[Given]:
    return plain(zeros, 64, uniform_ids(64))


@alone("a head that starts far too large")
def large_head() -> list[Given]:
    return plain(large, 64, uniform_ids(64))


@alone("a fresh model on 32,768 tokens")
def long_batch() -> list[Given]:
    return plain(linear, 64, uniform_ids(64, 8, 4097))


@alone("two ids")
def two_ids() -> list[Given]:
    return plain(linear, 2, lambda made: (torch.rand(4, 50, generator=made) < 0.8).long())


@alone("four ids, as of DNA, that rows end in now and then")
def four_ids() -> list[Given]:
    return plain(linear, 4, uniform_ids(4, 32))


@alone("two ids in turn in each row, which every other shift fits")
def alternating() -> list[Given]:
    return plain(linear, 64, lambda made: torch.randint(64, (8, 2), generator=made).repeat(1, 25))


@alone("rows that end in a run of one id that is text")
def runs_of_text() -> list[Given]:
    def ids(made: torch.Generator) -> Tensor:
        rows = torch.randint(64, (6, 50), generator=made)
        rows[:3, -4:] = 13
        rows[:, ::6] = 13
        return rows

    return plain(linear, 64, ids)


@alone("an overfitted model, whose loss is 1e-5")
def overfitted() -> list[Given]:
    given = []
    for batch in plain(linear, 64, uniform_ids(64)):
        torch.manual_seed(5)
        logits = torch.randn(batch.logits.shape)
        logits.scatter_(2, batch.targets.unsqueeze(2), 18.0)
        given.append(replace(batch, logits=logits, loss=F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())))
    return given


@alone("a masked language model, with the ids that it was given")
def masked_model() -> list[Given]:
    import transformers as T

    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model, given = T.BertForMaskedLM(T.BertConfig(vocab_size=64, **sizes)).eval(), []
    made = torch.Generator().manual_seed(8)
    for _ in range(3):
        ids = torch.randint(3, 64, (8, 40), generator=made)
        chosen = torch.rand(ids.shape, generator=made) < 0.15
        labels = ids.masked_fill(~chosen, -100)
        seen = torch.where(chosen & (torch.rand(ids.shape, generator=made) < 0.8), 2, ids)
        with torch.no_grad():
            output = model(input_ids=seen, labels=labels)
        given.append(Given(output.logits, labels, output.loss, False, seen, torch.ones_like(ids)))
    return given


assert ANSWER != PAD
