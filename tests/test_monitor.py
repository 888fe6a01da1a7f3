"""``Monitor``: cadences, windows, lateness, and what happens when a part of the monitoring fails."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch

import pplmon
from pplmon import Alert, Monitor, Report, TokenStats, TokenTally
from pplmon.sinks.base import Sink


def one(*losses: float) -> TokenStats:
    """One row of tokens with these losses and the ids 1, 2, 3, …"""
    nll = torch.tensor([losses])
    return TokenStats.from_losses(nll, torch.arange(1, len(losses) + 1)[None], vocab_size=100)


class Memory(Sink):
    """A sink that remembers what it was given, in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.scalars: list[tuple[int, dict[str, float]]] = []

    def start(self, run: Mapping[str, Any]) -> None:
        """Remember."""
        self.seen.append(("start", dict(run)))

    def judged(self, report: Report) -> None:
        """Remember."""
        self.seen.append(("judged", report))

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Remember."""
        self.seen.append(("report", report))
        self.scalars.append((report.step, dict(scalars)))

    def alert(self, alert: Alert) -> None:
        """Remember."""
        self.seen.append(("alert", alert))

    def close(self) -> None:
        """Remember."""
        self.seen.append(("close", None))

    def steps(self, kind: str) -> list[int]:
        """The steps of what was seen of one kind."""
        return [what.step for name, what in self.seen if name == kind]


def run(monitor: Monitor, losses: list[list[float]]) -> list[Report | None]:
    """One micro-batch and one step for each list of losses; what step() returned."""
    returned = []
    for step in losses:
        monitor.observe(one(*step))
        returned.append(monitor.step())
    return returned


def test_a_monitor_shows_itself_at_one_glance() -> None:
    """Its step, the last window's numbers, and what was raised."""
    monitor = Monitor(every_n_steps=2, alerts=[pplmon.Above("max_token_loss", 8.0)])
    assert repr(monitor) == "<Monitor: 0 steps; 0 alerts, 0 notices; logs every 2>"
    run(monitor, [[2.0, 1.0], [9.0, 1.0], [3.0, 3.0]])
    assert repr(monitor) == (
        "<Monitor: 3 steps, step 1: cross_entropy 3.25, perplexity 25.79; 1 alert, 0 notices; logs every 2>"
    )


def test_a_resumed_monitor_goes_on_counting_alerts() -> None:
    """A curve of them that fell back to 0 would hide what there was."""
    before = Monitor(every_n_steps=1, alerts=[pplmon.Above("max_token_loss", 8.0)])
    run(before, [[9.0], [1.0], [9.0], [1.0]])
    sink = Memory()
    after = Monitor(every_n_steps=1, sinks=[sink], alerts=[pplmon.Above("max_token_loss", 8.0)])
    after.load_state_dict(before.state_dict())
    run(after, [[1.0], [1.0]])
    (started,) = [what for kind, what in sink.seen if kind == "start"]
    assert started["raised"] == {"alerts": 2, "notices": 0}
    assert started["logged_numbers"] == "core" and started["pplmon"] == pplmon.__version__


# (1, 1): all at once. (4, 3), (3, 2): neither divides the other. (2, 7): judged less often than logged. (50, 1): no window closes.
@pytest.mark.parametrize(("every", "judge"), [(1, 1), (4, 3), (3, 2), (2, 7), (12, 4), (50, 1)])
def test_two_cadences(every: int, judge: int) -> None:
    """Read-outs fall where either cadence divides; a window holds exactly its steps, and close() logs the rest."""
    sink = Memory()
    monitor = Monitor(every_n_steps=every, judge_every_n_steps=judge, sinks=[sink], alerts=[])
    returned = run(monitor, [[float(step), 1.0] for step in range(13)])
    last = monitor.close()
    reads = [step for step in range(13) if (step + 1) % every == 0 or (step + 1) % judge == 0]
    assert sink.steps("judged") == sorted({*reads, 12})
    ends = [step for step in range(13) if (step + 1) % every == 0]
    assert sink.steps("report") == sorted({*ends, 12})
    reports = [what for kind, what in sink.seen if kind == "report"]
    start = 0
    for report in reports:
        assert report.tokens == 2 * (report.step + 1 - start)
        assert report.max_token_loss == max(report.step, 1)
        assert report.tokens_seen == 2 * (report.step + 1)
        start = report.step + 1
    assert last == reports[-1]
    # step() gives the report of a window one step late.
    assert [(step, r.step) for step, r in enumerate(returned) if r] == [(end + 1, end) for end in ends if end < 12]
    assert [kind for kind, _ in sink.seen][0 :: len(sink.seen) - 1] == ["start", "close"]


