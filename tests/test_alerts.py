"""Each rule against reports made by hand, at its edges, and its false alarms on noise."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


# Spike.


def baseline(count: int, middle: float = 2.0, scale: float = 0.1) -> list[float]:
    """Values whose median is ``middle`` and whose 1.4826·MAD is ``scale``, over any stretch of six or more."""
    step = scale / 1.4826
    return [middle + (0.0, step, -step)[index % 3] for index in range(count)]


def at(scales: float, middle: float = 2.0, scale: float = 0.1) -> float:
    """The value that lies so many scales above the baseline."""
    return middle + scales * scale


# window 128 and gap 16 arm the rule after 64 + 16 values.
@pytest.mark.parametrize(("before", "armed"), [(79, False), (80, True), (81, True), (300, True)])
def test_spike_is_armed_after_half_a_window_and_the_gap(before: int, armed: bool) -> None:
    """Too short a past is no baseline: the same jump alerts once there are 80 values before it."""
    assert judge(Spike("cross_entropy"), [*baseline(before), at(1000)]) == ([before] if armed else [])


@pytest.mark.parametrize(("scales", "fires"), [(12.1, True), (11.9, False), (1000, True), (-1000, False)])
def test_one_step_alone(scales: float, fires: bool) -> None:
    """One step more than 12 scales up alerts; 11.9 does not, nor does any fall."""
    assert bool(judge(Spike("cross_entropy"), [*baseline(200), at(scales), *baseline(50)])) == fires


@pytest.mark.parametrize(
    ("scales", "steps", "fires"),
    [(4, 6, True), (4, 5, False), (4.4, 5, True), (2, 60, False), (3, 11, True), (3, 9, False)],
)
def test_several_steps_together(scales: float, steps: int, fires: bool) -> None:
    """Each step adds its height less 2: six steps at 4 alert, five do not, and 2 never do."""
    values = [*baseline(200), *[at(scales)] * steps]
    assert bool(judge(Spike("cross_entropy"), values)) == fires


def test_the_bucket_leaks_between() -> None:
    """Steps at 8 with two quiet ones between never fill the bucket; the same steps in a row do."""
    apart = [value for _ in range(4) for value in (at(8), at(0), at(0), at(0))]
    assert judge(Spike("cross_entropy"), [*baseline(200), *apart]) == []
    assert judge(Spike("cross_entropy"), [*baseline(200), at(8), at(8)]) == [201]


def test_the_gap_keeps_a_young_spike_out_of_its_own_baseline() -> None:
    """A slow rise of 16 steps is judged against what was before it; with no gap and a short window it would hide itself."""
    ramp = [at(3.0)] * 16
    assert judge(Spike("cross_entropy"), [*baseline(200), *ramp]) == [210]
    assert judge(Spike("cross_entropy", window=8, gap=0), [*baseline(200), *ramp]) == []
    assert judge(Spike("cross_entropy", window=8, gap=16), [*baseline(200), *ramp]) == [210]


def test_quiet_steps_and_adapting() -> None:
    """After an alert the rule is quiet for ``quiet_steps``, then alerts again if it is still up, or has adapted to a plateau."""
    plateau = [*baseline(200), *[at(50)] * 300]
    assert judge(Spike("cross_entropy", quiet_steps=10, recovery_steps=None), plateau)[:3] == [200, 210, 220]
    # By then the plateau is the baseline.
    assert judge(Spike("cross_entropy", quiet_steps=200, recovery_steps=None), plateau) == [200]
    again = [*baseline(200), at(50), *baseline(210), at(50)]
    assert judge(Spike("cross_entropy"), again) == [200, 411]
    assert judge(Spike("cross_entropy", quiet_steps=500), again) == [200]


def test_a_level_that_does_not_come_back_is_a_second_and_critical_alert() -> None:
    """``recovery_steps`` after a spike the newest values are held against the baseline frozen before it."""
    back = [*baseline(200), *[at(50)] * 30, *baseline(400)]
    gone = [*baseline(200), *[at(50)] * 400]
    assert judge(Spike("cross_entropy"), back) == [200]
    rule = Spike("cross_entropy", recovery_steps=100)
    alerts = [rule(Report(step, numbers={"cross_entropy": value})) for step, value in enumerate(gone)]
    told = [alert for alert in alerts if alert is not None]
    assert [(alert.step, alert.severity) for alert in told] == [(200, "warning"), (300, "critical")]
    assert "did not recover" in told[1].text and told[1].threshold is not None
    # What it waits for survives a checkpoint.
    rule, resumed = Spike("cross_entropy", recovery_steps=100), Spike("cross_entropy", recovery_steps=100)
    for step, value in enumerate(gone[:250]):
        rule(Report(step, numbers={"cross_entropy": value}))
    resumed.load_state_dict(rule.state_dict())
    later = [resumed(Report(step, numbers={"cross_entropy": value})) for step, value in enumerate(gone[250:], 250)]
    assert [alert.step for alert in later if alert is not None] == [300]


def test_for_steps_after_step_and_hysteresis() -> None:
    """So many judged values in a row, not before that step, and re-armed only well inside."""
    assert judge(Above("cross_entropy", 5.0, for_steps=3), [9, 9, 4, 9, 9, 9, 9, 4, 9]) == [5]
    assert judge(Above("cross_entropy", 5.0, after_step=3), [9, 9, 9, 9]) == [3]
    assert judge(Above("cross_entropy", 5.0, hysteresis=1.0), [6, 4.5, 6, 4.0, 6]) == [0, 4]
    assert judge(Below("cross_entropy", 5.0, hysteresis=1.0), [4, 5.5, 4, 6.0, 4]) == [0, 4]
    for wrong in ({"for_steps": 0}, {"after_step": -1}, {"hysteresis": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Above("cross_entropy", 5.0, **wrong)  # type: ignore[arg-type]


@given(
    st.lists(st.sampled_from([1.0, 2.0, 1.5, -3.0, 1e-9, 7.25]) | st.floats(-10, 10), max_size=60),
    st.integers(2, 9),
    st.integers(0, 5),
)
def test_the_rolling_baseline_is_the_median_and_mad_of_its_window(values: list[float], window: int, gap: int) -> None:
    """Against the definition, at every step, with ties, for odd and even windows."""
    from statistics import median

    from pplmon.alerts.rules.baseline import Baseline

    rolling = Baseline(window, gap)
    for count, value in enumerate(values):
        past = values[: max(0, count - gap)][-window:]
        assert rolling.armed == (len(past) >= window // 2)
        if past:
            middle = median(past)
            mad = median([abs(x - middle) for x in past])
            assert rolling.median() == middle
            assert rolling.scale(middle) == max(1.4826 * mad, 1e-3 * abs(middle), 1e-6)
        rolling.push(value)


def test_scale_floors() -> None:
    """A constant series has a scale all the same: 1e-3 of its median, or 1e-6 where that is 0."""
    assert judge(Spike("cross_entropy"), [3.0] * 200 + [3.0 + 0.003 * 12.1]) == [200]
    assert judge(Spike("cross_entropy"), [3.0] * 200 + [3.0 + 0.003 * 11.9]) == []
    assert judge(Spike("max_token_excess"), [-3.0] * 200 + [-3.0 + 0.003 * 12.1], "max_token_excess") == [200]
    assert judge(Spike("max_token_excess"), [-3.0] * 200 + [-3.0 + 0.003 * 11.9], "max_token_excess") == []
    assert judge(Spike("cross_entropy"), [0.0] * 200 + [12.1e-6]) == [200]
    assert judge(Spike("cross_entropy"), [0.0] * 200 + [11.9e-6]) == []


def test_threshold_is_in_the_metrics_unit() -> None:
    """The alert's threshold is the value that one step would have had to pass."""
    rule = Spike("cross_entropy")
    judge(rule, baseline(200))
    alert = rule(Report(step=200, numbers={"cross_entropy": 9.0}))
    assert alert is not None and alert.threshold == pytest.approx(at(12))
    assert (alert.rule, alert.value, alert.step) == ("Spike", 9.0, 200)


