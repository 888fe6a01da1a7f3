"""Which logits, targets, shift and calls are counted: chosen by the loss that they give, on real modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pplmon
from pplmon.trainers.session import Session
from pplmon.trainers.settings import Settings
from tests.sources import SMALL, VOCAB, Module, batches, llama, mean, nll, run, said

transformers = pytest.importorskip("transformers")
both = pytest.mark.parametrize("stage", ["train", "val"])


def calls(module: Any, batch: Any, name: str = "model") -> Any:
    """Call a model with labels, and note what is true."""
    output = getattr(module, name)(**batch)
    module.truth.append(nll(output.logits, batch["labels"], shift=True))
    return output


RETURNS = {
    "loss": (lambda output, batch: output.loss, {}),
    "the output": (lambda output, batch: output, {}),
    "the output, targets named": (lambda output, batch: output, {"targets": "labels"}),
    "a dict of it": (lambda output, batch: dict(output), {"targets": "labels"}),
    "loss, logits, labels": (lambda o, b: {"loss": o.loss, "logits": o.logits, "labels": b["labels"]}, {}),
    "loss, logits, targets": (lambda o, b: {"loss": o.loss, "logits": o.logits, "targets": b["labels"]}, {}),
    "cut by the user": (lambda o, b: {"loss": o.loss, "logits": o.logits[:, :-1], "labels": b["labels"][:, 1:]}, {}),
}


@both
@pytest.mark.parametrize("returned", RETURNS)
def test_what_a_step_returns_of_a_model_keeps_the_models_shift(returned: str, stage: str) -> None:
    """Whoever hands the logits on, in whatever form; and where the user cut them, nothing is shifted again."""
    give, settings = RETURNS[returned]
    module = Module(lambda self, batch: give(calls(self, batch), batch), model=llama())
    shown, true, told = run(module, stage, **settings)
    assert shown == pytest.approx(true, abs=1e-5) and not told


def test_what_a_val_step_returns_without_a_loss_keeps_the_models_shift() -> None:
    """The model's own loss tells."""

    def body(self: Any, batch: Any) -> Any:
        return {"logits": calls(self, batch).logits, "labels": batch["labels"]}

    shown, true, told = run(Module(body, model=llama()), "val")
    assert shown == pytest.approx(true, abs=1e-5) and not told


@both
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_shift_that_nobody_stated_is_that_of_the_loss(stage: str, scale: float) -> None:
    """Shown by observe without ``shift``: the loss decides if it equals, and the default holds where no shift does."""

    def body(self: Any, batch: Any) -> Any:
        logits = self.model(batch["input_ids"]).logits
        pplmon.observe(self, logits, batch["labels"])
        self.truth.append(nll(logits, batch["labels"], shift=scale == 1.0))
        return mean(logits[:, :-1], batch["labels"][:, 1:]) * scale + (scale != 1.0) * 0.123

    shown, true, told = run(Module(body, model=llama()), stage)
    assert shown == pytest.approx(true, abs=1e-5)
    assert (
        said(told, "shift=True", "equals the loss") if scale == 1.0 else all("with shift" not in line for line in told)
    )


@both
def test_the_loss_may_be_given_to_observe(stage: str) -> None:
    """Where the step returns another, as of a distillation."""

    def body(self: Any, batch: Any) -> Any:
        logits = self.model(batch["input_ids"]).logits
        own = mean(logits[:, :-1], batch["labels"][:, 1:])
        pplmon.observe(self, logits, batch["labels"], loss=own)
        self.truth.append(nll(logits, batch["labels"], shift=True))
        return own * 0.1 + logits.square().mean()

    shown, true, told = run(Module(body, model=llama()), stage)
    assert shown == pytest.approx(true, abs=1e-5) and any("with shift=True" in line for line in told)


@both
def test_a_shift_that_was_stated_is_never_changed(stage: str) -> None:
    """It is told of, with the line to write."""

    def body(self: Any, batch: Any) -> Any:
        output = self.model(**batch)
        self.truth.append(nll(output.logits, batch["labels"]))
        return output.loss

    shown, true, told = run(Module(body, model=llama()), stage, shift=False)
    assert shown == pytest.approx(true, abs=1e-5)
    assert any("shift=True" in line for line in told)


