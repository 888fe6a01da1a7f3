"""The user's ``decode``: what it does wrong costs the texts that it does not give, and no logger anything."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pplmon
from pplmon.report.texts import Texts
from pplmon.sinks import read_journal
from tests.test_sinks_wandb import finished

VOCABULARY = 32
WORDS = [f"w{i}" for i in range(VOCABULARY - 1)]  # the model's vocabulary is padded by one id


def watched(decode: Any, where: Path, steps: int = 5) -> tuple[list[pplmon.Alert], list[str]]:
    """Run steps with an alert each, into TensorBoard and a journal; in the first three the last id is predicted."""
    pytest.importorskip("tensorboard")
    heard: list[pplmon.Alert] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = pplmon.Monitor(
            every_n_steps=1,
            alerts=[pplmon.Above("max_token_loss", 0.1)],
            on_alert=heard.append,
            decode=decode,
            min_severity="info",
            sinks=[pplmon.sinks.TensorBoard(where), pplmon.sinks.Journal(where)],
            tally=pplmon.TokenTally(top_k=12),
        )
        for step in range(steps):
            torch.manual_seed(step)
            logits = torch.randn(2, 6, VOCABULARY)
            if step < 3:
                logits[0, 0, VOCABULARY - 1] = 9.0
            monitor.observe(logits, torch.randint(0, VOCABULARY - 2, (2, 6)))
            monitor.step()
        monitor.close()
    return heard, [str(w.message) for w in caught if "pplmon" in str(w.message)]


def curves(where: Path) -> dict[str, list[int]]:
    """The steps of each curve in TensorBoard's file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(where))
    events.Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_an_id_beyond_the_tokenizer_costs_its_own_text_only(tmp_path: Path) -> None:
    """All other tokens have theirs, in that step and later; one warning names decode and the id."""
    heard, texts = watched(lambda ids: " ".join(WORDS[i] for i in ids), tmp_path)
    tokens = [token for alert in heard for token in alert.worst]
    unknown = [token for token in tokens if token.predicted == VOCABULARY - 1]
    assert unknown and all(token.predicted_text is None for token in unknown)
    for token in tokens:
        assert token.target_text == WORDS[token.target]
        assert token.context_text == " ".join(WORDS[i] for i in token.context_ids if i is not None)
    assert len(texts) == 1 and "decode failed for [31]: IndexError: list index out of range" in texts[0]


def test_an_id_without_text_stands_in_its_context_as_its_number() -> None:
    """A context is not lost for one id in it; one without any text is none."""
    texts = Texts(lambda ids: "".join("abc"[i] for i in ids))
    with pytest.warns(RuntimeWarning, match=r"decode failed for \[7\]"):
        assert texts.of_all([0, 7, 2]) == "a<7>c"
    assert texts.of_all([0, 2]) == "ac" and texts.of_all([]) == "" and texts.of_all([7, 9]) is None


@pytest.mark.parametrize(
    ("decode", "kind"),
    [
        (lambda ids: [str(i) for i in ids], "list"),
        (lambda ids: b"abc", "bytes"),
        (lambda ids: None, "NoneType"),
        (lambda ids: np.array(ids), "ndarray"),
        (lambda ids: ids[0], "int"),
    ],
    ids=["list", "bytes", "None", "array", "int"],
)
def test_a_decode_that_gives_no_str_costs_texts_only(
    decode: Callable[[list[int]], Any], kind: str, tmp_path: Path
) -> None:
    """Every window is in TensorBoard, every alert in the journal, and one warning says what decode has to return."""
    heard, texts = watched(decode, tmp_path)
    assert heard and all(t.context_text is None and t.target_text is None for alert in heard for t in alert.worst)
    assert curves(tmp_path)["train/cross_entropy"] == list(range(5))
    assert len([row for row in read_journal(tmp_path) if row["kind"] == "alert"]) == len(heard)
    assert len(texts) == 1 and f"decode has to return a str, got {kind} for [" in texts[0]
    assert "give decode=lambda ids: tokenizer.decode(ids)" in texts[0]


def test_a_decode_that_is_no_callable() -> None:
    """It is an error where it is given."""
    with pytest.raises(TypeError, match="decode is a callable, ids -> str, got 'utf-8'; write decode=tokenizer.decode"):
        pplmon.Monitor(decode="utf-8")  # type: ignore[arg-type]


HOSTILE = [
    "<script>alert(1)</script>",
    "| a |\n|---|",
    "\ud83d",
    "\x1b[31m",
    "`**_[x](http://h)",
    "x" * 20_000,
    "\u202e",
    "<!channel>",
]


def test_long_and_hostile_texts_stay_short_text_everywhere_but_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard, the console and a W&B run get every alert at a length for reading, as text; the journal has the whole."""
    import wandb
    from rich.console import Console as Rich
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("DIR", str(tmp_path))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()
    run = wandb.init(project="p")

    def rule(report: pplmon.Report) -> pplmon.Alert | None:
        told = "".join(HOSTILE)
        return pplmon.Alert(told, told) if report.stage == "train" else None

    printed = Rich(width=100, file=open(tmp_path / "console", "w", encoding="utf-8"))  # noqa: SIM115 - closed below
    sinks = [
        pplmon.sinks.TensorBoard(tmp_path),
        pplmon.sinks.Journal(tmp_path),
        pplmon.sinks.WandB(run),
        pplmon.sinks.Console(printed),
    ]
    decode = lambda ids: "".join(HOSTILE[i % len(HOSTILE)] for i in ids)  # noqa: E731
    monitor = pplmon.Monitor(every_n_steps=1, alerts=[rule], decode=decode, sinks=sinks)
    torch.manual_seed(0)
    monitor.observe(torch.randn(2, 20, VOCABULARY), torch.randint(0, VOCABULARY, (2, 20)))
    monitor.step()
    monitor.close()
    run.finish()
    printed.file.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    (text,) = [events.Tensors(tag)[0] for tag in events.Tags()["tensors"] if "alerts" in tag]
    written = text.tensor_proto.string_val[0].decode()
    assert len(written) < 20_000 and "<script" not in written and "`**_[x]" not in written and "\x1b" not in written
    shown = (tmp_path / "console").read_text(encoding="utf-8")
    assert shown.count("\n") < 250 and "\x1b" not in shown and "\u202e" not in shown and "(20," in shown
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    (alert,) = finished(path).alerts
    assert len(alert.text) < 5_000 and "<!channel>" not in alert.text and "<script" not in alert.text
    (row,) = [row for row in read_journal(tmp_path) if row["kind"] == "alert"]
    assert row["rule"] == "".join(HOSTILE) and any("x" * 20_000 in (w.get("context_text") or "") for w in row["worst"])