def test_a_window_is_the_token_weighted_mean_of_its_micro_batches() -> None:
    """Uneven micro-batches and steps of a window weigh as their tokens do: never a mean of means."""
    monitor = Monitor(every_n_steps=2, alerts=[])
    parts = [[[1.0], [2.0, 4.0, 6.0]], [[10.0] * 5]]
    for step in parts:
        for micro in step:
            monitor.observe(one(*micro))
        monitor.step()
    report = monitor.close()
    assert report is not None and report.cross_entropy == pytest.approx(63 / 9) and report.tokens == 9
    assert [(w.step, w.micro_batch) for w in report.worst[:6]] == [(1, 0)] * 5 + [(0, 1)]


def test_no_spike_falls_between_two_logged_points() -> None:
    """A loss at a step that is not logged is the maximum and the worst token of the window that is."""
    monitor = Monitor(every_n_steps=5, judge_every_n_steps=2, alerts=[])
    losses = [[1.0, 2.0] for _ in range(10)]
    losses[6][1] = 77.0
    reports = [r for r in [*run(monitor, losses), monitor.close()] if r]
    assert [r.max_token_loss for r in reports] == [2.0, 77.0]
    assert (reports[1].worst[0].loss, reports[1].worst[0].step, reports[1].worst[0].position) == (77.0, 6, 1)


def test_an_alert_is_one_step_late_and_carries_its_evidence() -> None:
    """A spike is judged at the next step, whatever the logging cadence, and the alert names its token."""
    heard: list[Alert] = []
    monitor = Monitor(every_n_steps=100, alerts=[pplmon.Above("max_token_loss", 40.0)], on_alert=heard.append)
    for step in range(6):
        monitor.observe(one(1.0, 50.0 if step == 3 else 2.0))
        assert len(heard) == (step > 4)
        monitor.step()
    (alert,) = heard
    assert (alert.step, alert.value, alert.threshold, alert.metric) == (3, 50.0, 40.0, "max_token_loss")
    assert (alert.worst[0].loss, alert.worst[0].step) == (50.0, 3)
    assert len(alert.worst) == 2  # of this read-out only


def test_wait_for_window() -> None:
    """With wait_for_window the report comes from the very step that closes its window."""
    monitor = Monitor(every_n_steps=3, alerts=[])
    monitor.wait_for_window = True
    returned = run(monitor, [[float(step)] for step in range(7)])
    assert [r and r.step for r in returned] == [None, None, 2, None, None, 5, None]
    last = monitor.close()
    assert last is not None and (last.step, last.tokens) == (6, 1)


def test_nothing_is_judged_when_there_is_nothing() -> None:
    """Steps without a scored token are not judged, and a rule never sees an empty ``worst``; close() adds no report."""
    saw: list[Report] = []
    sink = Memory()
    monitor = Monitor(every_n_steps=2, sinks=[sink], alerts=[lambda report: saw.append(report)])
    monitor.step()
    monitor.observe(TokenStats.from_losses(torch.ones(1, 3), torch.full((1, 3), -100)))
    monitor.step()
    run(monitor, [[1.0]])
    monitor.close()
    assert [report.step for report in saw] == [2] and saw[0].worst
    assert sink.steps("judged") == [2]
    assert Monitor(every_n_steps=2).close() is None


def test_observed_after_the_last_step_is_not_lost() -> None:
    """Micro-batches of a step that never ended are in the last report."""
    monitor = Monitor(every_n_steps=10, alerts=[])
    run(monitor, [[1.0], [2.0]])
    monitor.observe(one(3.0))
    report = monitor.close()
    assert report is not None and (report.tokens, report.cross_entropy, report.step) == (3, 2.0, 2)
    again = monitor.close()
    assert again == report  # closing twice logs nothing twice


def test_stage_is_a_pass_of_its_own() -> None:
    """A validation pass is counted apart, judged and logged at once under its own keys, and training goes on beside it."""
    sink = Memory()
    heard: list[Alert] = []
    rules = [pplmon.Above("cross_entropy", 5.0, stage="val"), pplmon.Above("cross_entropy", 50.0)]
    monitor = Monitor(every_n_steps=4, sinks=[sink], alerts=rules, on_alert=heard.append, prefix="lm/")
    run(monitor, [[1.0], [1.0]])
    with monitor.stage("val") as val:
        monitor.observe(one(8.0, 9.0))
        monitor.observe(one(10.0))
        assert val.report is None
    assert val.report is not None and (val.report.stage, val.report.step) == ("val", 1)
    assert (val.report.cross_entropy, val.report.tokens_seen) == (9.0, 2), "of training, so far"
    assert [(a.stage, a.step, a.value) for a in heard] == [("val", 1, 9.0)]
    assert [w.micro_batch for w in val.report.worst] == [1, 0, 0]
    run(monitor, [[1.0], [1.0]])
    report = monitor.close()
    assert report is not None and (report.stage, report.tokens, report.max_token_loss, report.tokens_seen) == (
        "train",
        4,
        1.0,
        4,
    )
    keys = [set(scalars) for _, scalars in sink.scalars]
    assert {k.rsplit("/", 1)[0] for k in keys[0]} == {"lm/val"} and {k.rsplit("/", 1)[0] for k in keys[1]} == {
        "lm/train"
    }
    with pytest.raises(KeyError), monitor.stage("val") as broken:
        monitor.observe(one(1.0))
        raise KeyError
    assert broken.report is None  # an error in the pass is the user's, and what comes next is training again
    monitor.observe(one(2.0))
    last = monitor.close()
    assert last is not None and last.tokens == 1 and last.stage == "train"


