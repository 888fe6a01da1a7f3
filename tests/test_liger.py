"""Models whose fused loss makes no logits in training, as Liger's patch does: measured from the hidden states, where asked for."""

from __future__ import annotations

import copy
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, pad

import pplmon
from pplmon.trainers.capture.sources.after_head import AfterHead
from tests import interpreter
from tests.ranks import Ranks

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pl = pytest.importorskip("pytorch_lightning")

from tests import recompute_tasks  # noqa: E402
from tests.hf_kit import SMALL, VOCAB, Sums, build, collate, logged, mean, rows, told_of, trainer  # noqa: E402

LINE = r"gave a loss and no logits in the first train batch.*Write pplmon.watch\(trainer, recompute_logits=True\)"


def fused_loss(states: Tensor, weight: Tensor, labels: Tensor, items: Any = None, cap: float | None = None) -> Tensor:
    """Stand in for the kernel, which needs a GPU: the loss of shifted labels, a chunk of rows at a time."""
    states, labels = states.flatten(0, 1), pad(labels, (0, 1), value=-100)[:, 1:].flatten()
    total = states.new_zeros((), dtype=torch.float32)
    for part, targets in zip(states.split(8), labels.split(8)):
        with torch.autocast(states.device.type, enabled=False):
            logits = linear(part, weight.to(part.dtype)).float()
        logits = logits if cap is None else torch.tanh(logits / cap) * cap
        total = total + torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    return total / ((labels != -100).sum() if items is None else items)


def patched(model: Any, skips_logits: bool | None = None) -> Any:
    """Patch a model as Liger does: with labels, in training, its forward gives a loss and no logits."""
    plain = model.forward

    def forward(self: Any, input_ids: Tensor, labels: Tensor | None = None, **given: Any) -> Any:
        if labels is None or not (self.training if skips_logits is None else skips_logits):
            return plain(input_ids=input_ids, labels=labels, **given)
        items = given.pop("num_items_in_batch", None)
        states = self.model(input_ids=input_ids, **given)[0]
        cap = getattr(self.config, "final_logit_softcapping", None)
        loss = fused_loss(states, self.lm_head.weight, labels, items, cap)
        return transformers.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=None)

    model.forward = MethodType(forward, model)
    return model


def gemma2() -> Any:
    """A model that caps its logits after the head."""
    torch.manual_seed(0)
    config = transformers.Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5, query_pre_attn_scalar=8)
    return transformers.Gemma2ForCausalLM(config)


def hides_logits(model: Any) -> Any:
    """Make a model of any family give its own loss, and no logits."""
    plain = model.forward

    def forward(self: Any, *args: Any, **given: Any) -> Any:
        loss = plain(*args, **given).loss
        return transformers.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=None)

    model.forward = MethodType(forward, model)
    return model


def expected(model: Any, data: list[Tensor]) -> Sums:
    """Σ nll and tokens of rows, each by itself, in float64."""
    double = copy.deepcopy(model).cpu().double().eval()
    with torch.no_grad():
        parts = [Sums.of(double(row[None]).logits, row[None]) for row in data]
    return Sums(sum(part.nll for part in parts), sum(part.tokens for part in parts))


@pytest.mark.parametrize("build_one", [build, gemma2])
def test_the_hidden_states_have_the_numbers_of_training(build_one: Any, tmp_path: Path) -> None:
    """Uneven padded batches, four a step; it agrees with the loss, so nothing is warned of."""
    plain = build_one()
    made = trainer(tmp_path, patched(copy.deepcopy(plain)), learning_rate=0.0, max_steps=2)
    pplmon.watch(made, numbers="all", recompute_logits=True, tally=pplmon.TokenTally(extras=[pplmon.Entropy()]))
    assert told_of(made.train) == []
    of_train, of_eval = expected(plain, rows(64)[:16]), expected(plain, rows(10, seed=2))
    assert logged(made, "cross_entropy") == [(2, pytest.approx(mean([of_train]), abs=1e-6))]
    assert logged(made, "tokens") == [(2, of_train.tokens)]
    assert logged(made, "overconfident_error_rate") and logged(made, "mean_entropy")  # as with logits
    assert made.evaluate()["eval_cross_entropy"] == pytest.approx(mean([of_eval]), abs=1e-6)


def test_without_the_line_training_is_told_and_evaluation_is_measured(tmp_path: Path) -> None:
    """In evaluation such a model gives logits."""
    made = trainer(tmp_path, patched(build()), learning_rate=0.0)
    pplmon.watch(made)
    with pytest.warns(UserWarning, match=LINE) as caught:
        made.train()
    assert len([each for each in caught if "pplmon" in str(each.message)]) == 1
    assert made.state.global_step == 4 and not logged(made, "cross_entropy")
    assert made.evaluate()["eval_cross_entropy"] == pytest.approx(mean([expected(build(), rows(10, seed=2))]), abs=1e-6)


