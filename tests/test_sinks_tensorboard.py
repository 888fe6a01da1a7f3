"""TensorBoard, read back from the real event file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from pplmon.alerts import Alert
from pplmon.report.report import Report
from pplmon.report.worst import WorstSequence, WorstToken
from pplmon.sinks.tensorboard import TensorBoard

LAYOUT = "custom_scalars__config__"
TEXT = "pplmon/alerts/text_summary"


def read(directory: Path) -> Any:
    """Load every event; by default the accumulator keeps a sample only."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def charts(events: Any) -> dict[str, str]:
    """Return the regex of each chart in the layout."""
    layout = layout_pb2.Layout.FromString(events.Tensors(LAYOUT)[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["pplmon"]
    return {chart.title: chart.multiline.tag[0] for chart in layout.category[0].chart}


def an_alert() -> Alert:
    """An alert with both kinds of evidence."""
    return Alert(
        "Spike",
        "step 7: train/cross_entropy jumped",
        step=7,
        worst=(WorstToken(loss=41.25, position=99, target_text="a|b\n"),),
        worst_sequences=(WorstSequence(loss=9.5, tokens=33),),
    )


class Recorder:
    """A writer that only remembers what it was asked to do."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.calls.append(name)


def test_exactly_one_of_log_dir_and_writer() -> None:
    """Neither and both are errors that say what to give."""
    for log_dir, writer in ((None, None), ("a", Recorder())):
        with pytest.raises(ValueError, match="exactly one of log_dir and writer"):
            TensorBoard(log_dir, writer)


def test_nothing_is_made_before_first_use(tmp_path: Path) -> None:
    """A sink that is never used leaves no event file."""
    TensorBoard(tmp_path / "a").close()
    assert list(tmp_path.iterdir()) == []


def test_scalars_alert_and_layout_are_in_the_file(tmp_path: Path) -> None:
    """Scalars at the report's step, the alert's markdown at its own, and the layout once."""
    sink = TensorBoard(tmp_path)
    sink.report(Report(5, "val"), {"val/perplexity": 9.0})
    sink.report(Report(6), {"train/cross_entropy": 2.5, "train/tokens_seen": 12})
    sink.report(Report(8), {"train/cross_entropy": 2.25})
    sink.alert(an_alert())
    sink.close()
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/cross_entropy")] == [(6, 2.5), (8, 2.25)]
    assert [(e.step, e.value) for e in events.Scalars("val/perplexity")] == [(5, 9.0)]
    assert [(e.step, e.value) for e in events.Scalars("train/tokens_seen")] == [(6, 12.0)]
    assert len(events.Tensors(LAYOUT)) == 1
    (text,) = events.Tensors(TEXT)
    assert text.step == 7
    body = text.tensor_proto.string_val[0].decode()
    assert "train/cross_entropy jumped" in body and "| 41.25 |" in body and "| 9.5 | 33 |" in body
    assert r"'a\|b\\n'" in body


def test_charts_find_the_keys(tmp_path: Path) -> None:
    """Each chart's regex takes its keys (also per loader, or moved aside to pplmon/), and no others."""
    sink = TensorBoard(tmp_path)
    sink.layout(["lm.1/train/cross_entropy", "pplmon/lm.1/train/perplexity"])
    sink.close()
    found = charts(read(tmp_path))
    perplexity = re.compile(found["perplexity"])
    for key in ("train/perplexity", "val/perplexity", "val/perplexity/dataloader_idx_1"):
        assert perplexity.match(f"lm.1/{key}") and perplexity.match(f"pplmon/lm.1/{key}")
    for key in ("train/perplexity", "lm.1/train/perplexity_epoch", "lmx1/train/perplexity", "lm.1/test/perplexity"):
        assert not perplexity.match(key)
    loss = re.compile(found["token loss (nats)"])
    named = ["cross_entropy", "token_loss_p99", "worst_1pct_loss", "max_token_loss", "perplexity"]
    assert [bool(loss.match(f"lm.1/train/{name}")) for name in named] == [True] * 4 + [False]
    assert re.match(found["non-finite tokens"], "lm.1/train/nonfinite_tokens")
    assert re.match(found["sequence loss (nats per token)"], "lm.1/train/max_sequence_loss")
    assert re.match(found["accuracy"], "lm.1/val/token_accuracy")


def test_layout_waits_for_train_keys(tmp_path: Path) -> None:
    """A sanity check's val keys, which could come under another prefix, do not fix the layout."""
    sink = TensorBoard(tmp_path)
    sink.layout(["pplmon/val/perplexity", "lr"])
    sink.layout(["train/perplexity"])
    sink.layout(["other/train/perplexity"])
    sink.close()
    events = read(tmp_path)
    assert len(events.Tensors(LAYOUT)) == 1
    assert re.match(charts(events)["perplexity"], "val/perplexity")


def test_layout_and_alert_stand_without_scalars(tmp_path: Path) -> None:
    """Under Lightning the scalars go through its logger: ours must not be written a second time."""
    sink = TensorBoard(tmp_path)
    sink.layout({"train/perplexity": 3.0})
    sink.alert(an_alert())
    sink.close()
    assert read(tmp_path).Tags()["scalars"] == []


def test_a_given_writer_is_flushed_but_not_closed() -> None:
    """Its owner closes it. A SummaryWriter that is used after a close opens a second file, so its calls are recorded."""
    writer = Recorder()
    sink = TensorBoard(writer=writer)
    sink.report(Report(1, "val"), {"val/perplexity": 3.0})
    sink.close()
    assert writer.calls == ["add_scalar", "flush"]


def test_an_alert_is_flushed_after_it_is_written() -> None:
    """The crash that it announces may be the next thing to happen; the writer itself would wait for two minutes."""
    writer = Recorder()
    TensorBoard(writer=writer).alert(an_alert())
    assert writer.calls == ["add_text", "flush"]
