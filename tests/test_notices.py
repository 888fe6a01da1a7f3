"""Who hears of a notice, a warning and a critical alert: handlers, sinks and the loggers' own alerts."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import wandb
from rich.console import Console as RichConsole
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pplmon
from pplmon import Alert, Monitor, Report
from pplmon.report.worst import WorstSequence, WorstToken
from pplmon.sinks import Console, Journal, Sink, TensorBoard, WandB, read_journal
from pplmon.trainers.lightning.logger import LightningLogger
from tests.models import loader, make_module
from tests.test_monitor import one
from tests.test_sinks_wandb import finished

pl = pytest.importorskip("pytorch_lightning")

WORST = (WorstToken(loss=41.25, step=7, position=3, target=5),)
SEQUENCES = (WorstSequence(loss=9.5, tokens=33, step=7, sequence=2),)
NOTICE = Alert(
    "Spike", "step 7: it jumped", "cross_entropy", 7, severity="info", worst=WORST, worst_sequences=SEQUENCES
)


def in_turn(report: Report) -> Alert | None:
    """A rule that gives one alert of each severity, at steps 0, 1 and 2."""
    severities = ("info", "warning", "critical")
    return Alert("in_turn", "x", severity=severities[report.step]) if report.step < 3 else None


def run(**options: Any) -> list[tuple[str, str]]:
    """What a sink and a handler heard in five steps, in order."""
    heard: list[tuple[str, str]] = []

    class Ear(Sink):
        def alert(self, alert: Alert) -> None:
            heard.append(("alert", alert.severity))

        def notice(self, alert: Alert) -> None:
            heard.append(("notice", alert.severity))

    monitor = Monitor(
        alerts=[in_turn], sinks=[Ear()], on_alert=lambda alert: heard.append(("handler", alert.severity)), **options
    )
    for _ in range(5):
        monitor.observe(one(1.0, 2.0))
        monitor.step()
    monitor.close()
    return heard


@pytest.mark.parametrize(
    ("options", "marked"),
    [({}, 1), ({"min_severity": "warning"}, 1), ({"min_severity": "info"}, 0), ({"min_severity": "critical"}, 2)],
)
def test_handlers_hear_of_what_calls_a_person(options: dict[str, str], marked: int) -> None:
    """Of ``min_severity`` and more; what is below is for sinks to mark."""
    expected = [("notice", severity) for severity in ("info", "warning", "critical")[:marked]]
    for severity in ("info", "warning", "critical")[marked:]:
        expected += [("alert", severity), ("handler", severity)]
    assert run(**options) == expected


@pytest.mark.parametrize("make", [Monitor, pplmon.PerplexityMonitor])
def test_a_severity_that_is_none(make: Callable[..., object]) -> None:
    """It is refused when it is written."""
    with pytest.raises(ValueError, match="min_severity must be one of info, warning, critical, got 'all'"):
        make(min_severity="all")


def test_a_sink_that_knows_alerts_only_gets_notices_too() -> None:
    """A sink of the user's shows everything, unless it says what to do with a notice."""
    seen: list[Alert] = []

    class Plain(Sink):
        def alert(self, alert: Alert) -> None:
            seen.append(alert)

    Plain().notice(NOTICE)
    assert seen == [NOTICE]


def test_a_notice_never_stops_a_run() -> None:
    """Not even where handlers hear of notices: it takes a warning."""
    for rule, stops in (
        (pplmon.Above("cross_entropy", 0.5, severity="info"), False),
        (pplmon.Above("cross_entropy", 0.5), True),
    ):
        monitor = Monitor(alerts=[rule], on_alert=pplmon.Stop(), min_severity="info")
        for _ in range(3):
            monitor.observe(one(1.0, 2.0))
            monitor.step()
        monitor.close()
        assert monitor.should_stop is stops


def test_the_journal_has_notices_as_alerts_with_their_evidence(tmp_path: Path) -> None:
    """``kind: alert``, severity "info": a replay finds them where it finds the others."""
    rule = pplmon.Above("max_token_loss", 3.0, severity="info")
    monitor = Monitor(alerts=[rule], sinks=[Journal(tmp_path)])
    for losses in ((1.0, 2.0), (1.0, 9.0)):
        monitor.observe(one(*losses))
        monitor.step()
    monitor.close()
    (row,) = [row for row in read_journal(tmp_path) if row["kind"] == "alert"]
    assert (row["severity"], row["step"], row["worst"][0]["loss"]) == ("info", 1, 9.0)