HEADS = {
    "XLM": lambda: transformers.XLMWithLMHeadModel(
        transformers.XLMConfig(
            vocab_size=VOCAB,
            emb_dim=16,
            n_layers=1,
            n_heads=2,
            causal=True,
            dropout=0,
            attention_dropout=0,
            pad_token_id=0,
        )
    ),
    "BertGeneration": lambda: transformers.BertGenerationDecoder(
        transformers.BertGenerationConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            is_decoder=True,
            hidden_dropout_prob=0,
            attention_probs_dropout_prob=0,
        )
    ),
    "Llama": llama,
}


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_a_heads_shift_is_told_by_its_loss_not_by_its_name(head: str, renamed: bool) -> None:
    """Also of a class that nobody has heard of, for which the default would be no shift."""
    torch.manual_seed(0)
    model = HEADS[head]()
    if renamed:
        model.__class__ = type("Own", (type(model),), {})
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    losses: list[float] = []

    def body(self: Any, batch: Any) -> Any:
        output = self.model(**batch)
        losses.append(output.loss.item())
        self.truth.append(output.loss.detach().reshape(1))
        return None

    one = [next(iter(batches(1)))] * 3
    shown, true, told = run(Module(body, model=model), "val", torch.utils.data.DataLoader(one, batch_size=None))  # type: ignore[arg-type]
    assert shown == pytest.approx(true, rel=1e-5)
    assert len(told) <= int(renamed and head != "XLM")


@both
@pytest.mark.parametrize("beside", [True, False])
def test_labels_that_are_shifted_already_are_read(stage: str, beside: bool) -> None:
    """``shift_labels=``, alone or beside labels."""

    def body(self: Any, batch: Any) -> Any:
        labels = batch["labels"]
        shifted = torch.full_like(labels, -100)
        shifted[:, :-1] = labels[:, 1:]
        shifted[:, 6] = -100
        given = {"labels": labels} if beside else {}
        logits = self.model(batch["input_ids"], shift_labels=shifted, **given).logits
        self.truth.append(nll(logits, shifted))
        return mean(logits, shifted)

    shown, true, told = run(Module(body, model=llama()), stage)
    assert shown == pytest.approx(true, abs=1e-5) and not told


@both
@pytest.mark.parametrize("first", ["teacher", "student"])
@pytest.mark.parametrize("labels", [True, False])
def test_a_teacher_is_not_what_is_watched(stage: str, first: str, labels: bool) -> None:
    """Whichever was declared first, and whether it was given labels."""

    def body(self: Any, batch: Any) -> Any:
        with torch.no_grad():
            self.teacher(**batch) if labels else self.teacher(batch["input_ids"])
        return calls(self, batch, "student").loss

    models = {"teacher": llama(5), "student": llama(1)}
    order = sorted(models, key=lambda name: name != first)
    shown, true, told = run(Module(body, **{name: models[name] for name in order}), stage)
    assert shown == pytest.approx(true, abs=1e-5)
    assert all("counts student" in line for line in told)


def test_a_frozen_encoder_that_was_declared_first_is_not_what_is_watched() -> None:
    """A retriever gives no logits with labels."""
    encoder = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    ).requires_grad_(False)

    def body(self: Any, batch: Any) -> Any:
        self.encoder(batch["input_ids"])
        return calls(self, batch, "model").loss

    shown, true, told = run(Module(body, encoder=encoder, model=llama()), "train")
    assert shown == pytest.approx(true, abs=1e-5) and not told


@both
def test_two_calls_of_one_model_are_told(stage: str) -> None:
    """Chosen and rejected both count, and the line says how to choose."""

    def body(self: Any, batch: Any) -> Any:
        other = {name: value.flip(0).roll(1, 1) for name, value in batch.items()}
        return calls(self, batch).loss - 0.3 * calls(self, other).loss

    shown, true, told = run(Module(body, model=llama()), stage)
    assert shown == pytest.approx(true, abs=1e-5)
    assert "model (call 2): all of them count" in told[0] and "pplmon.observe" in told[0]


@both
def test_of_two_calls_the_one_that_the_loss_is_of_counts(stage: str) -> None:
    """The second is a look at other rows."""

    def body(self: Any, batch: Any) -> Any:
        output = calls(self, batch)
        self.model(**{name: value.roll(3, 1) for name, value in batch.items()})
        return output.loss

    shown, true, told = run(Module(body, model=llama()), stage)
    assert shown == pytest.approx(true, abs=1e-5) and said(told, "its call 1", "equals the loss")


