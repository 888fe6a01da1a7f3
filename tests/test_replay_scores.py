"""Incidents, rates and suggested thresholds, on series whose answers are known; and the command itself."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pplmon import cli, replay
from pplmon.replay.judge import Fired
from pplmon.replay.read.series import Given, Row, Segment, Series
from pplmon.replay.score import Incident, Watch
from pplmon.replay.suggest import check_rate
from pplmon.sinks import Journal
from tests.launch import run_script


def series_of(values: Sequence[float], name: str = "cross_entropy", every: int = 1) -> Series:
    """One run of one number."""
    rows = [Row(step * every, "train", Given({name: value})) for step, value in enumerate(values)]
    return Series(Path("a"), "csv", [Segment(rows)])


def judged(series: Series, text: str) -> list[Fired]:
    """Replay one rule."""
    return replay.run(series, replay.Rules([text], series)).fired


def scored(series: Series, text: str, *incidents: str) -> replay.Score:
    """Score one rule."""
    watch = Watch(series, [*map(Incident.parse, incidents)])
    return watch.score(text, judged(series, text))


ABOVE = "Above('cross_entropy', 5)"


def high_at(*steps: int, length: int = 10_000) -> list[float]:
    """Twos, with nines at these steps."""
    return [9.0 if step in steps else 2.0 for step in range(length)]


def test_alarms_within_200_values_are_one_event() -> None:
    """Counted from an event's first alarm."""
    score = scored(series_of(high_at(1000, 1100, 1200, 1201, 1300, 5000)), ABOVE)
    assert (score.pages, score.notices, score.events, score.false_events) == (5, 0, 3, 3)
    assert score.quiet_steps == score.quiet_values == 10_000
    assert score.recall is None and score.delay is None
    assert score.false_per_100k_steps == score.false_per_100k_values == 30.0


def test_notices_are_counted_apart() -> None:
    """They are no events and no false alarms, and an incident that only they told is noticed and not caught."""
    text = "Above('cross_entropy', 5, severity='info')"
    score = scored(series_of(high_at(1000, 1500)), text, "1000")
    assert (score.pages, score.notices, score.events, score.false_events) == (0, 2, 0, 0)
    assert (score.caught, score.noticed, score.recall, score.delay) == (0, 1, 0.0, None)
    both = Watch(series_of(high_at(1000)), [Incident(1000, 1000)]).score(
        "", [*judged(series_of(high_at(1000)), text), *judged(series_of(high_at(1003)), ABOVE)]
    )
    assert (both.pages, both.notices, both.caught, both.noticed, both.delay) == (1, 1, 1, 1, 3)


def test_incidents_give_recall_delay_and_false_alarms() -> None:
    """A step, a range; one caught late, one missed; steps that an incident takes are not quiet."""
    values = high_at(500, 2003, 3100, 3250, 7000)
    score = scored(series_of(values), ABOVE, "2000", "3000-3150", "9000")
    assert (score.incidents, score.caught, score.delays, score.recall, score.delay) == (3, 2, (3, 100), 2 / 3, 51.5)
    assert score.quiet_steps == 10_000 - 201 - 351 - 201
    assert score.false_events == 2 and score.false_per_100k_steps == pytest.approx(2e5 / score.quiet_steps)
    assert score.quiet_values == score.quiet_steps
    # What follows an alarm of the incident within 200 steps belongs to it; one step later does not.
    assert scored(series_of(high_at(2100, 2300)), ABOVE, "2000").false_events == 0
    assert scored(series_of(high_at(2100, 2301)), ABOVE, "2000").false_events == 1
    # An alarm shortly before an incident is no foresight: it is false, though the incident is caught.
    early = scored(series_of(high_at(1950, 2003)), ABOVE, "2000")
    assert (early.caught, early.delays, early.false_events) == (1, (3,), 1)