def a_console() -> tuple[Console, StringIO]:
    """A console, and what it printed."""
    out = StringIO()
    return Console(RichConsole(file=out, width=60, color_system=None)), out


def test_a_notice_is_one_line_on_the_console() -> None:
    """What happened and the worst sequence, else the worst token; escapes in it are shown, not obeyed."""
    sink, out = a_console()
    sink.notice(NOTICE)
    sink.notice(Alert("r", "a\x1b[31m\nb", severity="info", worst=WORST))
    sink.notice(Alert("r", "without evidence", severity="info"))
    assert out.getvalue().splitlines() == [
        "pplmon notice: step 7: it jumped. Worst sequence: sequence 2, 9.5 nats per token over 33 tokens.",
        r"pplmon notice: a\x1b[31m b. Worst token: step 7, sequence 0, position 3.",
        "pplmon notice: without evidence.",
    ]


def test_the_console_names_the_rules_in_force() -> None:
    """``alerts=[…]`` replaces the default set: whoever did so sees what is left."""
    for alerts, line in (
        ([pplmon.Above("max_token_loss", 40.0), in_turn], "Above('max_token_loss', 40), "),
        ([], "none (alerts=[])"),
        (None, ", ".join(map(repr, pplmon.default_alerts()))),
    ):
        sink, out = a_console()
        monitor = Monitor(alerts=alerts, sinks=[sink])  # type: ignore[arg-type]
        monitor.observe(one(1.0, 2.0))
        monitor.step()
        monitor.close()
        assert out.getvalue().startswith(f"pplmon: rules in force: {line}")
        assert out.getvalue().count("rules in force") == 1


def test_tensorboard_has_notices_among_its_alerts(tmp_path: Path) -> None:
    """As text, with severity and evidence."""
    sink = TensorBoard(tmp_path)
    sink.notice(NOTICE)
    sink.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    (event,) = events.Tensors("pplmon/alerts/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 7 and "**notice**" in text and "41.25" in text


def test_wandb_marks_a_notice_and_sends_no_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its evidence stands in the history at its step; nobody is called."""
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("DIR", str(tmp_path))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()
    sink = WandB(project="p")
    sink.notice(NOTICE)
    sink.close()
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    found = finished(path)
    wandb.teardown()
    (row,) = [row for row in found.history if row.get("pplmon/notices_total") == 1]
    assert row["trainer/global_step"] == 7 and row["pplmon/alerts_total"] == 0
    assert not found.alerts


def test_a_logger_that_has_only_alerts_is_spared_notices() -> None:
    """As trackio's: its ``alert`` calls a person."""
    called: list[dict[str, Any]] = []

    class Experiment:
        def alert(self, title: str, text: str, level: str) -> None:
            called.append({"title": title, "level": level})

    class Logger:
        experiment = Experiment()

    sink = LightningLogger(Logger())
    sink.notice(NOTICE)
    assert called == []
    sink.alert(NOTICE)
    assert [call["level"] for call in called] == ["INFO"]


@pytest.mark.parametrize("least", ["info", "warning"])
def test_under_lightning(tmp_path: Path, least: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One sequence of one batch is bad: the journal and the event file have the notice; the handler only if it asked."""
    heard: list[Alert] = []
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[
            pplmon.PerplexityMonitor(
                alerts=[pplmon.Above("max_token_loss", 1.0, severity="info")], on_alert=heard.append, min_severity=least
            )
        ],
        logger=pl.loggers.TensorBoardLogger(tmp_path),
        max_epochs=1,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(make_module(pl.LightningModule), loader(8))
    rows = [row for row in read_journal(trainer.log_dir) if row["kind"] == "alert"]
    assert [row["severity"] for row in rows] == ["info"] and rows[0]["worst"]
    assert [alert.severity for alert in heard] == (["info"] if least == "info" else [])
    events = EventAccumulator(trainer.log_dir, size_guidance={"tensors": 0})
    events.Reload()
    assert len(events.Tensors("pplmon/alerts/text_summary")) == 1
    printed = capsys.readouterr().out
    assert "pplmon: rules in force: Above('max_token_loss', 1, severity='info')" in printed
    assert ("pplmon notice: step 0" in printed) == (least == "warning")