class Head(torch.nn.Module):
    """Ids to logits through a head that can be named."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = torch.nn.Embedding(VOCAB, 16), torch.nn.Linear(16, VOCAB)

    def forward(self, ids: torch.Tensor, chunk: int = 1000) -> torch.Tensor:
        return torch.cat([self.head(part) for part in self.body(ids).split(chunk, 1)], 1)


@both
def test_a_head_that_predicts_several_tokens_ahead_is_counted_once(stage: str) -> None:
    """Two calls of a named head have the same targets."""

    def body(self: Any, batch: Any) -> Any:
        ids, labels = batch["input_ids"], batch["labels"]
        logits = self.model(ids)
        ahead = self.model(ids.roll(1, 1))
        self.truth.append(nll(logits, labels))
        return mean(logits, labels) + 0.3 * mean(ahead[:, :-1], labels[:, 1:])

    shown, true, told = run(Module(body, model=Head()), stage, logits="model.head", targets="labels")
    assert shown == pytest.approx(true, abs=1e-5)
    assert "model.head (call 2): they do not count" in told[0]


@both
@pytest.mark.parametrize("chunk", [11, 4, 5, 3])
def test_a_head_that_is_applied_to_chunks_is_counted_whole(stage: str, chunk: int) -> None:
    """Also where the last chunk has one column, in training and in validation."""

    def body(self: Any, batch: Any) -> Any:
        logits = self.model(batch["input_ids"], chunk)
        self.truth.append(nll(logits, batch["labels"]))
        return mean(logits, batch["labels"])

    data = batches(length=16 if chunk != 11 else 22)
    shown, true, told = run(Module(body, model=Head()), stage, data, logits="model.head", targets="labels")
    assert shown == pytest.approx(true, abs=1e-5) and not told


@both
@pytest.mark.parametrize("times", [1, 2])
def test_logits_to_keep_are_of_the_last_columns(stage: str, times: int) -> None:
    """Each call with the ids that it was given."""

    def body(self: Any, batch: Any) -> Any:
        total = 0
        for ids in (batch["input_ids"], batch["input_ids"].roll(1, 0))[:times]:
            logits = self.model(ids, logits_to_keep=6).logits[:, :-1]
            self.truth.append(nll(logits, ids[:, -5:]))
            total = total + mean(logits, ids[:, -5:])
        return total / times

    shown, true, told = run(Module(body, model=llama()), stage, targets="input_ids")
    assert shown == pytest.approx(true, abs=1e-5) and len(told) == times - 1


@both
def test_logits_without_the_last_id_fit_targets_that_are_shifted(stage: str) -> None:
    """As a step of nanoGPT has them, with ``shift=True``."""

    def body(self: Any, batch: Any) -> Any:
        ids = batch["input_ids"]
        logits = self.model(ids[:, :-1])
        self.truth.append(nll(logits, ids[:, 1:]))
        return mean(logits, ids[:, 1:])

    settings = {"logits": "model.head", "targets": "input_ids"}
    shown, true, told = run(Module(body, model=Head()), stage, shift=True, **settings)
    assert shown == pytest.approx(true, abs=1e-5) and not told
    with pytest.raises(
        ValueError, match=r"\(3, 11, 37\), which do not fit targets \(3, 12\): .*\[:, 1:\], or shift=True"
    ):
        run(Module(body, model=Head()), "train", **settings)


def test_a_prefix_is_told_with_the_columns_to_cut() -> None:
    """Both shapes, and the slice for either shift."""

    def body(self: Any, batch: Any) -> Any:
        ids = torch.cat([batch["input_ids"][:, :4], batch["input_ids"]], 1)
        logits = self.model(ids)
        return {"loss": mean(logits[:, 4:], batch["labels"]), "logits": logits, "labels": batch["labels"]}

    with pytest.raises(
        ValueError, match=r"\(3, 16, 37\).*\(3, 12\): if 4 columns .*logits\[:, 4:\], or logits\[:, 3:-1\]"
    ):
        run(Module(body, model=Head()), "train")


@both
def test_a_loss_before_the_logits_of_a_tuple_is_passed_over(stage: str) -> None:
    """An auxiliary loss, as of a router."""

    class Tuple(Head):
        def forward(self, ids: torch.Tensor, chunk: int = 0) -> Any:
            logits = super().forward(ids)
            return logits.square().mean(), logits

    def body(self: Any, batch: Any) -> Any:
        _, logits = self.model(batch["input_ids"])
        self.truth.append(nll(logits, batch["labels"]))
        return mean(logits, batch["labels"])

    shown, true, told = run(Module(body, model=Tuple()), stage, logits="model", targets="labels")
    assert shown == pytest.approx(true, abs=1e-5) and not told


@both
def test_the_auxiliary_loss_of_a_router_is_taken_off(stage: str) -> None:
    """Under another name, so that the loss has to tell the shift."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        **SMALL, num_local_experts=2, output_router_logits=True, router_aux_loss_coef=0.5
    )
    model = transformers.MixtralForCausalLM(config)
    model.__class__ = type("Own", (type(model),), {})
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    shown, true, told = run(Module(lambda self, batch: calls(self, batch).loss, model=model), stage)
    assert shown == pytest.approx(true, abs=1e-5) and any("with shift=True" in line for line in told)