def test_non_finite_values_alert_at_once_and_stay_out_of_the_baseline() -> None:
    """NaN and inf alert even before the rule is armed, once per quiet time, and change nothing of what it knows."""
    for bad in (NAN, INF):
        assert judge(Spike("cross_entropy", quiet_steps=50), [2.0, bad, bad, 2.0]) == [1]
        assert judge(Spike("cross_entropy", quiet_steps=50), [2.0, *[bad] * 60]) == [1, 51]
    healthy = [*baseline(160), at(11.9), at(0), at(12.1)]
    ill = [*baseline(80), *[NAN] * 100, *baseline(80), at(11.9), at(0), at(12.1)]
    assert judge(Spike("cross_entropy", quiet_steps=1), healthy) == [162]
    assert judge(Spike("cross_entropy", quiet_steps=1), ill)[-1] == 262
    assert [step for step in judge(Spike("cross_entropy", quiet_steps=1), ill) if not 80 <= step < 180] == [262]


@pytest.mark.filterwarnings("ignore:pplmon.*lacks")
def test_none_is_passed_over() -> None:
    """A number that could not be had is neither an alert nor a value."""
    values: list[float | None] = [*baseline(100), *[None] * 50, at(12.1)]
    assert judge(Spike("cross_entropy"), values) == [150]


