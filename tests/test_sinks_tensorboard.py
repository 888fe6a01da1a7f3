"""TensorBoard, read back from the real event file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

import pplmon
from pplmon.alerts import Alert
from pplmon.report.report import Report
from pplmon.report.worst import WorstSequence, WorstToken
from pplmon.sinks.dashboards import CHARTS, COUNTS
from pplmon.sinks.tensorboard import TensorBoard

LAYOUT = "custom_scalars__config__"
TEXT = "pplmon/alerts/text_summary"


def read(directory: Path) -> Any:
    """Load every event; by default the accumulator keeps a sample only."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0})
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


RUN = {"pplmon": "1", "alerts": ["Spike('cross_entropy')", "a|b"], "logged_numbers": "core", "memory": {"rules": []}}


def test_scalars_alert_and_layout_are_in_the_file(tmp_path: Path) -> None:
    """Scalars at the report's step, the alert's text at its own, the settings and the layout once."""
    sink = TensorBoard(tmp_path)
    sink.start(RUN)
    sink.report(Report(5, "val"), {"val/perplexity": 9.0})
    sink.report(Report(6), {"train/cross_entropy": 2.5, "train/tokens_seen": 12})
    sink.alert(an_alert())
    sink.report(Report(8), {"train/cross_entropy": 2.25})
    sink.close()
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/cross_entropy")] == [(6, 2.5), (8, 2.25)]
    assert [(e.step, e.value) for e in events.Scalars("val/perplexity")] == [(5, 9.0)]
    assert [(e.step, e.value) for e in events.Scalars("train/tokens_seen")] == [(6, 12.0)]
    assert len(events.Tensors(LAYOUT)) == 1
    (text,) = events.Tensors(TEXT)
    assert text.step == 7
    body = text.tensor_proto.string_val[0].decode()
    assert "train/cross\\_entropy jumped" in body and "| 41.25 |" in body and "| 9.5 nats per token | 33 |" in body
    assert r"'a\|b\\n'" in body
    (settings,) = events.Tensors("pplmon/settings/text_summary")
    said = settings.tensor_proto.string_val[0].decode()
    assert "**pplmon**: " in said and r"Spike('cross\_entropy'), a\|b" in said and "memory" not in said


def test_all_alerts_of_a_step_are_in_its_last_text(tmp_path: Path) -> None:
    """The server shows the last text of a step: of two alerts none is lost."""
    sink = TensorBoard(tmp_path)
    sink.start({})
    for step, rule in ((3, "first"), (3, "second"), (9, "third")):
        sink.alert(Alert(rule, f"{rule} text", step=step))
    sink.close()
    texts = {e.step: e.tensor_proto.string_val[0].decode() for e in read(tmp_path).Tensors(TEXT)}
    assert "first text" in texts[3] and "second text" in texts[3]
    assert "third text" in texts[9] and "first text" not in texts[9]


def test_alerts_and_notices_are_counted_apart_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    """The curves begin at what there was before, rise at the step of each alert, and reach the last window."""
    sink = TensorBoard(tmp_path)
    sink.start({"raised": {"alerts": 4, "notices": 1}})
    sink.report(Report(2), {})
    sink.alert(Alert("a", "t", step=5))
    sink.alert(Alert("a", "t", step=6, severity="info"))
    sink.report(Report(8), {})
    sink.close()
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("pplmon/alerts_total")] == [(2, 4), (5, 5), (6, 5), (8, 5)]
    assert [e.value for e in events.Scalars("pplmon/notices_total")] == [1, 1, 2, 2]


def test_the_losses_of_all_tokens_are_a_histogram(tmp_path: Path) -> None:
    """Its counts are the tokens', its highest edge the largest loss, whatever the other tokens are."""
    losses = torch.tensor([[0.001, 0.5, 2.0, 2.1, 41.25]])
    tally = pplmon.TokenTally()
    tally.update(pplmon.TokenStats.from_losses(losses, torch.zeros(1, 5, dtype=torch.long)))
    sink = TensorBoard(tmp_path)
    sink.start({})
    sink.report(tally.report(step=7, stage="train"), {})
    sink.close()
    (drawn,) = read(tmp_path).Histograms("train/token_loss")
    value = drawn.histogram_value
    assert (drawn.step, value.num, value.max) == (7, 5, 41.25)
    assert value.sum == pytest.approx(losses.sum().item(), rel=1e-6)
    assert [c for c in value.bucket if c] == [1, 1, 2, 1]
    assert len(value.bucket) == len(value.bucket_limit) and value.bucket_limit == sorted(value.bucket_limit)


def test_epochs_have_tags_of_their_own(tmp_path: Path) -> None:
    """One dot an epoch would fill the page of windows; what callbacks monitor is not renamed."""
    sink = TensorBoard(tmp_path)
    sink.start({})
    sink.report(Report(9, "train_epoch"), {"lm/train/perplexity_epoch": 3.0, "pplmon/train/token_accuracy_epoch": 0.5})
    sink.close()
    tags = read(tmp_path).Tags()["scalars"]
    assert {"lm/train_epoch/perplexity", "pplmon/train_epoch/token_accuracy"} <= set(tags)
    assert not [tag for tag in tags if tag.endswith("_epoch")]


def test_charts_find_the_keys(tmp_path: Path) -> None:
    """Each chart's regex takes the key of its one number (also per loader, or moved aside to pplmon/), and no others."""
    sink = TensorBoard(tmp_path)
    sink.start({"prefix": "lm.1/", "logged_numbers": "all"})
    sink.close()
    found = charts(read(tmp_path))
    assert next(iter(found)) == "Alerts so far" and re.match(found["Alerts so far"], "pplmon/lm.1/alerts_total")
    perplexity = re.compile(found["Perplexity, val"])
    for key in ("val/perplexity", "val/perplexity/dataloader_idx_1"):
        assert perplexity.match(f"lm.1/{key}") and perplexity.match(f"pplmon/lm.1/{key}")
    for key in ("val/perplexity", "lm.1/train/perplexity", "lmx1/val/perplexity", "lm.1/val/perplexity_epoch"):
        assert not perplexity.match(key)
    keys = [f"lm.1/train/{name}" for chart in CHARTS for name in chart.names]
    for title, regex in list(found.items())[len(COUNTS) :]:
        assert sum(bool(re.match(regex, key)) for key in keys) == (not title.split(" (")[0].endswith(", val"))


def test_only_charts_of_logged_numbers_are_laid_out(tmp_path: Path) -> None:
    """An empty chart tells a newcomer that something is broken."""
    sink = TensorBoard(tmp_path)
    sink.start(RUN)
    sink.close()
    titles = charts(read(tmp_path))
    assert "Token loss: worst sequence (nats)" in titles and "Token loss: median (nats)" not in titles


def test_a_given_writer_is_flushed_but_not_closed() -> None:
    """Its owner closes it. A SummaryWriter that is used after a close opens a second file, so its calls are recorded."""
    writer = Recorder()
    sink = TensorBoard(writer=writer)
    sink.report(Report(1, "val"), {"val/perplexity": 3.0})
    sink.close()
    assert writer.calls == ["add_scalar"] * 3 + ["flush"]


def test_an_alert_is_flushed_after_it_is_written() -> None:
    """The crash that it announces may be the next thing to happen; the writer itself would wait for two minutes."""
    writer = Recorder()
    TensorBoard(writer=writer).alert(an_alert())
    assert writer.calls == ["add_text", "add_scalar", "add_scalar", "flush"]