def test_a_head_that_starts_at_zero_is_decided_once_the_loss_can_tell() -> None:
    """Every shift costs ln V on the first batches: the default holds, and is left when the shifts part."""

    def body(self: Any, batch: Any) -> Any:
        logits = self.model(batch["input_ids"])
        pplmon.observe(self, logits, batch["labels"])
        return mean(logits[:, :-1], batch["labels"][:, 1:])

    module = Module(body, model=Head())
    torch.nn.init.zeros_(module.model.head.weight)
    torch.nn.init.zeros_(module.model.head.bias)
    module.truth.append(torch.zeros(1))
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 1.0)  # type: ignore[method-assign]
    *_, told = run(module, "train", batches(40))
    assert sum("with shift=True" in line for line in told) == 1


def test_a_number_that_stops_agreeing_is_told() -> None:
    """In the middle of a run: both values, and what the loss is."""
    count = [0]

    def body(self: Any, batch: Any) -> Any:
        count[0] += 1
        logits, targets = self.model(batch["input_ids"]), batch["labels"].roll(-1, 1)
        pplmon.observe(self, logits, targets, shift=False)
        self.truth.append(nll(logits, targets))
        loss = mean(logits, targets)
        return loss * 2 if count[0] > 6 else loss

    shown, true, told = run(Module(body, model=Head()), "train", batches(20))
    assert shown == pytest.approx(true, abs=1e-5)
    assert "training_step returned a loss" in told[0]
    assert any("scaled_loss" in line for line in told[1:])


def test_validation_is_compared_too() -> None:
    """A pass whose step returns a loss that is not of its logits."""

    def body(self: Any, batch: Any) -> Any:
        logits = self.model(batch["input_ids"])
        self.truth.append(nll(logits, batch["labels"]))
        return {"loss": mean(logits, batch["labels"]) + 3.0, "logits": logits, "labels": batch["labels"]}

    shown, true, told = run(Module(body, model=Head()), "val")
    assert shown == pytest.approx(true, abs=1e-5) and any("over a pass of val" in line for line in told)


@pytest.mark.parametrize(
    ("wire", "words"),
    [
        ("lightning", ("in the module's step", "PerplexityMonitor(logits=", "return {")),
        ("hugging_face", ("in compute_loss", "pplmon.watch(trainer, logits=", "return loss, {")),
        ("loop", ("in the loop", "Settings(logits=", "session.end_batch({")),
    ],
)
def test_an_error_has_the_lines_of_the_trainer_that_is_used(wire: str, words: tuple[str, ...]) -> None:
    """Whoever runs the training, the line can be pasted."""
    session = Session(Settings(wire=wire), Head())
    session.begin_batch({})
    with pytest.raises(ValueError, match="found no logits and targets in the first train batch") as error:
        session.end_batch(torch.tensor(1.0))
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("wire", ["lightning", "hugging_face", "loop"])
@pytest.mark.parametrize(
    ("batch", "targets", "origin"),
    [
        ("tensor", lambda batch: batch, "batch"),
        ("dict", "text", "batch['text']"),
        ("pair", 1, "batch[1]"),
    ],
)
def test_shapes_that_do_not_fit_are_told_with_where_targets_are_from(
    batch: str, targets: Any, origin: str, wire: str
) -> None:
    """Both shapes, the part of the batch, and a line for the trainer that is used."""
    ids = torch.zeros(2, 9, dtype=torch.int64)
    given = {"tensor": ids, "dict": {"text": ids}, "pair": (ids[:, :-1], ids)}[batch]
    net = Head()
    session = Session(Settings(logits="head", targets=targets, wire=wire), net)
    session.begin_batch(given)
    net(ids[:, :-1])
    with pytest.raises(ValueError, match="do not fit targets") as error:
        session.end_batch(torch.tensor(1.0))
    text = str(error.value)
    call = {"lightning": "PerplexityMonitor(", "hugging_face": "pplmon.watch(trainer, ", "loop": "Settings("}[wire]
    assert "head gave logits (2, 8, 37), which do not fit targets (2, 9): " in text
    assert (
        f"{call}targets=lambda batch: {origin}[:, 1:], or shift=True)" in text and f"The targets are {origin}" in text
    )
