"""``pplmon doctor``: the first batches of a file or a function, what does not agree, and the exit code."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from pplmon.cli import main
from pplmon.doctor import measure
from pplmon.doctor.first_batch import CHARACTERS, ROWS, rows_of, show
from tests.sources import Module, batches, llama
from tests.sources import run as run_module

Result = tuple[int, str, str]
VOCAB, PAD, PROMPT = 50, 0, 4


def batch(seed: int = 0, wrong: float = 1.0) -> dict[str, Tensor]:
    """A right batch of a causal model, whose loss is of the next ids, on answers alone."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (5, 20), generator=made)
    ids[0, -6:] = PAD
    labels = ids.masked_fill(ids == PAD, -100)
    labels[:, :PROMPT] = -100
    logits = torch.randn(5, 20, VOCAB, generator=made)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()) * wrong
    return {"logits": logits, "labels": labels, "loss": loss, "input_ids": ids, "attention_mask": (ids != PAD).long()}


def saved(path: Path, what: Any) -> None:
    """Write a file of one of the kinds."""
    if path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in what.items()})
    elif path.suffix == ".safetensors":
        pytest.importorskip("safetensors").torch.save_file(what, path)
    else:
        torch.save(what, path)


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Result]]:
    """Run the command in a folder of its own: exit code, what it prints, and its errors. Long lines are not broken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    path = list(sys.path)

    def call(*arguments: str) -> Result:
        code = main(["doctor", *arguments])
        out = capsys.readouterr()
        return code, out.out, out.err

    yield call
    sys.path[:] = path


@pytest.mark.parametrize("suffix", ["pt", "npz", "safetensors"])
def test_a_file_of_a_batch_is_looked_at(run: Callable[..., Result], suffix: str) -> None:
    """Nothing is found under the right shift; the line to write under the wrong one, and 1."""
    if suffix == "safetensors":
        pytest.importorskip("safetensors.torch")
    saved(Path(f"b.{suffix}"), batch())
    code, out, err = run(f"b.{suffix}", "--shift")
    assert (code, err) == (0, "") and "with shift=True: it agrees with the loss" in out
    code, out, _ = run(f"b.{suffix}")
    assert code == 1 and out.startswith("shift: the loss is ") and "\n  Pass shift=True\n" in out
    assert out.endswith("with shift=False: 1 finding\n")


def test_a_function_is_called_and_its_first_batches_are_looked_at(run: Callable[..., Result]) -> None:
    """Of a module or of a file; it may yield without an end, and state the shift itself."""
    Path("mine.py").write_text(
        "import torch\nfrom tests.test_doctor_command import batch\n"
        "def many():\n    seed = 0\n    while True:\n        yield {**batch(seed), 'shift': True}\n        seed += 1\n"
        "def one():\n    return {**batch(), 'loss': None, 'shift': True}\n"
        "some = [{**batch(n, 0.25), 'shift': n > 0} for n in range(4)]\n"
        "class A:\n    def b():\n        raise RuntimeError('no \\x1b[31m such file')\n"
    )
    try:
        assert run("mine:many")[:2] == run("mine.py:many", "--batches", "3")[:2]
        code, out, _ = run("mine:many")
        assert code == 0 and out.startswith("3 batches, ") and "agrees with the loss" in out
        code, out, _ = run("mine:one")
        assert code == 0 and "no findings; give the loss, too" in out
        code, out, _ = run("mine:some", "--shift")
        assert code == 1 and "scaled_loss: " in out and "1/4" in out
        code, _, err = run("mine:some")
        assert code == 2 and "the batches say unlike things under shift" in err
        code, _, err = run("mine:A.b")
        assert code == 2 and err == "pplmon doctor: RuntimeError: no \\x1b[31m such file\n"
    finally:
        sys.modules.pop("mine", None)


BAD = {
    "nothing.pt": "nothing.pt does not exist; write it by torch.save; a batch is a dict",
    "broken.pt": "broken.pt is no file of plain tensors",
    "what": "'what' is neither a file (.pt, .pth, .npz, .safetensors) nor a function, as package.module:function",
    "math:nope": "math has no 'nope'; name a function that returns or yields batches",
    "math:pi": 'math:pi gave a float; a batch is a dict with "logits" and "targets" (or "labels")',
    "nothing.py:f": "nothing.py is no file; name one that has the function",
    "string:digits": "string:digits gave a str",
    "sys:path": "sys:path gave a str where a batch should be",
    "builtins:list": "builtins:list gave no batch",
    "loss.pt": "loss.pt has no targets, only 'loss'",
    "shapes.pt": "targets must have the shape of logits",
    "no_loss.pt": "loss must be one number, got shape (2,); give the mean that backward() is called on",
}


@pytest.mark.parametrize("source", BAD)
def test_what_cannot_be_used_is_said_in_a_line(run: Callable[..., Result], source: str) -> None:
    """And the exit code is 2."""
    Path("broken.pt").write_bytes(b"no tensors")
    saved(Path("loss.pt"), {"loss": torch.ones(())})
    saved(Path("shapes.pt"), {**batch(), "labels": batch()["labels"][:, 1:]})
    saved(Path("no_loss.pt"), {**batch(), "loss": torch.ones(2)})
    code, out, err = run(source)
    assert code == 2 and not out and BAD[source] in err and err.startswith("pplmon doctor: ") and err.count("\n") == 1


def test_a_number_of_batches_below_one_is_refused(run: Callable[..., Result]) -> None:
    """With its text."""
    code, _, err = run("b.pt", "--batches", "0")
    assert code == 2 and "--batches must be 1 or more, got 0" in err


def test_one_json_object_is_printed_when_asked(run: Callable[..., Result]) -> None:
    """With every finding, its fix and its evidence; a loss of NaN is text."""
    saved(Path("b.pt"), batch(wrong=float("nan")))
    code, out, _ = run("b.pt", "--shift", "--json")
    found = json.loads(out)
    assert code == 1 and [f["kind"] for f in found["findings"]] == ["nonfinite"] and found["loss"] == ["NaN"]
    assert found["batches"] == 1 and found["tokens"] == 74 and found["cross_entropy"] > 0


def test_a_batch_without_logits_is_looked_at_too(run: Callable[..., Result]) -> None:
    """As SaveBatch writes it: labels are compared with the ids, and what a model shifts by itself is no leakage."""
    b = batch()
    saved(Path("right.pt"), {"rule": "Spike", "step": 3, "batch": {"labels": b["labels"], "input_ids": b["input_ids"]}})
    twice = torch.nn.functional.pad(b["labels"][:, 1:], (0, 1), value=-100)
    saved(Path("twice.pt"), {"batch": {"targets": twice, "input_ids": b["input_ids"]}})
    saved(Path("none.pt"), {"batch": {"targets": torch.full_like(twice, -100), "input_ids": b["input_ids"]}})
    code, out, _ = run("right.pt")
    assert code == 0 and "no findings in ids and labels; there are no logits to compare with a loss" in out
    code, out, _ = run("twice.pt", "--shift")
    assert code == 1 and out.startswith("shift: ")
    code, out, _ = run("none.pt")
    assert code == 1 and out.startswith("all_ignored: ") and "0 scored tokens: 1 finding in ids" in out


def test_the_first_batch_is_shown_when_asked(run: Callable[..., Result]) -> None:
    """As ids without a tokenizer; what is not scored stands in brackets where there are no colours."""
    saved(Path("b.pt"), batch())
    code, out, _ = run("b.pt", "--shift", "--show")
    lines, ids = out.splitlines(), batch()["input_ids"].tolist()
    assert code == 0 and lines[0] == "the first batch, (5, 20); what is not scored is in ⟦ ⟧"
    told = " ".join(map(str, ids[1][PROMPT:]))
    assert lines[2].rstrip() == f"1: ⟦{' '.join(map(str, ids[1][:PROMPT]))}⟧ {told}"
    assert lines[1].rstrip().endswith(f"{ids[0][13]} ⟦······⟧") and lines[5] == "and 1 more rows"


def test_a_tokenizer_gives_the_text(run: Callable[..., Result], tmp_path: Path) -> None:
    """One of a folder, which needs no network."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{n}": n for n in range(VOCAB)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tmp_path / "tokenizer")
    saved(Path("b.pt"), batch())
    code, out, _ = run("b.pt", "--shift", "--show", "--tokenizer", "tokenizer")
    assert code == 0 and f"w{batch()['input_ids'][1, 7]}" in out


