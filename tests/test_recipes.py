"""Recipes by others, unchanged but for the lines that add pplmon: our number equals float64; theirs stands beside it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pplmon
from pplmon.sinks import Journal, read_journal

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tests.hf_kit import SMALL, VOCAB, Heard, Sums, build, collate, logged, mean, rows, told_of, trainer  # noqa: E402

MOE = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.5}
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
MAMBA = {"vocab_size": VOCAB, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "pad_token_id": 0}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}


PICTURE, PLACES = VOCAB - 1, 4  # the id that stands for a part of a picture, and the parts of one


def llava() -> Any:
    """A model of texts that takes pictures, too."""
    text, vision = transformers.LlamaConfig(**SMALL), transformers.CLIPVisionConfig(**VISION)
    config = transformers.LlavaConfig(
        text_config=text, vision_config=vision, image_token_id=PICTURE, image_seq_length=PLACES, vision_feature_layer=-1
    )
    return transformers.LlavaForConditionalGeneration(config)


def with_pictures(batch: Any) -> dict[str, Tensor]:
    """Put a picture before each text: its places have no targets."""
    texts = collate([row.clamp(max=PICTURE - 1) for row in batch])
    shape = len(batch), PLACES
    before = {
        "input_ids": torch.full(shape, PICTURE),
        "attention_mask": torch.ones(shape, dtype=torch.long),
        "labels": torch.full(shape, -100),
    }
    pixels = torch.randn(len(batch), 3, 16, 16, generator=torch.Generator().manual_seed(int(texts["input_ids"].sum())))
    return {"pixel_values": pixels} | {name: torch.cat([before[name], texts[name]], dim=1) for name in before}


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**GPT2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    ),
    "llama": build,
    "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**SMALL, head_dim=8)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL, head_dim=8)),
    "t5": lambda: build("t5"),
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**SMALL, **MOE)),
    "mamba": lambda: transformers.MambaForCausalLM(transformers.MambaConfig(**MAMBA)),
    "llava": llava,
}
# The trainer's own loss is another number: see docs/recipes.md for the reasons.
ODD = {"gpt2": (0.94, 0), "t5": (4.0, 1), "mixtral": (1.97, 2)}  # theirs / ours, and how often pplmon says so


@pytest.mark.filterwarnings("ignore:(?!pplmon)")
@pytest.mark.parametrize("name", MODELS)
def test_models_under_the_trainer_of_transformers(name: str, tmp_path: Path) -> None:
    """Uneven padded rows, four micro-batches a step, train and eval."""
    torch.manual_seed(0)
    model = MODELS[name]()
    heard = Heard(model, shift=name != "t5")
    made = trainer(tmp_path, model, max_steps=1, logging_steps=1, learning_rate=0.0)
    pplmon.watch(made)
    metrics: dict[str, float] = {}
    told = told_of(lambda: (made.train(), metrics.update(made.evaluate())))
    true = mean(heard.train)
    assert logged(made, "cross_entropy") == [(1, pytest.approx(true, abs=1e-5))]
    assert metrics["eval_cross_entropy"] == pytest.approx(mean(heard.eval), abs=1e-5)
    theirs = logged(made, "loss")[0][1]
    ratio, messages = ODD.get(name, (1.0, 0))
    assert theirs / true == pytest.approx(ratio, abs=0.02 if name in ODD else 5e-4)
    assert len(told) == messages and all("returned a loss of" in text for text in told)


@pytest.mark.filterwarnings("ignore:(?!pplmon)")
def test_llava_with_pictures_under_the_trainer_of_transformers(tmp_path: Path) -> None:
    """The text after each picture is scored, its first token among it: the picture's last place predicts that."""
    torch.manual_seed(0)
    model = llava()
    heard = Heard(model)
    made = trainer(tmp_path, model, data_collator=with_pictures, max_steps=2, learning_rate=0.0)
    pplmon.watch(made)
    assert told_of(made.train) == []
    assert logged(made, "cross_entropy") == [(2, pytest.approx(mean(heard.train), abs=1e-5))]
    assert logged(made, "tokens_seen") == [(2, sum(len(row) for row in rows(64)[:16]))]
    assert logged(made, "loss")[0][1] == pytest.approx(mean(heard.train), abs=2e-3)
    assert made.evaluate()["eval_cross_entropy"] == pytest.approx(mean(heard.eval), abs=1e-5)
    worst = next(row for row in read_journal(tmp_path) if row["kind"] == "report")["worst"]
    assert all(row["position"] >= PLACES and row["target"] != PICTURE for row in worst)


