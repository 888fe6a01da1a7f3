"""Beside an earlier run on the same data: rules see the difference, and alerts say what is data and what is model."""

from __future__ import annotations

import json
import math
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pplmon
from pplmon import Alert, Report, cli
from pplmon.alerts.against import Against
from pplmon.alerts.earlier import Earlier
from pplmon.sinks import Journal
from tests import own_number_tasks as tasks
from tests.own_number_tasks import some
from tests.ranks import Ranks

STEPS = 700


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Two ranks for all tests of this module."""
    with Ranks(2, tmp_path_factory.mktemp("ranks")) as both:
        yield both


def losses(order: int, run: int, steps: int = STEPS) -> list[float]:
    """A falling loss with the noise of an order of data, and a twentieth of it of the run's own."""
    data, own = random.Random(order), random.Random(1000 + run)
    return [3.0 + 2 * math.exp(-step / 300) + data.gauss(0, 0.05) + own.gauss(0, 0.0025) for step in range(steps)]


def row(step: int, loss: float, tokens: int = 64) -> Report:
    """A report of a batch of so many tokens."""
    return Report(step, numbers={"cross_entropy": loss, "tokens_seen": tokens * (step + 1), "tokens": tokens})


def judge(ours: Sequence[float], theirs: Sequence[float] | None, *rules: Any, **more: Any) -> list[Alert]:
    """Every alert of rules, by default of ``Spike``, beside another run or alone."""
    rules = rules or (pplmon.Spike("cross_entropy"),)
    against = Against(Earlier(())) if theirs is None else beside(theirs)
    alerts = []
    for step, loss in enumerate(ours):
        report = row(step, loss)
        against.begin(report)
        alerts += [alert for rule in rules if (alert := against.judge(rule, report)) is not None]
    return alerts


def beside(theirs: Sequence[float]) -> Against:
    """The comparison to a run of these losses."""
    return Against(Earlier((step, row(step, loss).numbers) for step, loss in enumerate(theirs)))


def test_a_small_rise_that_only_this_run_shows_is_a_page() -> None:
    """0.02 nats for 100 steps, less than half the noise, are seen in the difference and in it only."""
    ours, theirs = losses(1, 1), losses(1, 2)
    assert not judge(ours, theirs)
    for step in range(400, 500):
        ours[step] += 0.02
    assert not judge(ours, None)
    (page,) = [alert for alert in judge(ours, theirs) if alert.severity != "info"]
    assert page.step is not None and 400 <= page.step < 430
    assert page.severity == "warning" and page.cause == "model"
    assert "cross_entropy less the earlier run's" in page.text and page.text.endswith("only this run shows it (model)")
    assert page.value == pytest.approx(ours[page.step])


def test_what_both_runs_show_is_a_notice_that_says_data() -> None:
    """A hard batch, and a rise that lasts: alone the second is a page."""
    ours, theirs = losses(1, 1), losses(1, 2)
    for run in (ours, theirs):
        run[300] += 2.0
        for step in range(500, 560):
            run[step] += 0.5
    alone, found = judge(ours, None), judge(ours, theirs)
    assert "warning" in [alert.severity for alert in alone]
    assert {(alert.cause, alert.severity) for alert in found} == {("data", "info")}
    assert {300} < {alert.step for alert in found}
    assert found[0].text.endswith("the earlier run shows it, too (data)")


def test_a_threshold_says_whose_doing_it_is() -> None:
    """The earlier run is beyond it at the same step, or not."""
    ours, theirs = losses(1, 1), losses(1, 2)
    for place, run in ((300, ours), (300, theirs), (400, ours)):
        run[place] = 9.0
    alerts = judge(ours, theirs, pplmon.Above("cross_entropy", 8.0))
    assert [(alert.step, alert.severity, alert.cause) for alert in alerts] == [
        (300, "warning", "data"),
        (400, "warning", "model"),
    ]


class Grave(pplmon.MetricRule):
    """A notice above the limit, and a critical alert above 5."""

    compares = True

    def __init__(self, metric: str, limit: float = 0.5) -> None:
        super().__init__(metric)
        self.limit = limit

    def judge(self, value: float, report: Report) -> Alert | None:
        if value <= self.limit:
            return None
        return self.alert(report, value, self.limit, "is high", "critical" if value > 5 else "info")