def test_incidents_may_overlap_and_lie_at_the_edges() -> None:
    """No step is taken twice, and none that is not there."""
    series = series_of(high_at(50))
    assert Watch(
        series, [Incident(0, 0), Incident(100, 300), Incident(150, 200), Incident(9_990, 99_999)]
    ).quiet_steps == (10_000 - 501 - 10)
    with pytest.raises(replay.ReplayError, match="the run has steps 0 to 9999 only"):
        Watch(series, [Incident(10_000, 10_001)])


@pytest.mark.parametrize("every", [1, 10, 50, 200])
def test_rows_further_apart(every: int) -> None:
    """Lengths count judged values, whatever the steps between them, so events are the same; a rate is given per both."""
    series = series_of(high_at(4, 104, 204, 206, 500, length=1000), every=every)
    score = scored(series, ABOVE)
    assert score.events == 3 and score.quiet_values == 1000 and score.quiet_steps == 999 * every + 1
    assert score.false_per_100k_values == 300.0
    assert score.false_per_100k_steps == pytest.approx(3e5 / score.quiet_steps)
    marked = scored(series, ABOVE, f"{400 * every}-{410 * every}")
    assert (marked.caught, marked.delays, marked.quiet_values) == (1, (100 * every,), 1000 - 211)


def test_a_rate_is_by_the_values_that_the_rule_judged() -> None:
    """A rule on val has one value a pass, also of each of several data sets: the rows of training are none of its."""
    rows = [Row(step, "train", Given({"cross_entropy": 2.0})) for step in range(20)]
    passes = [Row(step, part, Given({"cross_entropy": 9.0})) for step in (9, 19) for part in ("val/a", "val/b")]
    series = Series(Path("a"), "csv", [Segment(sorted([*rows, *passes], key=lambda row: row.step))])
    texts = ["Above('cross_entropy', 5, stage='val')", "Above('cross_entropy', 8)"]
    val, train, both = replay.scores(Watch(series), replay.run(series, replay.Rules(texts, series)))
    assert [score.quiet_values for score in (val, train, both)] == [4, 20, 24]
    assert val.false_events == both.false_events == 1 and train.false_events == 0
    assert val.false_per_100k_values == 25_000


def test_a_repeated_step_counts_once() -> None:
    """An alert that a resumed run repeated is no second event, and of several runs each has its own steps."""
    first = [
        Row(step, "train", Given({"cross_entropy": value})) for step, value in enumerate(high_at(700, length=1000))
    ]
    again = [Row(step, "train", Given({"cross_entropy": 2.0})) for step in range(600, 1500)]
    live: dict[str, Any] = {"rules": ("Above('cross_entropy', 5)",)}
    resumed = Segment(again, resumed_at=600, **live)
    series = Series(Path("a"), "journal", [Segment(first, **live), resumed, Segment(first, **live)])
    result = replay.run(series, replay.Rules(["live"], series))
    assert [(f.run, f.alert.step, f.repeated) for f in result.fired] == [(0, 700, True), (1, 700, False)]
    score = Watch(series).score("", result.fired)
    assert (score.pages, score.events, score.quiet_steps) == (2, 1, 2500)
    given = judged(series, "Above('cross_entropy', 4)")  # sees what counts in the end only
    assert [(f.run, f.alert.step) for f in given] == [(1, 700)]


@pytest.mark.parametrize("text", ["", "x", "5-3", "-5", "1-2-3", "1.5"])
def test_an_incident_that_is_none(text: str) -> None:
    """The error says how it is written."""
    with pytest.raises(replay.ReplayError, match="--incident"):
        Incident.parse(text)


@pytest.mark.parametrize("rate", [0, -1, 501, float("nan")])
def test_a_rate_that_cannot_be(rate: float) -> None:
    """Alarms within 200 judged values are one: 500 in 100,000 at most."""
    with pytest.raises(replay.ReplayError, match="at most 500"):
        check_rate(rate)


