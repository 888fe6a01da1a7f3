"""The words of the page: the verdict, the headline, the alerts with their evidence, and what tells runs apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

import pplmon
from pplmon.alerts import Alert
from pplmon.alerts.heatmap import heatmap
from pplmon.alerts.words import number, shown
from pplmon.page.compare import differences, differing
from pplmon.page.events import WITH_EVIDENCE, events
from pplmon.page.headline import headline, sparkline
from pplmon.page.runs import Run, find, read_runs
from pplmon.page.table import Table
from pplmon.page.verdict import verdict
from pplmon.report.worst import WorstSequence, WorstToken
from pplmon.sinks.alert_counts import AlertCounts
from tests.page_runs import write_run


def a_run(alerts: Sequence[Alert] = (), values: Sequence[float] = ()) -> Run:
    """A run of 100 steps whose max_sequence_loss is 2, and at its end ``values``."""
    losses = [2.0] * (100 - len(values)) + list(values)
    rows = {step: {"max_sequence_loss": loss, "token_accuracy": loss / 10} for step, loss in enumerate(losses)}
    table = Table.of(rows, ("max_sequence_loss", "token_accuracy"))
    return Run("a", Path("a/pplmon.jsonl"), datetime.now(timezone.utc), {}, {"train": table}, {}, list(alerts), None)


def spike(step: int, value: float = 9.0, severity: str = "warning", **more: Any) -> Alert:
    """An alert of ``Spike`` on max_sequence_loss, beyond 5."""
    return Alert("Spike", "jumped", "max_sequence_loss", step, "train", value, 5.0, severity, **more)


@pytest.mark.parametrize(
    ("run", "state", "text"),
    [
        (a_run(), "good", "Healthy: no alert in 100 steps."),
        (a_run([spike(60)]), "good", "Healthy, 1 spike at step 60."),
        (
            a_run([spike(60, blame_sequence=0.94, blame_token=0.02), spike(60)]),
            "good",
            "Healthy, 1 spike at step 60: one sequence explains 94 % of the jump.",
        ),
        (
            a_run([spike(60, blame_token=0.7)]),
            "good",
            "Healthy, 1 spike at step 60: one token explains 70 % of the jump.",
        ),
        (a_run([spike(20), spike(25), spike(60)]), "good", "Healthy, 2 spikes, at steps 20 and 60."),
        (
            a_run([spike(step, 6.0 + (step == 50)) for step in (10, 30, 50, 70)]),
            "good",
            "Healthy, 4 spikes from step 10 to 70, the highest at step 50.",
        ),
        (a_run([spike(60, severity="critical")]), "good", "Healthy again, 1 spike at step 60."),
        (
            a_run([spike(97, severity="info")], [9.0, 8.0, 8.5]),
            "good",
            "Healthy, 1 notice at step 97.",
        ),
        (
            a_run([spike(20, severity="info", blame_token=0.7), spike(60)]),
            "good",
            "Healthy, 1 spike at step 60; 1 notice at step 20: one token explains 70 % of the jump.",
        ),
        (
            a_run([spike(20, severity="info"), spike(21)]),
            "good",
            "Healthy, 1 spike at step 20; 1 notice at step 20.",
        ),
        (
            a_run([spike(97)], [9.0, 8.0, 8.5]),
            "bad",
            "Not healthy: train/max_sequence_loss went above its limit at step 97 and has not come back.",
        ),
        (
            a_run([spike(99)], [9.0]),
            "bad",
            "Not healthy: train/max_sequence_loss went above its limit at step 99 and has not come back.",
        ),
        (a_run([spike(97)], [9.0, 2.0, 2.0]), "good", "Healthy, 1 spike at step 97."),
        (
            a_run([Alert("Below", "fell", "token_accuracy", 60, "train", 0.1, 0.3)]),
            "bad",
            "Not healthy: train/token_accuracy went below its limit at step 60 and has not come back.",
        ),
        (
            a_run([Alert("Below", "fell", "token_accuracy", 60, "train", 0.1, 0.15)]),
            "good",
            "Healthy, 1 incident at step 60.",
        ),
        (a_run([Alert("mine", "look", step=60), spike(20)]), "good", "Healthy, 2 incidents, at steps 20 and 60."),
    ],
)
def test_the_verdict(run: Run, state: str, text: str) -> None:
    """One sentence: healthy or not, when it was not, and what explains it."""
    run.alerts.sort(key=lambda alert: alert.step or 0)
    assert (verdict(run).state, verdict(run).text) == (state, text)


def test_a_run_that_nothing_judged_is_not_called_healthy() -> None:
    """Nor one without numbers."""
    unjudged = a_run()
    unjudged = Run(**{**vars(unjudged), "settings": {"alerts": []}})
    assert verdict(unjudged).text == "No rule judged this run (100 steps, alerts=[])."
    assert verdict(Run(**{**vars(unjudged), "tables": {}})).text == "No numbers yet."


def test_a_run_too_short_for_its_rules_is_not_called_healthy() -> None:
    """Spike knows what is usual after 64 values; a shorter one, or one that was resumed with what it knew, is judged earlier."""
    rules = ["NonFinite()", "Unknown()", "Spike('cross_entropy')", "Spike('max_sequence_loss', window=200)"]

    def judged(steps: int, rules: list[str] = rules, resumed_at: int | None = None) -> tuple[str, str]:
        table = Table.of({step: {"max_sequence_loss": 2.0} for step in range(steps)}, ["max_sequence_loss"])
        settings = {"alerts": rules, "resumed_at": resumed_at}
        found = verdict(Run(**{**vars(a_run()), "tables": {"train": table}, "settings": settings}))
        return found.state, found.text

    short = "No alert in 64 steps, too few for the Spike rules: they judge from value 65 on."
    assert judged(64) == ("look", short)
    assert judged(65) == ("good", "Healthy: no alert in 65 steps.")
    assert judged(64, resumed_at=10)[0] == judged(64, ["NonFinite()"])[0] == "good"
    assert judged(20, ["Spike('cross_entropy', window=16, gap=4)"])[0] == "good"
    assert judged(3, ["Spike('cross_entropy', stage='val')"])[0] == "good"


def test_non_finite_losses_are_named() -> None:
    """They are not a matter of limits."""
    table = Table.of({step: {"nonfinite_tokens": step > 5} for step in range(9)}, ["nonfinite_tokens"])
    alert = Alert("NonFinite", "nan", "nonfinite_tokens", 6, "train", 1, 0, "critical")
    run = Run(**{**vars(a_run([alert])), "tables": {"train": table}})
    assert verdict(run).text == "Not healthy: losses are NaN or infinite since step 6."


def test_the_headline_has_the_journal_s_numbers(tmp_path: Path) -> None:
    """The last value and the best, or the highest and where; zero is said, too."""
    (run,) = read_runs([write_run(tmp_path)])
    rows = pplmon.sinks.read_journal(tmp_path)
    train = {row["step"]: row["numbers"] for row in rows if row["kind"] == "judged" and row["stage"] == "train"}
    tiles = {tile.title: tile for tile in headline(run)}
    best = min(train, key=lambda step: train[step]["perplexity"])
    assert tiles["perplexity, train"].value == number(train[99]["perplexity"])
    assert tiles["perplexity, train"].note == f"best {number(train[best]['perplexity'])}, step {best}"
    assert tiles["worst sequence"].value == f"{number(train[70]['max_sequence_loss'])} nats"
    assert tiles["worst sequence"].note.startswith("step 70; now ")
    assert (tiles["non-finite tokens"].value, tiles["non-finite tokens"].bad) == ("0", False)
    assert (tiles["alerts"].value, tiles["alerts"].note) == ("1", "at step 70")


def test_notices_are_counted_alike_everywhere() -> None:
    """Two rules that note one hard batch are two notices: in the verdict, on the tile, and in what loggers count."""
    noted = [spike(60, severity="info"), spike(60, severity="info")]
    run = a_run([*noted, spike(61)])
    (tile,) = [tile for tile in headline(run) if tile.title == "alerts"]
    assert (tile.value, tile.note) == ("1", "at step 61; 2 notices")
    assert verdict(run).text == "Healthy, 1 spike at step 60; 2 notices at step 60."
    counts = AlertCounts()
    for alert in run.alerts:
        counts.add(alert)
    assert counts.curves() == {"pplmon/alerts_total": 1, "pplmon/notices_total": 2}


def test_a_small_line_keeps_a_spike() -> None:
    """One point among a thousand is still its highest."""
    line = sparkline([(step, 100.0 if step == 777 else 1.0) for step in range(1000)])
    heights = {float(point.split(",")[1]) for point in line.split()}
    assert heights == {0.0, 28.0}
    assert len(line.split()) <= 120
    assert sparkline([(0, 1.0)]) == ""


def token(position: int, loss: float = 9.0, sequence: int = 0, **more: Any) -> WorstToken:
    """A worst token in the middle of five."""
    ids = tuple(range(position - 2, position + 3))
    losses = (1.0, None, loss, 0.5, 3.0)
    pieces = tuple(f"<{i}>" for i in ids)
    given = {"context_ids": ids, "context_losses": losses, "context_pieces": pieces} | more
    return WorstToken(
        loss, position=position, sequence=sequence, target=position, predicted=7, predicted_text="x", **given
    )


def test_contexts_of_one_sequence_are_one_map() -> None:
    """Where they overlap each token stands once; a gap parts stretches; another sequence is another map."""
    maps = heatmap([token(10), token(12), token(30), token(11, sequence=1)])
    assert [len(text.stretches) for text in maps] == [2, 1]
    first, second = maps[0].stretches
    assert [cell.text for cell in first] == [f"<{i}>" for i in range(8, 15)]
    assert [cell.worst for cell in first] == [False, False, True, False, True, False, False]
    assert [cell.text for cell in second] == [f"<{i}>" for i in range(28, 33)]


def test_a_cell_tells_what_is_known() -> None:
    """Its shade is of its probability; a token that was not scored is grey; a worst one knows target and prediction."""
    (cells,) = heatmap([token(10)])[0].stretches
    assert [cell.shade for cell in cells] == ["h1", "un", "h4", "h0", "h2"]
    assert (cells[0].loss, cells[0].probability, cells[0].predicted) == ("1", "0.37", "")
    worst = cells[2]
    assert (worst.target, worst.predicted, worst.probability) == ("token 10", "“x” (token 7)", "0.00012")
    (cells,) = heatmap([token(10, math.nan)])[0].stretches
    assert (cells[2].shade, cells[2].loss, cells[2].probability) == ("nf", "NaN", "")


def test_one_cell_of_a_map_is_the_gravest() -> None:
    """A page opens on it: the worst token of the sequence, not the first of the worst ones that a reader comes to."""
    (stretch,) = heatmap([token(12, 9.5), token(10)])[0].stretches
    assert [cell.text for cell in stretch if cell.gravest] == ["<12>"]
    assert [cell.text for cell in stretch if cell.worst] == ["<10>", "<12>"]


def test_without_texts_ids_stand_there() -> None:
    """A journal of a run without decode, or of an older version, is shown as well as it can be."""
    (cells,) = heatmap([token(10, context_pieces=None)])[0].stretches
    assert [cell.text for cell in cells] == ["#8 ", "#9 ", "#10 ", "#11 ", "#12 "]
    text = heatmap([token(10, context_pieces=None, context_text="a whole")])[0]
    assert text.wholes == ["a whole"]
    assert heatmap([WorstToken(3.0, position=5, target=8)])[0].stretches[0][0].text == "#8 "


def test_a_long_piece_is_cut_and_the_whole_is_beside_it() -> None:
    """A line of the map stays short, whatever a token's text is."""
    pieces = ("a", "b\n", "c" * 200, "\t", "\x1b")
    text = heatmap([token(10, context_pieces=pieces, context_text="whole" * 10_000)])[0]
    shown_pieces = [cell.text for cell in text.stretches[0]]
    assert shown_pieces == ["a", "b⏎", "c" * 40 + "… (200 characters)", "⇥", "\\x1b"]
    assert len(text.wholes[0]) < 20_100 and text.wholes[0].endswith("… (50,000 characters)")