def spikes_by_definition(values: list[float]) -> list[int]:
    """The rule of the docstring, written down a second time."""
    bucket, quiet, fired = 0.0, -1, []
    for step, value in enumerate(values):
        past = values[max(0, step - 144) : step]
        if len(past) < 80:
            continue
        past = past[: len(past) - 16]
        middle = median(past)
        scale = max(1.4826 * median(abs(x - middle) for x in past), 1e-3 * abs(middle), 1e-6)
        bucket = 0.0 if step < quiet else max(0.0, bucket + (value - middle) / scale - 2)
        if bucket > 10:
            fired.append(step)
            bucket, quiet = 0.0, step + 200
    return fired


def test_agrees_with_its_definition() -> None:
    """On a drifting, jumping series the rule alerts at the very steps that its definition gives."""
    rng = random.Random(3)
    values = [
        3 + math.exp(-i / 900) + rng.gauss(0, 0.05) + (rng.random() < 0.01) * rng.expovariate(1) for i in range(3000)
    ]
    fired = spikes_by_definition(values)
    assert len(fired) > 3 and judge(Spike("cross_entropy"), values) == fired


# 20,000 steps: at the 3.2 alarms per 100,000 of the simulator (a third of them real shifts) 0.6 are expected, and
# more than 4 come by chance once in 4,000 runs.
def test_few_false_alarms_on_noise() -> None:
    """Gaussian noise is no spike."""
    rng = random.Random(0)
    assert len(judge(Spike("cross_entropy"), (3.0 + 0.1 * rng.gauss(0, 1) for _ in range(20_000)))) <= 4


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"window": 1}, "window must be an integer of at least 2, got 1"),
        ({"gap": -1}, "gap must be an integer of at least 0"),
        ({"quiet_steps": 1.5}, "quiet_steps must be an integer"),
        ({"leak": -1.0}, "leak must be a finite number of at least 0"),
        ({"leak": NAN}, "leak must be a finite"),
        ({"limit": 0}, "limit must be above 0"),
        ({"limit": INF}, "never fire"),
    ],
)
def test_spike_settings(settings: dict[str, Any], text: str) -> None:
    """Settings with which the rule could never fire or never rest are refused."""
    with pytest.raises(ValueError, match=text):
        Spike("cross_entropy", **settings)


def test_default_alerts_are_fresh() -> None:
    """Each call gives rules that remember nothing of another run, and they are the ones the contract names."""
    first, second = pplmon.default_alerts(), pplmon.default_alerts()
    assert [repr(rule) for rule in first] == [
        "NonFinite()",
        "Spike('cross_entropy')",
        "Spike('max_sequence_loss', limit=8)",
        "Spike('worst_1pct_loss')",
        "Above('max_token_excess', 14)",
    ]
    bad = Report(step=0, numbers={"nonfinite_tokens": 2, "max_token_excess": 20.0, "cross_entropy": 1.0})
    assert [bool(rule(bad)) for rule in first] == [True, False, False, False, True]
    assert [bool(rule(bad)) for rule in first] == [False] * 5
    assert [bool(rule(bad)) for rule in second] == [True, False, False, False, True]