def noise(seed: int, length: int, kind: str) -> Series:
    """Gaussian or exponential noise around a level."""
    draw = random.Random(seed)
    values = [10 + draw.gauss(0, 0.1) if kind == "gauss" else draw.expovariate(1) for _ in range(length)]
    return series_of(values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "text", "steps", "rate"),
    [
        ("exponential", "Above('cross_entropy', 1)", 100_000, 20.0),
        ("exponential", "Above('cross_entropy', 1, for_steps=2)", 100_000, 20.0),
        ("gauss", "Below('cross_entropy', 1)", 100_000, 20.0),
        ("exponential", "Above('cross_entropy', 1)", 10_000, 5.0),  # beyond the data: half an alarm is wanted
        ("exponential", "Spike('cross_entropy', window=32, gap=4)", 30_000, 80.0),
    ],
)
def test_a_suggested_threshold_gives_the_wanted_rate(kind: str, text: str, steps: int, rate: float) -> None:
    """On held-out noise, within what chance allows."""
    series = noise(1, steps, kind)
    watch = Watch(series)
    (rule,) = replay.Rules([text], series).metric_rules().values()
    found = replay.suggest(rule, rate, series, watch)
    assert found.suggested is not None and found.false_events is not None
    assert found.false_events <= max(1, rate * steps / 1e5)
    other = noise(2, 100_000, kind)
    got = Watch(other).score("", judged(other, found.suggested)).false_per_100k_values
    assert got is not None and rate / 2.5 < got < rate * 2.5, (found, got)
    assert ("extrapolated" in found.note) == (steps == 10_000)


def test_incidents_do_not_shift_a_suggestion() -> None:
    """Their steps are left out, and a suggestion says when the data do not tell."""
    values = [1 + step % 1000 / 1000 for step in range(5000)]
    for step in range(2000, 2100):
        values[step] = 50.0
    series = series_of(values)
    rule = replay.parse_rule("Above('cross_entropy', 10)")
    marked = replay.suggest(rule, 100, series, Watch(series, [Incident(2000, 2100)]))
    assert marked.suggested == "Above('cross_entropy', 1.999)" and marked.false_events == 0
    unmarked = replay.suggest(rule, 100, series, Watch(series))
    assert unmarked.suggested == "Above('cross_entropy', 50)"
    short = series_of(values[:500])
    nothing = replay.suggest(rule, 3, short, Watch(short))
    assert nothing.suggested is None and "at least 1000" in nothing.note
    spike = replay.suggest(replay.parse_rule("Spike('cross_entropy')"), 3, short, Watch(short))
    assert spike.suggested is not None and "500 quiet values show no rate below 200 per 100k" in spike.note
    bad = replay.parse_rule("NonFinite()")
    assert replay.suggest(bad, 3, series, Watch(series)).suggested is None


