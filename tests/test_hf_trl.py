"""``pplmon.watch`` under TRL's trainers: fused heads, packing, masked prompts and preferences, against float64 of whole logits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import pplmon
from pplmon.sinks import read_journal

transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from tests.hf_kit import VOCAB, Sums, build, logged, mean, rows  # noqa: E402

CHAT = "{% for m in messages %}{{ m['role'] }} {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }} {% endgeneration %}{% else %}{{ m['content'] }} {% endif %}{% endfor %}"


def tokenizer() -> Any:
    """Words w0, w1, … and the names of roles."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[BOS]", "[EOS]", "user", "assistant"]
    words += [f"w{number}" for number in range(VOCAB - len(words))]
    model = tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="w0")
    plain = tokenizers.Tokenizer(model)
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", chat_template=CHAT
    )


def words(row: torch.Tensor) -> str:
    """A row of ids as text."""
    return " ".join(f"w{number % (VOCAB - 5)}" for number in row.tolist())


TEXTS = [words(row).split() for row in rows(64)]
BEGINS, ENDS = [" ".join(text[:3]) for text in TEXTS], [" ".join(text[3:]) for text in TEXTS]
DATA: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": " ".join(text)} for text in TEXTS],
    "answers": [{"prompt": begin, "completion": f" {end}"} for begin, end in zip(BEGINS, ENDS)],
    "chats": [
        {"messages": [{"role": "user", "content": begin}, {"role": "assistant", "content": end}]}
        for begin, end in zip(BEGINS, ENDS)
    ],
    "pairs": [
        {"prompt": begin, "chosen": f" {end}", "rejected": f" {end[len(end) // 2 :]}"}
        for begin, end in zip(BEGINS, ENDS)
    ],
    "prompts": [{"prompt": begin} for begin in BEGINS],
}
TINY = {
    "per_device_train_batch_size": 2, "per_device_eval_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 4,
    "logging_steps": 2, "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "bf16": False,
    "learning_rate": 0.0,
}  # fmt: skip


class Given:
    """What a model was called with, where it was given labels."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.train: list[dict[str, Any]] = []
        self.eval: list[dict[str, Any]] = []
        model.register_forward_pre_hook(self._hook, with_kwargs=True)

    def _hook(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("labels") is not None:
            kept = {k: v for k, v in kwargs.items() if k in ("input_ids", "attention_mask", "position_ids", "labels")}
            (self.train if torch.is_grad_enabled() else self.eval).append(kept)

    def sums(self, calls: list[dict[str, Any]], rows: slice = slice(None)) -> list[Sums]:
        """Σ nll and tokens of calls, in float64 of whole logits; of these rows."""
        found = []
        for call in calls:
            inputs = {k: v for k, v in call.items() if k != "labels" and v is not None}
            with torch.no_grad():
                logits = self.model(**inputs).logits
            found.append(Sums.of(logits[rows], call["labels"][rows]))
        return found


def sft(where: Path, kind: str = "text", model: Any = None, **given: Any) -> tuple[Any, Given]:
    """Train by ``SFTTrainer``, evaluate, and return the trainer and what its model was given."""
    watched = given.pop("watched", {})
    made = trl.SFTTrainer(
        build() if model is None else model,
        args=trl.SFTConfig(str(where), **{**TINY, "max_length": 32, **given}),
        train_dataset=datasets.Dataset.from_list(DATA[kind]),
        eval_dataset=datasets.Dataset.from_list(DATA[kind][:7]),
        processing_class=tokenizer(),
    )
    heard = Given(made.model)
    pplmon.watch(made, **watched)
    made.train()
    made.evaluate()
    return made, heard


MODES: list[tuple[str, str, dict[str, Any]]] = [
    ("plain", "text", {}),
    ("packing", "text", {"packing": True}),
    ("wrapped", "text", {"packing": True, "packing_strategy": "wrapped"}),
    ("padding_free", "text", {"padding_free": True, "max_length": None}),
    ("completion only", "answers", {}),
    ("completion only, packed", "answers", {"packing": True}),
    ("assistant only", "chats", {"assistant_only_loss": True}),
    ("dft", "text", {"loss_type": "dft"}),
]


@pytest.mark.filterwarnings("ignore:(?!pplmon)")
@pytest.mark.parametrize(("kind", "given"), [mode[1:] for mode in MODES], ids=[mode[0] for mode in MODES])
def test_sft_has_the_tokens_of_its_labels(kind: str, given: dict[str, Any], tmp_path: Path) -> None:
    """No logits are made: the head's log-probabilities, hits and entropies are read."""
    made, heard = sft(tmp_path, kind, watched={"tally": pplmon.TokenTally(extras=[pplmon.Entropy()])}, **given)
    parts = [heard.sums(heard.train[i : i + 4]) for i in range(0, 8, 4)]
    assert logged(made, "cross_entropy") == [(s, pytest.approx(mean(p), abs=1e-5)) for s, p in zip((2, 4), parts)]
    seen = [sum(part.tokens for part in parts[0]), sum(part.tokens for group in parts for part in group)]
    assert [count for _, count in logged(made, "tokens_seen")] == seen
    assert logged(made, "eval_cross_entropy") == [(4, pytest.approx(mean(heard.sums(heard.eval)), abs=1e-5))]
    # Ours are over all tokens of the window; TRL's are means over its batches, which come close.
    for ours, theirs in (("token_accuracy", "mean_token_accuracy"), ("mean_entropy", "entropy")):
        assert [value for _, value in logged(made, ours)] == pytest.approx(
            [value for _, value in logged(made, theirs)], abs=0.03
        )