def test_text_is_visible_and_bounded() -> None:
    """An escape sequence, an invisible direction mark and half a character are seen as what they are."""
    assert shown("a\x1b[31m\u202e\ud800") == "a\\x1b[31m\\u202e\\ud800"
    assert shown("x" * 500, 5) == "xxxxx… (500 characters)"


def test_alerts_of_one_step_are_one_event_with_its_evidence(tmp_path: Path) -> None:
    """Blame, address, the worst sequences, and the files that actions saved, wherever they were told to."""
    write_run(tmp_path / "run", on_alert=[pplmon.SaveBatch(tmp_path / "elsewhere")])
    (tmp_path / "run/alerts").mkdir()
    (tmp_path / "run/alerts/Above-max_sequence_loss-step=70.ckpt").touch()
    (tmp_path / "run/alerts/Above-max_sequence_loss-step=7.ckpt").touch()
    (run,) = read_runs(find([tmp_path / "run"]))
    (event,) = events(run, 3)
    assert (event.key, event.step, event.stage, event.severity, event.open) == ("e3-0", 70, "train", "warning", True)
    assert event.address == "step 70, sequence 3, sample 7003"
    assert event.sequences[0].startswith("12.47 nats per token over 31 tokens: sequence 3, sample 7003")
    batch = tmp_path / "elsewhere/Above-max_sequence_loss-step=70-rank=0.pt"
    assert batch.is_file()
    assert event.files == [("checkpoint", "alerts/Above-max_sequence_loss-step=70.ckpt"), ("batch", str(batch))]