@pytest.mark.parametrize(
    ("numbers", "names"),
    [
        ("core", {"cross_entropy", "perplexity", "max_token_loss", "token_loss_p99", "worst_1pct_loss", "inverse_perplexity",
                  "nonfinite_tokens", "tokens_seen"}),
        (["tokens", "token_loss_p50"], {"tokens", "token_loss_p50"}),
    ],
)  # fmt: skip
def test_what_is_logged(numbers: Any, names: set[str]) -> None:
    """The chosen numbers are logged, but not what cannot be had, nor what is not finite."""
    sink = Memory()
    monitor = Monitor(every_n_steps=1, sinks=[sink], alerts=[], numbers=numbers)
    run(monitor, [[1.0, 2.0], [800.0]])
    monitor.close()
    assert sink.scalars[0] == (0, {f"train/{n}": sink.scalars[0][1][f"train/{n}"] for n in names})
    assert set(sink.scalars[1][1]) == {
        f"train/{n}" for n in names - {"perplexity"}
    }  # exp(800) is no number for a logger


def test_all_numbers_are_logged() -> None:
    """numbers="all" leaves out only what cannot be had."""
    sink = Memory()
    monitor = Monitor(every_n_steps=1, sinks=[sink], alerts=[], numbers="all")
    run(monitor, [[1.0] * 20])
    report = monitor.close()
    assert report is not None
    assert set(sink.scalars[0][1]) == {f"train/{n}" for n in report.finite()} and len(report.finite()) > 15


# Law 6: monitoring never hurts the run.


def failing(*args: Any) -> Any:
    """Raise."""
    raise OSError("disk full")


class Broken(Memory):
    """A sink each of whose verbs fails."""

    start = judged = report = alert = close = failing  # type: ignore[assignment]


def alarms(**how: Any) -> tuple[list[str], list[Report | None], Any]:
    """Run five steps with an alert at two of them; the warnings, what step() returned, and the last report."""
    rules = [*how.pop("rules", []), pplmon.Above("max_token_loss", 5.0)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = Monitor(every_n_steps=2, alerts=rules, **how)
        returned = run(monitor, [[1.0, 9.0] if step % 2 else [1.0, 2.0] for step in range(5)])
        last = monitor.close()
    return [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)], returned, last


def test_a_failing_sink_is_left_out_after_three_failures_and_loses_only_itself() -> None:
    """A sink that fails at everything is warned of at first and when a kind of call is left out; all others get all."""
    good, heard = Memory(), []
    texts, returned, last = alarms(sinks=[Broken(), good], on_alert=heard.append)
    want, plain_heard = Memory(), []
    _, plain, plain_last = alarms(sinks=[want], on_alert=plain_heard.append)
    for sink in (good, want):
        assert sink.seen[0][0] == "start" and len(sink.seen[0][1].pop("run")) == 8  # each run has a name of its own
    assert (returned, last, repr(good.seen), heard) == (plain, plain_last, repr(want.seen), plain_heard)
    assert len(heard) == 2
    assert len(texts) == 3 and all("Broken failed" in text and "OSError: disk full" in text for text in texts)
    assert "is lost" in texts[0] and all("3 times in a row and is left out" in text for text in texts[1:])


def test_a_failing_handler_rule_or_decode_is_reported_once() -> None:
    """A handler, a rule of the user's and decode each may fail: one warning, and everything else goes on."""
    heard: list[Alert] = []
    texts, _, _ = alarms(on_alert=[failing, heard.append])
    assert len(texts) == 1 and "failing failed at 'alert'" in texts[0] and len(heard) == 2
    heard.clear()
    texts, _, _ = alarms(on_alert=heard.append, rules=[failing])
    assert len(texts) == 2 and "'judging'" in texts[0] and "is left out" in texts[1] and len(heard) == 2
    heard.clear()
    texts, returned, last = alarms(on_alert=heard.append, decode=failing)
    assert len(texts) == 1 and "decode failed" in texts[0] and len(heard) == 2
    assert last.worst[0].context_text is None and last.worst[0].context_ids[8] == 2
    assert [r.step for r in returned if r] == [1, 3]