@pytest.mark.filterwarnings("ignore:(?!pplmon)")
def test_packed_documents_are_sequences(tmp_path: Path) -> None:
    """By ``seq_idx``: no target is scored from another document, and the worst sequences are documents."""
    _, heard = sft(tmp_path, padding_free=True, max_length=None)
    (window, *_) = [row for row in read_journal(tmp_path) if row["kind"] == "report" and row["stage"] == "train"]
    documents = sum(int(call["position_ids"].eq(0).sum()) for call in heard.train[:4])
    assert window["numbers"]["sequences"] == documents == 8
    assert all("document_id" in row for row in window["worst_sequences"])
    worst = window["worst"][0]
    call = heard.train[:4][2 * (worst["step"] % 2) + worst["micro_batch"]]
    assert call["labels"][0, worst["position"]] == worst["target"]


@pytest.mark.filterwarnings("ignore:(?!pplmon)")
def test_smoothing_is_not_taken_for_the_cross_entropy(tmp_path: Path) -> None:
    """The fused call beside the smoothed one has the numbers."""
    model = build()
    called: list[dict[str, Any]] = []
    model.register_forward_pre_hook(lambda m, a, kwargs: called.append(dict(kwargs)), with_kwargs=True)
    made, heard = sft(tmp_path, model=model, label_smoothing_factor=0.1, max_steps=2)
    fused = [call for call in called if call.get("labels") is not None][:4]
    kept = [{k: v for k, v in call.items() if k in ("input_ids", "attention_mask", "labels")} for call in fused]
    assert logged(made, "cross_entropy") == [(2, pytest.approx(mean(heard.sums(kept)), abs=1e-5))]