def test_an_evaluation_without_logits_is_measured_too(tmp_path: Path) -> None:
    """Where the model is told to skip them there."""
    made = trainer(tmp_path, patched(build(), skips_logits=True), prediction_loss_only=True)
    pplmon.watch(made, recompute_logits=True)
    assert made.evaluate()["eval_cross_entropy"] == pytest.approx(mean([expected(build(), rows(10, seed=2))]), abs=1e-6)


def test_under_autocast_it_is_the_head_of_the_run(tmp_path: Path) -> None:
    """In bfloat16, as the loss has it."""
    made = trainer(tmp_path, patched(build()), bf16=True, learning_rate=0.0)
    pplmon.watch(made, recompute_logits=True)
    assert told_of(made.train) == []
    theirs = [value for _, value in logged(made, "loss")]
    assert [value for _, value in logged(made, "cross_entropy")] == pytest.approx(theirs, abs=5e-3)


class Module(pl.LightningModule):
    """A patched model under Lightning."""

    def __init__(self) -> None:
        super().__init__()
        self.model = patched(build())

    def training_step(self, batch: dict[str, Tensor], index: int) -> Any:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("ours", [True, False])
def test_under_lightning(ours: bool, tmp_path: Path) -> None:
    """The same setting; without it the error names it."""
    made = pl.Trainer(
        accelerator="cpu", max_steps=2, callbacks=[pplmon.PerplexityMonitor(recompute_logits=ours, every_n_steps=2)],
        default_root_dir=tmp_path, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(rows(8), batch_size=4, collate_fn=collate)  # type: ignore[arg-type]
    if not ours:
        with pytest.raises(ValueError, match=r"no logits.*Write PerplexityMonitor\(recompute_logits=True\)"):
            made.fit(Module(), loader)
        return
    made.fit(Module(), loader)
    assert made.callback_metrics["train/cross_entropy"].item() == pytest.approx(
        mean([expected(build(), rows(8))]), abs=1e-6
    )


def test_a_hooked_model_of_a_loop() -> None:
    """Under the same name, and with a part of it in chunks no larger than its hidden states."""
    model = patched(build())
    batch = collate(rows(16))
    with pplmon.Monitor(every_n_steps=1, alerts=[]).hook(model, recompute_logits=True) as monitor:
        sizes: list[int] = []
        model.lm_head.register_forward_hook(lambda head, args, output: sizes.append(output.numel()))
        model(**batch).loss.backward()
        monitor.step()
        report = monitor.close()
    assert report is not None
    assert report.cross_entropy == pytest.approx(mean([expected(build(), rows(16))]), abs=1e-6)
    assert sum(sizes) == batch["labels"].numel() * VOCAB and max(sizes) <= sum(sizes) / 4


class Chance(torch.nn.Linear):
    """A head with dropout, as LoRA's."""

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(torch.nn.functional.dropout(states, 0.5, self.training))


def test_the_training_goes_on_with_the_random_numbers_that_it_would_have() -> None:
    """The head is called without its dropout, which would draw some."""
    drawn = []
    for hooks in (False, True):
        model = build()
        model.lm_head = Chance(32, VOCAB, bias=False)
        monitor = pplmon.Monitor(every_n_steps=1, alerts=[])
        torch.manual_seed(3)
        with monitor.hook(hides_logits(model), recompute_logits=True) if hooks else monitor:
            model(**collate(rows(4))).loss.backward()
            monitor.step()
            drawn.append(torch.rand(1))
            assert model.lm_head.training
    assert drawn[0] == drawn[1]


LLAMA_LIKE = {name: size for name, size in SMALL.items() if name != "max_position_embeddings"}
SCALED: list[tuple[str, dict[str, Any]]] = [
    ("Gemma2", {"final_logit_softcapping": 0.5, "head_dim": 8}),
    ("RecurrentGemma", {"logits_soft_cap": 0.5, "lru_width": 32, "attention_window_size": 8, "num_hidden_layers": 3}),
    ("Cohere2", {}),
    ("GraniteMoe", {"logits_scaling": 8.0}),
    ("HyperCLOVAX", {"logits_scaling": 3.0}),
    ("FalconH1", {"lm_head_multiplier": 0.25, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}),
]


@pytest.mark.parametrize(("family", "own"), SCALED)
def test_logits_are_scaled_and_capped_as_the_model_does(family: str, own: dict[str, Any]) -> None:
    """The families that do so, and what they would give without."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**LLAMA_LIKE, **own})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        ids = collate(rows(2))["input_ids"]
        logits, plain = model(ids).logits, model.get_output_embeddings()(model.base_model(ids)[0])
    assert not torch.allclose(plain, logits, atol=1e-2)
    assert torch.equal(AfterHead.of(config)(plain), logits)


def test_a_scaled_and_capped_text_model_inside_another() -> None:
    """Its settings are in a config of its own."""
    after = AfterHead.of(transformers.MuseGlimmerConfig())
    assert after == (pytest.approx(26**-0.5), pytest.approx(20.0)) and after.cap is not None


def test_logits_that_are_changed_otherwise_show_in_the_comparison_with_the_loss(tmp_path: Path) -> None:
    """A family that nobody knows: its loss is another number, and one warning has both."""
    model = hides_logits(build())
    forward = model.forward
    model.forward = lambda **given: transformers.modeling_outputs.CausalLMOutputWithPast(
        loss=forward(**given).loss * 0.9
    )
    made = trainer(tmp_path, model)
    pplmon.watch(made, recompute_logits=True)
    (text,) = told_of(made.train)
    assert "the measured cross-entropy is 4.1" in text and "a loss of 3.7" in text


@pytest.mark.parametrize("name", ["t5", "opt"])
def test_a_model_without_hidden_states_of_that_size_is_told(name: str, tmp_path: Path) -> None:
    """The line that is there already is not advised."""
    sizes = {**SMALL, "word_embed_proj_dim": 16, "ffn_dim": 32}
    model = build("t5") if name == "t5" else transformers.OPTForCausalLM(transformers.OPTConfig(**sizes))
    made = trainer(tmp_path, hides_logits(model), max_steps=1)
    pplmon.watch(made, recompute_logits=True)
    (text,) = told_of(made.train)
    assert "recompute_logits=True cannot help: no hidden states [B, T, H] that go into its head were seen" in text
    assert "Give the losses of its tokens: pplmon.observe(model, pplmon.TokenStats.from_losses(nll, targets))" in text


def test_it_is_one_source_of_logits_and_not_two() -> None:
    """A name given for another is an error."""
    with pytest.raises(
        ValueError, match=r"recompute_logits=True .* logits='head' names another source of them: leave one"
    ):
        pplmon.PerplexityMonitor(logits="head", recompute_logits=True)


@pytest.mark.ranks
def test_a_head_that_is_cut_over_ranks_is_gathered_equally_often(tmp_path: Path) -> None:
    """Rows of unlike lengths under FSDP2, whose head is a group of its own: nobody waits for another, and the numbers are the same."""
    with Ranks(2, tmp_path) as ranks:
        found = ranks.run(recompute_tasks.sharded_head, [7, 8])
    assert found[0] == found[1]
    assert found[0]["tokens"] == 2 * (6 + 7)
    assert found[0]["cross_entropy"] == pytest.approx(found[0]["float64"], abs=1e-6)


@pytest.mark.parametrize("error", [RuntimeError("the head is in pieces"), torch.OutOfMemoryError("no room")])
def test_a_head_that_fails_does_not_end_the_run(error: RuntimeError, tmp_path: Path) -> None:
    """One warning says why."""
    model = patched(build())
    calls = model.lm_head.forward
    model.lm_head.forward = lambda states: (
        (_ for _ in ()).throw(error) if not torch.is_grad_enabled() else calls(states)
    )
    made = trainer(tmp_path, model)
    pplmon.watch(made, recompute_logits=True)
    (text,) = told_of(made.train)
    assert f"could not be computed again: {error}" in text and made.state.global_step == 4


MISSING = "liger_kernel is not installed: pip install --no-deps liger_kernel"


def check_liger_itself(where: Path) -> None:
    """Training and evaluation equal float64 and Liger's own loss; nothing is warned of."""
    from tests.liger_task import train

    found = interpreter.run(train, str(where))
    assert found["told"] == []
    assert [found["train"], found["eval"]] == pytest.approx(found["float64"], abs=1e-3)
    assert found["loss"] == pytest.approx(found["train"], abs=2e-3)  # the Trainer logs a mean of micro-batches


@pytest.mark.slow
@pytest.mark.skipif(interpreter.DEVICE == "cuda", reason="the next test compiles Liger's programs")
def test_liger_itself_where_its_programs_are_interpreted(tmp_path: Path) -> None:
    """Its patch on a tiny Llama, under the Trainer."""
    pytest.importorskip("liger_kernel", reason=MISSING)
    check_liger_itself(tmp_path)


@pytest.mark.gpu
def test_liger_itself_on_a_gpu(tmp_path: Path) -> None:
    """The same, compiled."""
    pytest.importorskip("liger_kernel.transformers", reason=MISSING, exc_type=ImportError)
    check_liger_itself(tmp_path)
