"""Each rule against reports made by hand, at its edges, and its false alarms on noise."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import pplmon
from pplmon import Above, Alert, Below, NonFinite, Report, Spike, WorstToken

NAN, INF = math.nan, math.inf


def judge(
    rule: Callable[[Report], Alert | None], values: Iterable[float | None], metric: str = "cross_entropy", **how: Any
) -> list[int]:
    """Show a rule one report for each value; the steps at which it alerted."""
    reports = (
        Report(step=step, numbers={} if value is None else {metric: value}, **how) for step, value in enumerate(values)
    )
    return [report.step for report in reports if rule(report)]


# Above and Below.


@pytest.mark.filterwarnings("ignore:pplmon.*lacks")
@pytest.mark.parametrize(
    ("values", "fired"),
    [
        ([1, 5, 5, 1], []),  # at the threshold is inside
        ([1, 5.0001, 6, 5, 6], [1, 4]),  # the edge, and again after one value inside
        ([9, 9, 9], [0]),  # beyond from the start
        ([9, None, 9, NAN, 9, 4, 9], [0, 6]),  # what is not known is neither inside nor beyond
        ([1, INF, INF, 2, INF], [1, 4]),
        ([-INF, 9], [1]),
    ],
)
def test_above_fires_on_the_edge(values: list[float | None], fired: list[int]) -> None:
    """Above fires when a value rises beyond the threshold and re-arms at the first one back inside; Below is its mirror."""
    assert judge(Above("cross_entropy", 5.0), values) == fired
    mirrored = [None if v is None else -v for v in values]
    assert judge(Below("max_token_excess", -5.0), mirrored, "max_token_excess") == fired


def test_what_an_alert_says() -> None:
    """The alert names rule, metric, step, stage, value and threshold in the metric's unit, and its text holds them."""
    report = Report(step=41, stage="val", numbers={"token_accuracy": 0.05}, worst=(WorstToken(loss=3.0),))
    alert = Below("token_accuracy", 0.1, stage="val")(report)
    assert alert is not None
    assert (alert.rule, alert.metric, alert.step, alert.stage) == ("Below", "token_accuracy", 41, "val")
    assert (alert.value, alert.threshold, alert.severity) == (0.05, 0.1, "warning")
    assert alert.text == "step 41: val/token_accuracy is 0.05, below 0.1" and str(alert) == f"[warning] {alert.text}"
    assert (Alert("Mine", "hm").severity, Alert("Mine", "hm").worst) == ("warning", ())
    with pytest.raises(ValueError, match="info, warning, critical.*'bad'"):
        Alert("Mine", "hm", severity="bad")


@pytest.mark.parametrize("rule", [Above("cross_entropy", 0.5), NonFinite(), Spike("cross_entropy")], ids=repr)
def test_rules_keep_to_their_stage(rule: Callable[[Report], Alert | None]) -> None:
    """A rule looks at train unless told: other stages neither alert nor change what it remembers."""
    numbers = {"cross_entropy": NAN if isinstance(rule, Spike) else 9.0, "nonfinite_tokens": 3}
    assert rule(Report(step=0, stage="val", numbers=numbers)) is None
    assert rule(Report(step=1, stage="test", numbers=numbers)) is None
    assert rule(Report(step=2, stage="train", numbers=numbers)) is not None


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Above("token_accuracy", 1.0), r"above 1.0 can never fire: token_accuracy lies between 0 and 1"),
        (lambda: Above("overconfident_error_rate", 90), "can never fire"),
        (lambda: Above("max_token_loss", INF), "can never fire"),
        (lambda: Above("max_token_loss", NAN), "can never fire"),
        (lambda: Below("perplexity", 1), r"below 1 can never fire: perplexity lies between 1 and inf"),
        (lambda: Below("cross_entropy", 0), "can never fire"),
        (
            lambda: Below("token_accuracy", 1.5),
            "below 1.5 would fire at every value: token_accuracy lies between 0 and 1; choose a threshold between",
        ),
        (lambda: Above("perplexity", 0.5), "above 0.5 would fire at every value: perplexity lies between 1 and inf"),
        (lambda: Below("max_token_excess", -INF), "can never fire"),
        (lambda: Below("mine/x", -INF), "can never fire"),
        (lambda: Below("mine/x", NAN), "can never fire"),
    ],
)
def test_a_threshold_that_can_never_fire(make: Callable[[], object], text: str) -> None:
    """A threshold at or beyond the end of a number's range is an error when it is written."""
    with pytest.raises(ValueError, match=text):
        make()