@pytest.mark.filterwarnings("ignore:(?!pplmon)")
def test_llava_with_pictures_under_lightning(tmp_path: Path) -> None:
    """The same model in a module."""
    pl = pytest.importorskip("pytorch_lightning")
    torch.manual_seed(0)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = llava()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    module = Module()
    heard = Heard(module.model)
    made = pl.Trainer(
        accelerator="cpu", max_steps=4, callbacks=[pplmon.PerplexityMonitor(every_n_steps=4)], logger=False,
        default_root_dir=tmp_path, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(rows(16), batch_size=4, collate_fn=with_pictures)  # type: ignore[arg-type]
    assert told_of(lambda: made.fit(module, loader)) == []
    assert made.callback_metrics["train/cross_entropy"].item() == pytest.approx(mean(heard.train), abs=1e-5)


def test_lightnings_demo_transformer(tmp_path: Path) -> None:
    """It returns log-probabilities from its own step, and is watched by naming its model."""
    demos = pytest.importorskip("pytorch_lightning.demos")
    pl = pytest.importorskip("pytorch_lightning")

    class Texts(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        def __init__(self) -> None:
            self.ids = torch.randint(VOCAB, (24, 13), generator=torch.Generator().manual_seed(0))

        def __len__(self) -> int:
            return len(self.ids)

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return self.ids[index, :-1], self.ids[index, 1:]

    module = demos.LightningTransformer(vocab_size=VOCAB)
    module.prepare_data = lambda: None  # it would download texts
    seen: list[Sums] = []
    module.model.register_forward_hook(
        lambda m, args, output: seen.append(Sums.of(output.view(*args[1].shape, -1), args[1], shift=False))
    )
    monitor = pplmon.PerplexityMonitor(logits="model", every_n_steps=6)
    made = pl.Trainer(
        accelerator="cpu", max_steps=6, callbacks=[monitor], default_root_dir=tmp_path, logger=False,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    made.fit(module, torch.utils.data.DataLoader(Texts(), batch_size=4))
    assert made.callback_metrics["train/cross_entropy"].item() == pytest.approx(mean(seen), abs=1e-5)


def with_lines(function: Any, names: dict[str, Any], *added: tuple[str, str]) -> None:
    """Add a line after each that begins so, as a user would in the file; ``names`` are known there."""
    lines = inspect.getsource(function).splitlines()
    for after, line in added:
        (place,) = [index for index, text in enumerate(lines) if text.strip().startswith(after)]
        lines.insert(place + 1, lines[place].replace(lines[place].strip(), line))
    exec("\n".join(lines), names)


def test_litgpts_pretraining_loop(tmp_path: Path) -> None:
    """Its own ``fit`` and ``validate`` on its model, with a line for the logits of each, for a step, and for a pass."""
    pretrain = pytest.importorskip(
        "litgpt.pretrain", reason="litgpt wants numpy<2: pip install --no-deps litgpt jsonargparse"
    )
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, loggers=[])
    torch.manual_seed(0)
    sizes = {"block_size": 16, "vocab_size": VOCAB, "padded_vocab_size": VOCAB, "n_layer": 2, "n_head": 4, "n_embd": 32}
    model = pretrain.GPT(pretrain.Config(**sizes))
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters()))
    ids = torch.randint(VOCAB, (22, 17), generator=torch.Generator().manual_seed(0))
    train, held_out = (torch.utils.data.DataLoader(part, batch_size=2) for part in (ids[:16], ids[16:]))  # type: ignore[arg-type]
    sums: dict[str, list[Sums]] = {"train": [], "val": []}

    def seen(logits: Tensor, targets: Tensor) -> None:
        sums["train" if model.training else "val"].append(Sums.of(logits, targets, shift=False))

    monitor = pplmon.Monitor(every_n_steps=4, sinks=[Journal(tmp_path)], alerts=[])
    names = {**vars(pretrain), "monitor": monitor, "seen": seen}
    observe = "loss = chunked", "monitor.observe(logits, targets, loss=loss), seen(logits, targets)"
    with_lines(pretrain.fit, names, observe, ("optimizer.zero_grad", "monitor.step()"))
    with_lines(pretrain.validate, names, observe, ("@torch.no_grad", "@monitor.stage('val')"))
    given = pretrain.TrainArgs(
        save_interval=None, global_batch_size=4, micro_batch_size=2, max_tokens=256, log_interval=100, lr_warmup_steps=1,
        max_norm=1.0,
    )  # fmt: skip
    evaluated = pretrain.EvalArgs(interval=2, max_iters=3, initial_validation=True, final_validation=False)
    state = {"model": model, "optimizer": optimizer, "iter_num": 0, "step_count": 0}
    names["fit"](fabric, 1, state, train, held_out, tmp_path, None, given, evaluated)
    report = monitor.close()
    assert report is not None and report.cross_entropy == pytest.approx(mean(sums["train"]), abs=1e-5)
    assert report.tokens == 256
    passes = [row["numbers"] for row in read_journal(tmp_path) if row["kind"] == "report" and row["stage"] == "val"]
    wanted = [pytest.approx(mean(sums["val"][at : at + 3]), abs=1e-5) for at in (0, 3, 6)]
    assert [numbers["cross_entropy"] for numbers in passes] == wanted


def test_nanogpts_loop() -> None:
    """Its model returns logits and loss for its targets; the estimate of its loss runs outside of a pass, and inside one."""
    from tests.test_loop import Model, batches

    model, train, held_out = Model(), batches(8), batches(4, seed=1)
    optimizer = torch.optim.AdamW(model.parameters())
    sums: list[Sums] = []

    @torch.no_grad()
    def estimate_loss() -> dict[str, float]:
        out = {}
        model.eval()
        for split, data in (("train", train[:4]), ("val", held_out)):
            losses = torch.zeros(len(data))
            with monitor.stage("val") if split == "val" else torch.no_grad() as opened:
                for k, (x, y) in enumerate(data):
                    losses[k] = model(x, y)[1]
            out[split] = losses.mean().item()
        assert opened is not None
        passes.append(opened)
        model.train()
        return out

    passes: list[Any] = []
    monitor = pplmon.Monitor(every_n_steps=4).hook(model)
    for index, (x, y) in enumerate(train):
        logits, loss = model(x, y)
        sums.append(Sums.of(logits, y, shift=False))
        (loss / 2).backward()
        if index % 2:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            monitor.step()
    theirs = estimate_loss()["val"]
    report = monitor.close()
    assert report is not None and report.cross_entropy == pytest.approx(mean(sums), abs=1e-6)
    parts = [Sums.of(model(x, y)[0], y, shift=False) for x, y in held_out]
    assert passes[0].report.cross_entropy == pytest.approx(mean(parts), abs=1e-6)
    assert theirs == pytest.approx(sum(part.nll / part.tokens for part in parts) / 4, abs=1e-5)
    assert abs(theirs - mean(parts)) > 1e-4