@pytest.mark.parametrize(("height", "severity", "text"), [(6.0, "critical", "is high"), (4.5, "info", "less the")])
def test_the_graver_alert_counts_of_the_number_and_its_difference(height: float, severity: str, text: str) -> None:
    """A notice on the difference does not hide a critical alert on the number itself; of two alike the first counts."""
    ours, theirs = losses(1, 1), losses(1, 2)
    ours[400] = height
    found = [alert for alert in judge(ours, theirs, Grave("cross_entropy")) if alert.step == 400]
    assert [(alert.severity, alert.cause, text in alert.text) for alert in found] == [(severity, "model", True)]
    assert found[0].value == pytest.approx(height)


def test_another_order_of_data_changes_nothing_and_is_told() -> None:
    """The rules judge as without the earlier run; what correlates by how much is said once."""
    ours, theirs = losses(1, 1), losses(2, 2)
    ours[300] += 2.0
    assert judge(ours, theirs) == judge(ours, None) != []
    against = beside(theirs)
    said = [text for step, loss in enumerate(ours) if (text := against.begin(row(step, loss))) is not None]
    assert len(said) == 1 and "the orders of their data do not match here" in said[0]
    against = beside(losses(1, 2))
    said = [text for step, loss in enumerate(ours) if (text := against.begin(row(step, loss))) is not None]
    assert len(said) == 1 and "aligned by tokens: one order of the data" in said[0]


def test_two_runs_that_are_bit_identical_for_a_while_raise_nothing() -> None:
    """Their difference has no noise of its own then: what appears later is small beside that of the loss."""
    ours = losses(1, 1)
    noise = random.Random(5)
    theirs = [loss + noise.gauss(0, 1e-6 * 10 ** (min(step, 400) / 100)) for step, loss in enumerate(ours)]
    assert ours[:0] == theirs[:0] and not judge(ours, theirs)


@given(
    st.lists(
        st.tuples(st.integers(0, 2**40), st.floats(allow_nan=False), st.none() | st.integers(0, 2**50)), max_size=9
    )
)
def test_rows_survive_being_sent(rows: list[tuple[int, float, int | None]]) -> None:
    """As bytes and back: the same rows are found, by tokens and by step."""
    earlier = Earlier((step, {"a": value, "tokens_seen": seen}) for step, value, seen in rows)
    sent = Earlier.unpack(earlier.pack())
    assert len(sent) == len(earlier)
    for step, _, _ in rows:
        there, here = sent.at(Report(step)), earlier.at(Report(step))
        assert there is not None and here is not None and there["a"] == here["a"]


def test_rows_are_found_by_tokens_where_steps_differ() -> None:
    """As after a resumed run that counts its steps anew."""
    earlier = Earlier((step, row(step + 5, float(step)).numbers) for step in range(20))
    found = earlier.at(row(7, 0.0))
    assert found is not None and found["cross_entropy"] == 2.0 and earlier.by == "tokens"
    assert earlier.at(row(0, 0.0)) is None
    by_step = Earlier((step, {"cross_entropy": float(step)}) for step in range(20))
    assert by_step.at(row(7, 0.0)) == {"cross_entropy": 7.0} and by_step.by == "steps"


@pytest.mark.parametrize("cut", [70, 137, 380, 413])
def test_its_state_goes_through_a_checkpoint(cut: int) -> None:
    """As JSON: the rest of a run raises the same, to the last bit, judged in one go or resumed."""
    ours, theirs = losses(1, 1), losses(1, 2)
    for step in range(400, 500):
        ours[step] += 0.02
    ours[600] += 1.0
    whole = judge(ours, theirs)
    rule, against = pplmon.Spike("cross_entropy"), beside(theirs)
    found = []
    for step, loss in enumerate(ours):
        if step == cut:
            saved = json.loads(json.dumps([rule.state_dict(), against.state_dict()]))
            rule, against = pplmon.Spike("cross_entropy"), beside(theirs)
            rule.load_state_dict(saved[0])
            against.load_state_dict(saved[1])
        against.begin(row(step, loss))
        found.append(against.judge(rule, row(step, loss)))
    assert [alert for alert in found if alert is not None] == whole != []