def test_a_threshold_just_inside_can_fire() -> None:
    """Thresholds a little inside the range are taken, and fire."""
    assert judge(Above("token_accuracy", 0.999), [1.0], "token_accuracy") == [0]
    assert judge(Below("perplexity", 1.001), [1.0], "perplexity") == [0]
    assert judge(Below("max_token_excess", 0), [-3.0], "max_token_excess") == [0]
    assert judge(Above("mine/x", 10**9), [INF], "mine/x") == [0]


@pytest.mark.parametrize("threshold", ["5", None, True, [1]])
def test_a_threshold_is_a_number(threshold: Any) -> None:
    """What is no number is refused with its type."""
    with pytest.raises(TypeError, match=f"threshold of cross_entropy must be a number.*{type(threshold).__name__}"):
        Above("cross_entropy", threshold)


@pytest.mark.parametrize("make", [lambda n: Above(n, 1.0), lambda n: Below(n, 1.5), Spike])
def test_unknown_names(make: Callable[[Any], object]) -> None:
    """A name that nothing has is an error that says the nearest and all known ones; a name that is no str, a TypeError."""
    with pytest.raises(
        ValueError, match=r"unknown number 'perplexty': did you mean perplexity.*known are cross_entropy, "
    ):
        make("perplexty")
    with pytest.raises(ValueError, match=r"unknown number 'xyz': known are"):
        make("xyz")
    with pytest.raises(TypeError, match="name of a number is a str"):
        make(3)


@pytest.mark.parametrize("rule", [Above("domain/loss", 1.0), Spike("domain/loss")], ids=repr)
def test_a_name_of_ones_own_that_is_missing_warns_once(rule: Callable[[Report], Alert | None]) -> None:
    """A name with "/" may come from an extra: where a report lacks it, one warning names it and what there is."""
    with pytest.warns(UserWarning, match=r"'domain/loss', which the report of step 0 lacks; it has tokens"):
        assert judge(rule, [1], "tokens") == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge(rule, [1, 2], "tokens")


def test_non_finite() -> None:
    """NonFinite is critical, fires at the first window with non-finite tokens and re-arms at a clean one."""
    rule = NonFinite()
    assert judge(rule, [0, 0, 1, 5, 0, 2], "nonfinite_tokens") == [2, 5]
    alert = NonFinite()(Report(step=3, numbers={"nonfinite_tokens": 7}))
    assert alert is not None and (alert.severity, alert.value, alert.threshold) == ("critical", 7, 0)
    assert "7" in alert.text


