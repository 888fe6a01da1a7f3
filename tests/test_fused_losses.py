"""Losses without logits against float64, and losses that overwrite their logits; see docs/fused_losses.md."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

import pplmon
from pplmon import TokenStats, TokenTally
from pplmon.doctor.overwritten import LEAST, LOOKS, Overwritten, evidence
from pplmon.report.numbers import CATALOGUE
from tests import fused_script
from tests.fused_script import TOKENS, VOCAB, problem
from tests.launch import ROOT, run_script
from tests.models import loader, make_module

PAGE = (ROOT / "docs/fused_losses.md").read_text(encoding="utf-8")

PACKAGES = {"liger": "liger_kernel", "cce": "cut_cross_entropy", "trl": "trl.kernels"}
DTYPES = (torch.float32, torch.bfloat16)
# The row of the page's table, and how far a loss in bfloat16 may be from that of float64 on the same bfloat16 logits,
# relative to loss and logits: half a unit in the last place of bfloat16 where the loss is rounded to it (Triton's
# interpreter truncates: a whole one), and as much of the logits where the loss takes them unrounded.
TABLE = {
    "torch": ("F.linear_cross_entropy", 2.0**-7),
    "liger_fused": ("LigerFusedLinearCrossEntropyLoss", 0.0),
    "liger": ("LigerCrossEntropyLoss", 2.0**-7),
    "cce": ("cut_cross_entropy.linear_cross_entropy", 0.0),
    "trl": ("TRL's fused head", 0.0),
}
FLOAT32 = 4e-6  # of the loss and of the logits' size: what float32 leaves at lse ≈ 15


def need(package: str, where: str = "here") -> None:
    """Skip where a package is not installed."""
    try:
        there = find_spec(package) is not None
    except ImportError:  # the package of a submodule
        there = False
    if not there:
        pytest.skip(f"{package.split('.', maxsplit=1)[0]} is not installed {where}")


@pytest.fixture(scope="module")
def liger(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Liger gives, its kernels interpreted in a process of its own."""
    need("liger_kernel")
    out = tmp_path_factory.mktemp("liger") / "found.pt"
    done = run_script("tests.fused_script", out, afresh=True, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = torch.load(out)
    return found


def known(name: str, dtype: torch.dtype, request: pytest.FixtureRequest) -> dict[str, Tensor]:
    """What a loss knows of the problem's tokens."""
    if name.startswith("liger"):
        return dict(request.getfixturevalue("liger")[f"{name} {dtype}"])
    if name == "torch" and not hasattr(F, "linear_cross_entropy"):
        pytest.skip(f"torch {torch.__version__} has no linear_cross_entropy")
    if name in PACKAGES:
        need(PACKAGES[name])
    if name == "trl":
        need("datasets", "(TRL's backward imports its trainers)")
    with torch.compiler.set_stance("force_eager"):  # cut-cross-entropy compiles what is not on a GPU
        return fused_script.known(name, dtype)


def row(name: str) -> tuple[list[str], list[str], str]:
    """What the page's table says of a loss: what it gives, what is None, and the dtype."""
    (found,) = re.findall(rf"^\| `?{re.escape(TABLE[name][0])}`? \| (.*) \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)
    return re.findall(r"`(\w+)`", found[0]), re.findall(r"`(\w+)`", found[1]), found[2]


def report_of(stats: TokenStats) -> pplmon.Report:
    """The report of one batch."""
    tally = TokenTally()
    tally.update(stats)
    return tally.report()


# What a loss knows.


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
@pytest.mark.parametrize("name", TABLE)
def test_a_fused_loss_gives_the_numbers_of_its_logits(
    name: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    """Per token against float64 on the head's own logits, and in the report; gradients, too, so it is the loss in use."""
    given = known(name, dtype, request)
    gradient = given.pop("grad")
    hidden, weight, targets = problem(dtype)
    logits = F.linear(hidden, weight).double()
    want = F.cross_entropy(logits, targets, reduction="none")
    kept = targets != -100
    slack = TABLE[name][1] if dtype == torch.bfloat16 else 0.0
    stats = TokenStats.from_losses(targets=targets, vocab_size=VOCAB, **given)
    size = logits.abs().amax(-1)
    assert ((stats.nll.double() - want).abs() <= slack * (want + size) + FLOAT32 * size).all()
    assert not stats.nll[~kept].any() and torch.equal(stats.scored, kept)
    if stats.correct is not None:
        assert torch.equal(stats.correct[kept], (logits.argmax(-1) == targets)[kept])
    if stats.predicted is not None:
        assert torch.equal(stats.predicted[kept], logits.argmax(-1)[kept])
    if stats.entropy is not None:
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        assert ((stats.entropy.double() - entropy).abs() <= FLOAT32 * size)[kept].all()
    exact = (F.softmax(logits, -1) - F.one_hot(targets.clamp_min(0), VOCAB)) * kept.unsqueeze(1) @ weight.double()
    assert ((gradient.double() - exact).abs() <= (0.05 if dtype == torch.bfloat16 else 1e-5) * exact.abs().max()).all()

    got, whole = report_of(stats), report_of(pplmon.token_stats(logits, targets))
    assert got.cross_entropy == pytest.approx(whole.cross_entropy, rel=slack + 1e-6)
    assert got.tokens == whole.tokens == int(kept.sum())
    assert got.token_accuracy in (None, whole.token_accuracy)


@pytest.mark.parametrize("name", TABLE)
def test_the_table_of_what_is_none(name: str, request: pytest.FixtureRequest) -> None:
    """What each loss gives, what a report lacks for want of the rest, and the loss's dtype, as the page has it."""
    given = known(name, torch.bfloat16, request)
    gives, lacks, dtype = row(name)
    assert set(given) - {"grad"} == set(gives)
    assert (given["nll"].dtype == torch.float32) == (dtype == "float32")
    assert given["nll"].dtype == (torch.float32 if dtype == "float32" else torch.bfloat16)
    shape = (2, TOKENS // 2)
    hidden, weight, targets = problem(torch.bfloat16)
    seen = {key: value.view(shape) for key, value in given.items() if key != "grad"}
    got = report_of(TokenStats.from_losses(targets=targets.view(shape), vocab_size=VOCAB, **seen))
    logits = F.linear(hidden, weight).view(*shape, VOCAB)
    whole = report_of(pplmon.token_stats(logits, targets.view(shape)))
    assert [n for n in CATALOGUE if got.numbers[n] is None and whole.numbers[n] is not None] == lacks
    assert (got.worst[0].predicted is None) == ("predicted" not in gives)
    assert got.worst[0].predicted_probability is None


def test_what_else_the_page_says_is_none() -> None:
    """Without V, and without [B, T]."""
    nll, targets = torch.ones(4, 20), torch.zeros(4, 20, dtype=torch.int64)
    whole = report_of(TokenStats.from_losses(nll, targets, vocab_size=9)).numbers
    for given, names in (
        ((nll, targets), {"relative_cross_entropy", "above_uniform_rate", "max_token_excess"}),
        ((nll.flatten(), targets.flatten(), None, None, None, 9), {"sequences", "max_sequence_loss"}),
    ):
        got = report_of(TokenStats.from_losses(*given)).numbers  # type: ignore[arg-type]
        assert {name for name in CATALOGUE if got[name] is None and whole[name] is not None} == names
        assert all(f"`{name}`" in PAGE for name in names)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_z_loss_is_taken_off(dtype: torch.dtype, liger: dict[str, Any]) -> None:
    """Liger adds it to each token's loss, and gives it beside."""
    given, plain = liger[f"liger_z {dtype}"], liger[f"liger {dtype}"]
    rounding = 2.0**-6 if dtype == torch.bfloat16 else 1e-5  # of both, and of what is left
    assert ((given["nll"] - plain["nll"]).abs() <= rounding * (plain["nll"].abs() + 2)).all()


def test_bfloat16_losses_are_few() -> None:
    """The page's words on precision: 0.4 %, steps of 0.06 above 8 nats, and a mean that is hardly hurt."""
    losses = torch.rand(4096, dtype=torch.float64) * 12 + 0.01
    rounded = losses.bfloat16().double()
    assert ((rounded - losses).abs() / losses).max() <= 0.004
    steps = rounded[rounded >= 8].unique().diff()
    assert steps.unique().tolist() == [0.0625]
    assert abs(rounded.mean() - losses.mean()) < 1e-3


def test_what_a_shifting_loss_returns() -> None:
    """[B, T − 1] belongs to ``labels[:, 1:]``; with a column in front, positions and documents are those of the labels."""
    logits, labels = torch.randn(2, 20, 30), torch.randint(30, (2, 20))
    labels[1, 4] = -100
    documents = torch.arange(20).expand(2, 20) // 10
    nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    late = report_of(TokenStats.from_losses(nll, labels[:, 1:], vocab_size=30))
    targets = labels.clone()
    targets[:, 0] = -100
    tally, whole = TokenTally(), TokenTally(shift=True)
    tally.update(TokenStats.from_losses(F.pad(nll, (1, 0)), targets, vocab_size=30))
    whole.update(logits, labels)
    assert tally.report().cross_entropy == pytest.approx(whole.report().cross_entropy, rel=1e-6)
    assert late.cross_entropy == tally.report().cross_entropy
    worst = [(w.sequence, w.position, w.target) for w in whole.report().worst]
    assert [(w.sequence, w.position, w.target) for w in tally.report().worst] == worst
    assert [(w.sequence, w.position + 1, w.target) for w in late.worst] == worst
    tally.update(TokenStats.from_losses(F.pad(nll, (1, 0)), targets, vocab_size=30), document_ids=documents)


def test_cce_shifts_as_told() -> None:
    """With ``shift=True`` it takes the labels, and returns a column less."""
    need("cut_cross_entropy")
    from cut_cross_entropy import linear_cross_entropy

    hidden, weight, targets = problem(torch.float32)
    labels = targets.view(2, -1)
    with torch.compiler.set_stance("force_eager"):
        nll = linear_cross_entropy(
            hidden.view(*labels.shape, -1), weight, labels, reduction="none", shift=True, impl="torch_compile"
        )
    logits = F.linear(hidden, weight).view(*labels.shape, VOCAB)
    want = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    assert torch.allclose(nll, want, atol=1e-5)


def test_trl_patched_models_give_what_the_page_reads() -> None:
    """``add_fused_lm_head`` returns [B, T − 1] under these names, 0 where the label is ignored."""
    need("trl.kernels")
    need("datasets", "(TRL imports it)")
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
    ids = torch.randint(VOCAB, (2, 20))
    labels = ids.clone()
    labels[:, :5] = -100
    logits = model(input_ids=ids).logits.detach()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    out = model(input_ids=ids, labels=labels, fused_lm_head=True)
    assert not out.log_probs[:, :4].any()
    known = {"correct": out.is_top1, "entropy": out.entropy, "vocab_size": VOCAB}
    stats = TokenStats.from_losses(-out.log_probs, labels[:, 1:], **known)
    want = pplmon.token_stats(logits[:, :-1], labels[:, 1:], entropy=True)
    assert torch.equal(stats.scored, want.scored)
    assert torch.allclose(stats.nll, want.nll, atol=1e-5)
    assert stats.correct is not None and want.correct is not None
    assert torch.equal(stats.correct & stats.scored, want.correct)
    assert stats.entropy is not None and want.entropy is not None
    assert torch.allclose(stats.entropy[stats.scored], want.entropy[stats.scored], atol=1e-5)
    wrong_sign = report_of(TokenStats.from_losses(out.log_probs, labels[:, 1:], vocab_size=VOCAB))
    assert wrong_sign.nonfinite_tokens == stats.scored.sum() and wrong_sign.tokens == 0


# Losses that overwrite their logits.


class InPlace(torch.autograd.Function):
    """A cross-entropy that leaves gradients, or probabilities, where its logits were, unseen by the version counter."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, kind: str) -> Tensor:
        kept = targets != -100
        index = targets.clamp_min(0).unsqueeze(1)
        loss = F.cross_entropy(logits.float(), targets)
        left = torch.softmax(logits.float(), -1)
        ctx.save_for_backward(
            gradient := (left.scatter_add(1, index, -torch.ones_like(left)) * kept[:, None]) / kept.sum()
        )
        logits.data.copy_(gradient if kind == "gradients" else left)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * grad[0], None, None


def said(call: Callable[[], object]) -> list[str]:
    """What pplmon warns of overwritten logits."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(found.message) for found in caught if "observed as logits" in str(found.message)]


def gradients(logits: Tensor, targets: Tensor, reduction: str, scale: float, dtype: torch.dtype) -> Tensor:
    """What an in-place loss leaves of ``logits`` [N, V]."""
    left = torch.softmax(logits.to(dtype).float(), -1)
    left[torch.arange(len(targets)), targets] -= 1
    return (left * scale / (len(targets) if reduction == "mean" else 1)).to(dtype)


def head(kind: str, vocab: int, targets: Tensor) -> Tensor:
    """Logits of a model: fresh ones of several sizes, trained ones, and odd ones."""
    rows = torch.randn(len(targets), vocab)
    at = torch.arange(len(targets)), targets
    if kind == "trained":  # probabilities from nearly 0 to nearly 1
        rows *= 2
        rows[at] += torch.rand(len(targets)) * (math.log(vocab) + 12)
    elif kind == "unlearned":  # the target is the lowest in every row
        rows[at] -= 40
    elif kind == "positive":
        rows += 1 - rows.min()
    else:
        rows *= float(kind)
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
# The smallest that is looked at, a byte model's, one that fills several cache lines, a real one.
@pytest.mark.parametrize("vocab", [16, 257, 1000, 32000])
def test_gradients_are_told_from_logits(vocab: int, dtype: torch.dtype) -> None:
    """Heads of 0, of 0.001 to 3, trained, and contrived ones are never accused; what a loss leaves of them always is."""
    for kind in ("0", "0.001", "0.05", "0.5", "3", "trained", "unlearned", "positive"):
        targets = torch.randint(vocab, (64,))
        logits = head(kind, vocab, targets)
        rows, left, probable = evidence(logits.to(dtype), targets, -100, shift=False).tolist()
        assert (left, probable) == (0, 0), kind
        assert rows == (0 if kind == "0" else 16)
        for reduction, scale in (("mean", 1.0), ("mean", 65536.0), ("mean", 0.25), ("sum", 1.0)):
            given = gradients(logits, targets, reduction, scale, dtype)
            rows, left, probable = evidence(given, targets, -100, shift=False).tolist()
            assert left == rows >= 8 and not probable, (kind, reduction, scale)
        rows, left, probable = evidence(torch.softmax(logits, -1).to(dtype), targets, -100, shift=False).tolist()
        assert probable == rows == 16 and not left


def test_only_scored_rows_are_looked_at() -> None:
    """Wherever they are; the shift and targets outside the vocabulary are as in the measurement."""
    targets = torch.full((4, 50), -100)
    targets[3, 40:45], targets[3, 45] = 7, 999
    logits = torch.randn(4, 50, 64)
    logits[3, 39:44] = 0.001
    logits[3, 39:44, 7] = -0.1
    shifted = evidence(logits[..., :64], targets, -100, shift=True).tolist()
    assert shifted == [5, 5, 0]
    assert evidence(logits, targets, -100, shift=False).tolist() == [5, 4, 0]
    assert evidence(logits.flatten(0, 1), targets.flatten(), -100, shift=False).tolist() == [5, 4, 0]
    assert evidence(logits, targets, 7, shift=False).tolist() == [0, 0, 0]
    last = torch.full((1, 3), 5)
    assert evidence(torch.ones(1, 3, 64), last, -100, shift=True)[0] == 2  # the last column predicts nothing


def test_a_monitor_warns_once_and_only_of_training() -> None:
    """With the number of rows, the cause and the ways out; then it looks no more."""
    monitor = pplmon.Monitor(alerts=[])

    def step() -> None:
        logits, targets = torch.randn(2, 8, 50, requires_grad=True) * 2, torch.randint(50, (2, 8))
        InPlace.apply(logits.view(16, 50), targets.flatten(), "gradients")
        monitor.observe(logits, targets)

    with monitor.stage("val"):
        assert said(step) == []
    (text,) = said(lambda: [step() for _ in range(LOOKS + 3)])
    assert "are gradients: in 16 of 16 rows only the target's value is below 0" in text
    assert "ran before pplmon measured" in text and "from_losses" in text and "call observe above it" in text
    with pytest.warns(RuntimeWarning, match="in 16 of 16 rows no value is below 0 and the sum is 1"):
        Overwritten().look(torch.rand(20, 50).softmax(-1), torch.arange(20), -100, shift=False)


def test_few_rows_are_waited_for_and_few_batches_looked_at() -> None:
    """Nothing is said of fewer than 8 rows; a batch without tokens is no look; tiny vocabularies are left alone."""
    looking = Overwritten()
    left = gradients(torch.randn(3, 50), torch.arange(3), "sum", 1.0, torch.float32)
    looking.look(left[:0], torch.arange(0), -100, shift=False)
    assert said(lambda: [looking.look(left, torch.arange(3), -100, shift=False) for _ in range(2)]) == []
    (text,) = said(lambda: looking.look(left, torch.arange(3), -100, shift=False))
    assert LEAST == 8 and "in 9 of 9 rows" in text
    late = Overwritten()
    honest = torch.randn(20, 50)
    many = gradients(honest, torch.arange(20), "sum", 1.0, torch.float32)
    for _ in range(LOOKS):
        late.look(honest, torch.arange(20), -100, shift=False)
    assert said(lambda: late.look(many, torch.arange(20), -100, shift=False)) == []
    tiny = torch.tensor([[1.0, -1.0]]).expand(20, 2)
    assert said(lambda: Overwritten().look(tiny, torch.ones(20, dtype=torch.int64), -100, shift=False)) == []


def test_counts_are_waited_for_on_their_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event of the current GPU's stream, where the logits lie on another, would say too early that they are there."""
    recorded, made = [], torch.empty
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda *stream: recorded.append(stream)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory, **how: made(*shape, **how))
    Overwritten()._send(torch.zeros(3, dtype=torch.int64))
    assert recorded == [("the stream of cpu",)]


def test_liger_is_seen(liger: dict[str, Any]) -> None:
    """Its real cross-entropy, which the version counter does not show; label smoothing hides it, as the page says."""
    for how in ("mean", "sum", "z_loss"):
        (text,) = liger[how]
        assert "are gradients" in text
    assert liger["smoothed"] == []
    assert "It cannot detect: a loss with label smoothing" in PAGE


def test_liger_s_patch_overwrites_float32_logits_alone(liger: dict[str, Any]) -> None:
    """Hugging Face's loss works on ``logits.float()``: a copy of bfloat16 logits only."""
    assert liger["llama"]["torch.bfloat16"] == 0
    assert liger["llama"]["torch.float32"] > 0.01


# When the callback measures, source by source.


def lit(source: str, overwrites: str) -> tuple[Any, dict[str, Any]]:
    """A module whose loss overwrites its logits ``in`` forward, in backward, or not at all; the monitor's settings."""
    module = make_module(pl.LightningModule, "none")

    def training_step(self: Any, batch: Any, index: int) -> Any:
        logits, labels = self(batch["x"]), batch["labels"]
        if source == "above":
            pplmon.observe(self, logits, labels)
        if overwrites == "forward":
            loss = InPlace.apply(logits.flatten(0, 1), labels.flatten(), "gradients")
        else:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        if overwrites == "backward":
            logits.register_hook(lambda grad: logits.data.copy_(grad))
        if source == "below":
            pplmon.observe(self, logits, labels)
        output = {"loss": loss, "logits": logits, "labels": labels}
        return output if source in ("returned", "key", "callable") else loss

    type(module).training_step = training_step
    settings: dict[str, Any] = {
        "submodule": {"logits": "head", "targets": "labels"},
        "key": {"logits": "logits", "targets": "labels"},
        "callable": {"logits": lambda outputs, batch: outputs["logits"], "targets": "labels"},
    }
    return module, settings.get(source, {})


def first_loss(module: Any, settings: dict[str, Any], path: Path, steps: int = 6) -> float:
    """Fit, and return the cross-entropy of the first step, as it was measured."""
    reports: list[pplmon.Report] = []

    def keep(report: pplmon.Report) -> None:
        if report.stage == "train":
            reports.append(report)

    monitor = pplmon.PerplexityMonitor(alerts=[keep], every_n_steps=steps, **settings)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", max_steps=steps, callbacks=[monitor], default_root_dir=path, **quiet)
    trainer.fit(module, loader(ignored=False))
    assert reports[0].cross_entropy is not None
    return reports[0].cross_entropy


RIGHT = {
    "above": ("forward", "backward"),
    "below": ("backward",),
    "submodule": ("forward", "backward"),
    "key": (),
    "callable": (),
    "returned": (),
}


@pytest.mark.parametrize("overwrites", ["forward", "backward"])
@pytest.mark.parametrize("source", RIGHT)
def test_each_source_is_measured_when_the_page_says(source: str, overwrites: str, tmp_path: Path) -> None:
    """Measured in time, the number is that of a loss that leaves its logits alone; else it is ln V, and a warning comes."""
    honest = first_loss(*lit(source, "nothing"), tmp_path)
    found: list[float] = []
    texts = said(lambda: found.append(first_loss(*lit(source, overwrites), tmp_path)))
    if overwrites in RIGHT[source]:
        assert texts == [] and found == [pytest.approx(honest, rel=1e-6)]
    else:
        assert len(texts) == 1 and "are gradients" in texts[0]
        # The gradients of a mean over N tokens sum to 0 and the target's is at least −1/N: ln V to ln V + 1/N and a bit.
        assert math.log(32) < found[0] < math.log(32) + 1 / 80 + 1e-3 and abs(found[0] - honest) > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_hugging_face_model_is_measured_after_its_loss(dtype: torch.dtype, tmp_path: Path) -> None:
    """Its logits are overwritten where its loss gets them themselves and not a float32 copy; a warning then comes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).to(dtype)
            self.model.loss_function = self.loss_function

        def loss_function(self, logits: Tensor, labels: Tensor, **more: Any) -> Tensor:
            given = logits.float()  # as Hugging Face's own does first
            targets = F.pad(labels, (0, 1), value=-100)[..., 1:]
            return InPlace.apply(given.view(-1, 64), targets.flatten(), "gradients")  # type: ignore[no-any-return]

        def training_step(self, batch: Any, index: int) -> Any:
            return self.model(input_ids=batch["x"], labels=batch["x"]).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    texts = said(lambda: first_loss(Module(), {}, tmp_path))
    assert len(texts) == (dtype == torch.float32)


def test_the_page_names_every_way() -> None:
    """Its table is what the tests above hold: right and wrong, row by row."""
    rows = re.findall(r"^\| .+ \| .+ \| (right|\*\*wrong\*\*)[^|]* \| (right|\*\*wrong\*\*) \|$", PAGE, re.MULTILINE)
    good = [tuple(RIGHT[source]) for source in ("above", "below", "submodule", "key", "returned")]
    want = [tuple("right" if when in ways else "**wrong**" for when in ("forward", "backward")) for ways in good]
    assert rows == [*want, ("**wrong**", "right")]
    assert RIGHT["callable"] == RIGHT["key"]


def test_the_first_window_s_guard_names_the_cause_too(tmp_path: Path) -> None:
    """Where the loss is far from ln V already."""
    module, settings = lit("returned", "forward")
    with torch.no_grad():
        module.head.weight.mul_(20)
    with (
        pytest.warns(UserWarning, match="wrote over its logits before they were measured"),
        pytest.warns(RuntimeWarning, match="are gradients"),
    ):
        first_loss(module, settings, tmp_path)


def test_a_fused_loss_in_the_callback_is_told_what_to_write(tmp_path: Path) -> None:
    """Where no logits are found, the error also says what a loss without them can show."""
    module = make_module(pl.LightningModule, "none")
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, callbacks=[pplmon.PerplexityMonitor()], logger=False)
    with pytest.raises(ValueError, match=r"TokenStats\.from_losses\(nll, targets\)"):
        trainer.fit(module, loader(8))