# The command.


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A run of 3000 steps with one spike, at 2000."""
    draw = random.Random(0)
    sink = Journal(tmp_path / "run")
    sink.start({"alerts": ["Spike('cross_entropy')"], "resumed_at": None})
    for step in range(3000):
        numbers = {"cross_entropy": 2 + draw.gauss(0, 0.05) + 5 * (step == 2000), "nonfinite_tokens": 0, "tokens": 64}
        sink.judged(Row(step, "train", Given(numbers)))
    sink.close()
    return tmp_path / "run"


def test_the_command(journal: Path) -> None:
    """In a process of its own: when, which, how good, and what to write instead."""
    arguments = [
        "--rule",
        "live",
        "--rule",
        "Above('cross_entropy', 6.5)",
        "--incident",
        "1999",
        "--wanted-rate",
        "100",
    ]
    done = run_script("pplmon.cli", "replay", journal, *arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "(journal): 3,000 rows of steps 0–2999" in lines[0]
    assert lines[1].startswith("step 2000  Spike('cross_entropy')  value 7.029, threshold 2.612  train/cross")
    assert lines[2].startswith("step 2000  Above('cross_entropy', 6.5)")
    assert lines[1].endswith("(a notice)") and not lines[2].endswith("(a notice)")
    columns = "rule pages notices events caught noticed delay false false per 100k values false per 100k steps"
    assert lines[3].split() == columns.split()
    rates = ["0", "(<", "110)"] * 2
    assert lines[4].split() == ["Spike('cross_entropy')", "0", "1", "0", "0/1", "1/1", "0", *rates]
    assert lines[5].split() == ["Above('cross_entropy',", "6.5)", "1", "0", "1", "1/1", "1/1", "1", "0", *rates]
    assert lines[6].startswith("any of them")
    assert lines[7] == "pages: warnings and critical alerts. events: pages close together, counted as one."
    assert lines[8].startswith("false: events that begin within no --incident, per 100,000 judged values and")
    assert lines[8].endswith("0 (< 60): none was seen, so the rate is below 60, with 95 % confidence.")
    assert lines[9].startswith("suggested for Spike('cross_entropy'): Spike('cross_entropy', limit=")
    assert lines[10].startswith("suggested for Above('cross_entropy', 6.5): Above('cross_entropy', 2.1")


def test_without_incidents_every_event_is_called_false(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Below the table, in words of their own."""
    assert cli.main(["replay", str(journal), "--rule", "Above('cross_entropy', 6.5)"]) == 0
    out = capsys.readouterr().out
    assert "\nfalse: all events, as no --incident marks a true one, per 100,000 judged values and per 100,000" in out
    assert "begin within no" not in out


def test_json(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One strict object for machines."""
    assert cli.main(["replay", str(journal), "--json", "--incident", "1990-2010", "--wanted-rate", "100"]) == 0

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["kind"] == "journal" and found["rows"] == 3000 and found["spans"] == [[0, 2999]]
    (alert,) = found["alerts"]
    assert (alert["rule"], alert["name"], alert["step"], alert["repeated"]) == (
        "Spike('cross_entropy')",
        "Spike",
        2000,
        False,
    )
    (score,) = found["rules"]
    assert (alert["severity"], score["notices"], score["noticed"], score["recall"]) == ("info", 1, 1, 0.0)
    assert (score["delay"], score["false_per_100k_values"], score["false_per_100k_steps"]) == (None, 0.0, 0.0)
    assert found["differs_from_journal"] == [0, 1]  # this journal was written without its alert
    assert found["suggestions"][0]["suggested"].startswith("Spike('cross_entropy', limit=")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["RUN", "--rule", "Spkie('cross_entropy')"], "did you mean Spike"),
        (["RUN", "--incident", "4000"], "the run has steps 0 to 2999 only"),
        (["RUN", "--wanted-rate", "900"], "at most 500"),
        (["RUN", "--map", "a=b"], "unknown number 'b'"),
        (["RUN", "--map", "a=tokens"], "--map and --step are for logs"),
        (["RUN", "--rule", "Above('max_token_loss', 4)"], "the journal lacks train/max_token_loss"),
    ],
)
def test_what_is_wrong_is_told(journal: Path, arguments: list[str], error: str, capsys: Any) -> None:
    """On stderr, with exit code 2, in one sentence."""
    assert cli.main(["replay", *(str(journal) if a == "RUN" else a for a in arguments)]) == 2
    printed = capsys.readouterr()
    assert error in printed.err and not printed.out


def test_nothing_fired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A quiet run says so; so does one whose monitor had no rules."""
    path = tmp_path / "a.csv"
    path.write_text("step,train/cross_entropy\n1,2\n51,2\n")
    assert cli.main(["replay", str(path), "--rule", "Above('cross_entropy', 3)"]) == 0
    printed = capsys.readouterr().out
    assert "No rule would have fired." in printed and "50 steps apart (a live rule judges every step)" in printed
    sink = Journal(tmp_path / "run")
    sink.start({"alerts": []})
    sink.judged(Row(0, "train", Given({"tokens": 5})))
    sink.close()
    assert cli.main(["replay", str(tmp_path / "run")]) == 0
    assert "There was no rule: the run had none" in capsys.readouterr().out