def test_for_steps_after_step_and_hysteresis() -> None:
    """So many judged values in a row, not before that step, and re-armed only well inside."""
    assert judge(Above("cross_entropy", 5.0, for_steps=3), [9, 9, 4, 9, 9, 9, 9, 4, 9]) == [5]
    assert judge(Above("cross_entropy", 5.0, after_step=3), [9, 9, 9, 9]) == [3]
    assert judge(Above("cross_entropy", 5.0, hysteresis=1.0), [6, 4.5, 6, 4.0, 6]) == [0, 4]
    assert judge(Below("cross_entropy", 5.0, hysteresis=1.0), [4, 5.5, 4, 6.0, 4]) == [0, 4]
    for wrong in ({"for_steps": 0}, {"after_step": -1}, {"hysteresis": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Above("cross_entropy", 5.0, **wrong)  # type: ignore[arg-type]


def severities(rule: Callable[[Report], Alert | None], values: Iterable[float], metric: str) -> list[tuple[int, str]]:
    """Show a rule one report for each value; step and severity of each alert."""
    reports = (Report(step=step, numbers={metric: value}) for step, value in enumerate(values))
    return [(report.step, alert.severity) for report in reports if (alert := rule(report)) is not None]


def test_the_severity_of_a_threshold_can_be_chosen() -> None:
    """A person's own threshold calls at the first crossing; notices may turn into a warning when they repeat."""
    assert severities(Above("cross_entropy", 5.0), [1, 6], "cross_entropy") == [(1, "warning")]
    assert severities(Above("cross_entropy", 5.0, severity="critical"), [1, 6], "cross_entropy") == [(1, "critical")]
    assert severities(Below("cross_entropy", 5.0, severity="info"), [9, 4, 4, 9, 4], "cross_entropy") == [
        (1, "info"),
        (4, "info"),
    ]
    assert repr(Above("cross_entropy", 5.0, severity="info", repeats=2)) == (
        "Above('cross_entropy', 5, severity='info', repeats=2)"
    )
    with pytest.raises(ValueError, match="severity must be one of info, warning, critical, got 'bad'"):
        Above("cross_entropy", 5.0, severity="bad")
    with pytest.raises(
        ValueError, match="repeats turns notices into a warning, so it wants severity=\"info\"; got 'warning'"
    ):
        Above("cross_entropy", 5.0, repeats=2)
    with pytest.raises(ValueError, match="repeats must be an integer of at least 2, got 1"):
        Above("cross_entropy", 5.0, severity="info", repeats=1)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1, 9, 1, 1], [(1, "info")]),
        ([1, 9, 9, 9, 9], [(1, "info"), (2, "warning")]),  # it stays: told once
        ([9, 1, 1, 1, 1, 1, 9, 1], [(0, "info"), (6, "info")]),  # farther apart than it is quiet
        ([9, 1, 1, 1, 1, 9, 1, 9, 1, 9, 1], [(0, "info"), (5, "warning")]),  # quiet about more of the same
        ([9, 9, *[1] * 5, 9, 9], [(0, "info"), (1, "warning"), (7, "info"), (8, "warning")]),
    ],
)
def test_notices_that_repeat_are_a_warning(values: list[float], told: list[tuple[int, str]]) -> None:
    """A second value beyond the threshold within ``quiet_steps`` judged ones, however it came there."""

    def rule() -> Above:
        return Above("cross_entropy", 5.0, severity="info", repeats=2, quiet_steps=5)

    assert severities(rule(), values, "cross_entropy") == told
    for cut in range(len(values)):  # what it remembers survives a checkpoint
        first, second = rule(), rule()
        before = severities(first, values[:cut], "cross_entropy")
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        after = [(cut + step, what) for step, what in severities(second, values[cut:], "cross_entropy")]
        assert before + after == told


def test_default_alerts_are_fresh() -> None:
    """Each call gives rules that remember nothing of another run."""
    first, second = pplmon.default_alerts(), pplmon.default_alerts()
    assert [repr(rule) for rule in first] == [
        "NonFinite()",
        "Spike('cross_entropy')",
        "Spike('max_sequence_loss', hard=9, repeats=2)",
        "Spike('worst_1pct_loss')",
        "Above('max_token_excess', 14, severity='info', repeats=2)",
        "Above('relative_cross_entropy', 1.25, for_steps=16)",
    ]
    sick = Report(step=0, numbers={"nonfinite_tokens": 2, "max_token_excess": 20.0, "cross_entropy": 1.0})
    assert [bool(rule(sick)) for rule in first] == [True, False, False, False, True, False]
    fine = Report(step=1, numbers={"nonfinite_tokens": 2, "max_token_excess": 2.0, "cross_entropy": 1.0})
    assert [bool(rule(fine)) for rule in first] == [False] * 6
    assert [bool(rule(sick)) for rule in second] == [True, False, False, False, True, False]


def test_the_default_set_guards_the_first_values() -> None:
    """Before anything is known of a run: NaN, one impossible token, and a loss that is worse than a uniform guess."""

    def told(**numbers: float) -> list[tuple[int, str, str]]:
        rules = pplmon.default_alerts()
        reports = [Report(step, numbers={"cross_entropy": 9.0, **numbers}) for step in range(40)]
        raised = ((r.step, rule(r)) for r in reports for rule in rules)
        return [(step, alert.severity, str(alert.metric)) for step, alert in raised if alert is not None]

    assert told(relative_cross_entropy=1.0, max_token_excess=2.0, nonfinite_tokens=0) == []
    assert told(nonfinite_tokens=1) == [(0, "critical", "nonfinite_tokens")]
    assert told(max_token_excess=15.0) == [(0, "info", "max_token_excess"), (1, "warning", "max_token_excess")]
    assert told(relative_cross_entropy=1.3) == [(15, "warning", "relative_cross_entropy")]