def test_alerts_at_one_step_share_their_evidence() -> None:
    """Two rules that fire together are one event, as grave as the graver of them."""
    worst = (WorstSequence(12.0, 8, sequence=3),)
    run = a_run([spike(60, blame_sequence=0.9, worst_sequences=worst), spike(60, severity="critical"), spike(80)])
    first, second = events(run, 0)
    assert (first.severity, len(first.sayings), first.blame) == (
        "critical",
        2,
        ["The worst sequence explains 90% of the jump of the cross-entropy."],
    )
    assert first.address == "step 0, sequence 3"
    assert (first.open, second.open) == (True, False)


def test_of_very_many_events_the_gravest_have_their_evidence() -> None:
    """All are listed, and a page does not grow without bound."""
    many = [spike(step * 20, 9.0 + (step == 5), worst=(token(10),)) for step in range(WITH_EVIDENCE + 20)]
    listed = events(a_run(many), 0)
    assert len(listed) == len(many)
    assert sum(not event.bare for event in listed) == WITH_EVIDENCE
    assert [event.step for event in listed if event.open] == [100]
    assert all(event.bare == (event.texts == []) for event in listed)


def test_runs_are_compared_number_by_number(tmp_path: Path) -> None:
    """The better value of each is marked, and settings that differ stand beside each other."""
    write_run(tmp_path / "a", spike=None)
    write_run(tmp_path / "b", level=2.2, on_alert=[pplmon.SaveBatch(tmp_path / "b")])
    runs = read_runs(find([tmp_path]))
    lines = {line.title: line for line in differences(runs)}
    assert lines["steps"].values == ["100", "100"]
    assert lines["steps"].best == [False, False]
    assert lines["val/perplexity, last"].best == [True, False]
    assert lines["train/token_accuracy, last"].best == [True, False]
    assert lines["alerts"].values == ["0", "1"] and lines["notices"].values == ["0", "0"]
    assert "–" not in lines["train/worst_1pct_loss, highest"].values  # known of a run that no alert was about it, too
    assert lines["train/max_sequence_loss, highest"].best == [True, False]
    assert differing(runs) == {}
    changed = Run(**{**vars(runs[1]), "settings": {**runs[1].settings, "every_n_steps": 20, "note": "x" * 5000}})
    found = differing([runs[0], changed])
    assert found["every_n_steps"] == ["10", "20"]
    assert found["note"][0] == "–" and len(found["note"][1]) < 700


def test_of_runs_of_unlike_length_no_highest_is_the_best(tmp_path: Path) -> None:
    """A longer run had more steps to have a hard one in; last values are compared all the same."""
    write_run(tmp_path / "a", steps=60, spike=None)
    write_run(tmp_path / "b", steps=100)
    lines = {line.title: line for line in differences(read_runs(find([tmp_path])))}
    assert len(set(lines["train/max_sequence_loss, highest"].numbers)) == 2
    assert lines["train/max_sequence_loss, highest"].best == [False, False]
    assert any(lines["train/perplexity, last"].best)