def test_decode_names_the_text() -> None:
    """decode's text is in reports and alerts."""
    heard: list[Alert] = []
    _, _, last = alarms(on_alert=heard.append, decode=lambda ids: "".join(chr(96 + i) for i in ids))
    assert (heard[0].worst[0].context_text, heard[0].worst[0].target_text) == ("ab", "b")
    assert last.worst[0].target_text == "b" and last.worst[1].target_text == "a"


# Targets outside the vocabulary.


def vocabulary(step: int, bad: int) -> TokenStats:
    """Ten tokens of which ``bad`` are impossible."""
    targets = torch.ones(1, 10, dtype=torch.int64)
    targets[0, :bad] = -7
    return TokenStats.from_losses(torch.ones(1, 10) + step, targets, vocab_size=50)


def test_invalid_targets_first_raise_then_alert() -> None:
    """At the first read-out a ValueError says how many, the vocabulary and an example; nothing counted is lost by it."""
    monitor = Monitor(every_n_steps=10, alerts=[])
    monitor.observe(vocabulary(0, 3))
    monitor.step()
    monitor.observe(vocabulary(1, 0))
    with pytest.raises(
        ValueError, match=r"^3 targets are outside the vocabulary \[0, 50\), for example -7; ignore_index is -100"
    ):
        monitor.step()
    report = monitor.close()
    assert report is not None and (report.tokens, report.invalid_targets) == (17, 3)


def test_later_invalid_targets_alert_on_the_edge() -> None:
    """After a clean first read-out impossible targets are an alert with a count, once until a clean one; never an exception."""
    heard: list[Alert] = []
    monitor = Monitor(every_n_steps=10, alerts=[pplmon.NonFinite()], on_alert=heard.append)
    for step, bad in enumerate([0, 2, 4, 0, 1]):
        monitor.observe(vocabulary(step, bad))
        monitor.step()
    report = monitor.close()
    assert [(a.step, a.value, a.metric, a.severity) for a in heard] == [
        (1, 2, "invalid_targets", "critical"),
        (4, 1, "invalid_targets", "critical"),
    ]
    assert "for example -7" in heard[0].text
    assert report is not None and report.invalid_targets == 7


def test_a_default_pattern_is_not_shared() -> None:
    """The pattern given as ``tally`` is cloned: it stays empty, and two monitors of one pattern do not mix."""
    pattern = TokenTally(top_k=2)
    first, second = Monitor(tally=pattern, alerts=[]), Monitor(tally=pattern, alerts=[])
    run(first, [[1.0, 2.0, 3.0]])
    run(second, [[5.0]])
    assert pattern.totals().empty
    reports = first.close(), second.close()
    assert [r.tokens for r in reports if r] == [3, 1]
    assert reports[0] is not None and len(reports[0].worst) == 2


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"every_n_steps": 0}, ValueError, "every_n_steps must be at least 1.*0"),
        ({"every_n_steps": -5}, ValueError, "every_n_steps.*-5"),
        ({"every_n_steps": 2.0}, TypeError, "every_n_steps must be an integer.*2.0"),
        ({"every_n_steps": True}, TypeError, "every_n_steps.*True"),
        ({"judge_every_n_steps": 0}, ValueError, "judge_every_n_steps must be at least 1"),
        ({"judge_every_n_steps": None}, TypeError, "judge_every_n_steps.*None"),
        ({"numbers": "perplexity"}, ValueError, r"\"core\", \"all\" or a list.*\['perplexity'\]"),
        ({"numbers": ["perplexty"]}, ValueError, "unknown number 'perplexty'.*did you mean perplexity"),
        ({"alerts": [pplmon.NonFinite]}, TypeError, "a rule is a callable.*NonFinite"),
        ({"alerts": ["perplexity"]}, TypeError, "a rule is a callable.*'perplexity'"),
        ({"on_alert": "print"}, TypeError, "on_alert takes callables.*str"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], text: str) -> None:
    """What cannot be right is refused at construction, in words that say what to write."""
    with pytest.raises(error, match=text):
        Monitor(**settings)


def test_defaults_judge_a_non_finite_token() -> None:
    """Without ``alerts`` the default rules watch: a NaN is told of with its address, and NaN is logged nowhere."""
    heard: list[Alert] = []
    sink = Memory()
    monitor = Monitor(every_n_steps=2, on_alert=heard.append, sinks=[sink])
    run(monitor, [[1.0] * 20, [1.0, math.nan]])
    monitor.close()
    assert [(a.rule, a.step, a.severity) for a in heard] == [("NonFinite", 1, "critical")]
    assert math.isnan(heard[0].worst[0].loss) and heard[0].worst[0].position == 1
    assert all(math.isfinite(v) for _, scalars in sink.scalars for v in scalars.values())