@pytest.mark.filterwarnings("ignore:(?!pplmon)")
@pytest.mark.parametrize("how", ["lora", "prompt tuning"])
def test_peft_models_are_heard(how: str, tmp_path: Path) -> None:
    """The model within the adapter is hooked; virtual tokens before the text are no targets."""
    peft = pytest.importorskip("peft")
    config = (
        peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
        if how == "lora"
        else peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(build(), config)
    outer: list[dict[str, Any]] = []
    model.register_forward_pre_hook(lambda m, a, kwargs: outer.append(dict(kwargs)), with_kwargs=True)
    made, _ = sft(tmp_path, model=model, max_steps=2)
    parts = []
    for call in outer[:4]:
        with torch.no_grad():
            logits = made.model(input_ids=call["input_ids"], attention_mask=call["attention_mask"]).logits
        # With virtual tokens before it, the first token of a text has something that predicts it.
        labels = call["labels"] if how == "prompt tuning" else call["labels"][:, 1:]
        parts.append(Sums.of(logits[:, -labels.shape[1] - 1 : -1], labels, shift=False))
    assert logged(made, "cross_entropy") == [(2, pytest.approx(mean(parts), abs=1e-5))]
    assert logged(made, "tokens_seen") == [(2, sum(part.tokens for part in parts))]


def dpo(where: Path, **watched: Any) -> tuple[Any, Given]:
    """Train by ``DPOTrainer``, and evaluate."""
    made = trl.DPOTrainer(
        build(), ref_model=build(), args=trl.DPOConfig(str(where), max_length=32, **TINY), processing_class=tokenizer(),
        train_dataset=datasets.Dataset.from_list(DATA["pairs"]), eval_dataset=datasets.Dataset.from_list(DATA["pairs"][:7]),
    )  # fmt: skip
    heard = Given(made.model)
    pplmon.watch(made, **watched)
    made.train()
    made.evaluate()
    return made, heard


@pytest.mark.filterwarnings("ignore:(?!pplmon)")
def test_dpo_has_the_chosen_answers(tmp_path: Path) -> None:
    """Those of the policy, in training and in evaluation; not the prompts, the rejected answers or the reference."""
    made, heard = dpo(tmp_path)
    parts = [heard.sums(heard.train[i : i + 4], slice(0, 2)) for i in range(0, 8, 4)]
    assert logged(made, "cross_entropy") == [(s, pytest.approx(mean(p), abs=1e-5)) for s, p in zip((2, 4), parts)]
    chosen = [heard.sums([call], slice(0, len(call["labels"]) // 2))[0] for call in heard.eval]
    assert logged(made, "eval_cross_entropy") == [(4, pytest.approx(mean(chosen), abs=1e-5))]


@pytest.mark.filterwarnings("ignore:(?!pplmon)")
def test_dpo_has_both_answers_as_groups(tmp_path: Path) -> None:
    """Where an extra asks for groups."""
    groups = pplmon.Groups(["chosen", "rejected"])
    made, heard = dpo(tmp_path, tally=pplmon.TokenTally(extras=[groups]))
    calls = heard.train[:4]
    for name, part in (("chosen", slice(0, 2)), ("rejected", slice(2, 4))):
        assert logged(made, f"group/{name}/cross_entropy")[0][1] == pytest.approx(
            mean(heard.sums(calls, part)), abs=1e-5
        )
    assert logged(made, "cross_entropy")[0][1] == pytest.approx(mean(heard.sums(calls)), abs=1e-5)


@pytest.mark.filterwarnings("ignore:(?!pplmon)")
def test_a_reference_that_is_the_same_model_without_its_adapter_does_not_count(tmp_path: Path) -> None:
    """It is the second call of each batch."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False)
    made = trl.DPOTrainer(
        build(), args=trl.DPOConfig(str(tmp_path), max_length=32, **TINY), processing_class=tokenizer(), peft_config=config,
        train_dataset=datasets.Dataset.from_list(DATA["pairs"]), eval_dataset=datasets.Dataset.from_list(DATA["pairs"][:7]),
    )  # fmt: skip
    heard = Given(made.model.get_base_model())
    pplmon.watch(made)
    made.train()
    made.evaluate()
    policy, calls = heard.train[:4], heard.eval
    assert logged(made, "cross_entropy")[0][1] == pytest.approx(mean(heard.sums(policy, slice(0, 2))), abs=1e-5)
    evaluated = calls[-6::2]  # of each batch the first; the reference's calls in training come before
    chosen = [heard.sums([call], slice(0, len(call["labels"]) // 2))[0] for call in evaluated]
    assert logged(made, "eval_cross_entropy") == [(4, pytest.approx(mean(chosen), abs=1e-5))]


@pytest.mark.filterwarnings("ignore:(?!pplmon)")
def test_grpo_has_its_completions(tmp_path: Path) -> None:
    """Under the distribution that they are sampled from; generation itself is not counted."""
    made = trl.GRPOTrainer(
        build(), reward_funcs=lambda completions, **_: [float(len(text)) for text in completions], processing_class=tokenizer(),
        args=trl.GRPOConfig(
            str(tmp_path), max_completion_length=6, num_generations=2, temperature=1.0, **{**TINY, "max_steps": 2, "logging_steps": 1},
        ),
        train_dataset=datasets.Dataset.from_list(DATA["prompts"]),
    )  # fmt: skip
    heard = Given(made.model)
    pplmon.watch(made, alerts=[])
    made.train()
    parts = [heard.sums(heard.train[i : i + 2]) for i in (0, 2)]
    assert logged(made, "cross_entropy") == [(s, pytest.approx(mean(p), abs=1e-5)) for s, p in zip((1, 2), parts)]


@pytest.mark.filterwarnings("ignore:(?!pplmon)")
def test_rewards_have_no_tokens_to_predict(tmp_path: Path) -> None:
    """One warning, and the run goes on."""
    model = transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**{**build().config.to_dict(), "num_labels": 1})
    )
    made = trl.RewardTrainer(
        model, args=trl.RewardConfig(str(tmp_path), max_length=32, **TINY), processing_class=tokenizer(),
        train_dataset=datasets.Dataset.from_list([{k: row[k] for k in ("chosen", "rejected")} for row in DATA["pairs"]]),
    )  # fmt: skip
    pplmon.watch(made)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.train()
    told = [str(each.message) for each in caught if "pplmon" in str(each.message)]
    assert len(told) == 1 and "found no logits and targets in the first train batch" in told[0]
    assert made.state.global_step == 4