def write(folder: Path, values: Sequence[float], tokens: int = 64) -> Path:
    """A journal of judged rows."""
    journal = Journal(folder)
    journal.start({"alerts": ["Spike('cross_entropy')"]})
    for step, loss in enumerate(values):
        journal.judged(row(step, loss, tokens))
    journal.close()
    return folder


def test_a_replay_against_an_earlier_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says how the runs fit, and what is model."""
    ours = losses(1, 1)
    for step in range(400, 500):
        ours[step] += 0.02
    now, before = write(tmp_path / "now", ours), write(tmp_path / "before", losses(1, 2))
    assert cli.main(["replay", str(now), "--against", str(before), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(alert["severity"], alert["cause"]) for alert in told["alerts"] if alert["severity"] != "info"] == [
        ("warning", "model")
    ]
    notes = " ".join(told["notes"])
    assert "one order of the data" in notes and "The earlier run has 700 of 700 rows, aligned by tokens" in notes
    assert cli.main(["replay", str(now), "--against", str(tmp_path / "none")]) == 2
    assert "none does not exist" in capsys.readouterr().err


def test_a_live_run_raises_what_its_replay_against_the_same_run_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``Monitor(reference=…)``: its journal names the file, and an alert there says whose doing it is."""
    theirs, ours = losses(1, 2, 300), losses(1, 1, 300)
    ours[200] += 1.0
    runs: dict[str, list[Alert]] = {"before": [], "now": []}
    for name, values in (("before", theirs), ("now", ours)):
        monitor = pplmon.Monitor(
            every_n_steps=None,
            sinks=[Journal(tmp_path / name)],
            alerts=[pplmon.Spike("cross_entropy")],
            on_alert=runs[name].append,
            min_severity="info",
            reference=tmp_path / "before" if name == "now" else None,
        )
        for loss in values:
            monitor.observe(some(loss))
            monitor.step()
        monitor.close()
    assert [(alert.step, alert.cause) for alert in runs["now"]] == [(200, "model")]
    assert cli.main(["replay", str(tmp_path / "now"), "--against", str(tmp_path / "before"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["differs_from_journal"] == [0, 0] and [alert["cause"] for alert in told["alerts"]] == ["model"]
    first = (tmp_path / "now" / "pplmon.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(first)["reference"] == str(tmp_path / "before")
    assert "reference" not in (tmp_path / "before" / "pplmon.jsonl").read_text(encoding="utf-8")


def test_a_file_that_cannot_be_used_is_one_warning(tmp_path: Path) -> None:
    """It is dropped: the run goes on, and raises what it would have without."""
    (tmp_path / "pplmon.jsonl").write_text('{"kind": "judged", "step": "x"\n', encoding="utf-8")
    for reference in (tmp_path / "nowhere", tmp_path):
        seen: list[Alert] = []
        monitor = pplmon.Monitor(alerts=[pplmon.Above("cross_entropy", 2.5)], on_alert=seen.append, reference=reference)
        monitor.observe(some(3.0))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            monitor.step()
            monitor.close()
        (text,) = [str(warning.message) for warning in caught]
        assert re.search(r"reference='.*' cannot be used .*Give the pplmon.jsonl", text)
        assert [alert.cause for alert in seen] == [None]


@pytest.mark.ranks
def test_the_first_rank_reads_the_file_for_all(ranks: Ranks, tmp_path: Path) -> None:
    """Ranks come to the same alerts, though only one of them can read it; one that cannot be read is one warning."""
    path = write(tmp_path, losses(1, 2, 200), tokens=8)  # of both ranks
    ours = losses(1, 1, 200)
    ours[150] += 0.5
    first, second = ranks.run(tasks.compare_to, str(path), ours)
    assert first == second == ([(150, "model")], [])
    first, second = ranks.run(tasks.compare_to, str(tmp_path / "none"), ours[:3])
    assert len(first[1]) == 1 and "cannot be used" in first[1][0] and second[1] == []