def printed(rows: Any, targets: Tensor, **how: Any) -> str:
    """What ``show`` prints."""
    out = io.StringIO()
    show(Console(file=out, width=120, **how), rows, targets)
    return out.getvalue()


def test_a_terminal_has_unscored_tokens_in_grey_and_hostile_text_is_escaped() -> None:
    """No escape sequence of the text's own, no markup, and no more than some lines of it."""
    b = batch()
    tokens = measure(b["logits"], b["labels"], True, b["input_ids"]).tokens
    rows = rows_of(tokens, True, lambda ids: "\x1b[2J[bold]\n" * len(ids))
    assert len(rows) == ROWS
    out = printed(rows, tokens.targets, force_terminal=True, color_system="standard")
    assert "\x1b[90m" in out and "\x1b[2J" not in out and "[bold]" in out and "⟦" not in out
    assert len(out.splitlines()) <= 2 + ROWS * (CHARACTERS // 120 + 2)


def test_the_first_target_of_a_row_is_not_scored_under_a_shift() -> None:
    """It has no logits before it."""
    ids = torch.arange(12).view(2, 6)
    tokens = measure(torch.randn(2, 6, 16), ids, True).tokens
    first, _ = rows_of(tokens, True)
    assert [(r.text, r.scored) for r in first] == [("0 ", False), ("1 2 3 4 5 ", True)]
    assert [[r.scored for r in row] for row in rows_of(tokens, False)] == [[True], [True]]


@pytest.mark.parametrize("fails", [False, True])
def test_the_callback_shows_the_first_batch_once_when_asked(
    fails: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As text where there is a decoder, which may fail; the shift is the model's own."""
    pytest.importorskip("transformers")
    monkeypatch.setenv("COLUMNS", "200")

    def decode(ids: list[int]) -> str:
        if fails:
            raise KeyError(ids[0])
        return "".join(f"<{token}>" for token in ids)

    def step(self: Any, batch: Any) -> Any:
        self.truth.append(torch.zeros(1))
        return self.model(**batch).loss

    module = Module(step, model=llama())
    run_module(module, "train", show=True, decode=decode)
    out = capsys.readouterr().out
    assert out.count("the first batch, (3, 12)") == 1
    ids = next(iter(batches()))["input_ids"][0].tolist()
    line = f"0: ⟦{ids[0]}⟧ {ids[1]} {ids[2]} " if fails else f"0: ⟦<{ids[0]}>⟧ <{ids[1]}><{ids[2]}>"
    assert line in out
    run_module(module, "train", decode=decode)
    assert "first batch" not in capsys.readouterr().out
