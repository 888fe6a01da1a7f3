"""JUDGE: ``Spike`` against its definition and at its edges, and what it raises on noise, stairs and drifts."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pplmon
from pplmon import Report, Spike
from pplmon.alerts.rules.baseline import Baseline

NAN, INF = math.nan, math.inf
Told = list[tuple[int, str]]  # step and severity


def alerts_of(values: Iterable[float | None], rule: Spike | None = None, every: int = 1) -> list[pplmon.Alert]:
    """Show a rule one report for each value, ``every`` steps apart."""
    rule = rule or Spike("cross_entropy")
    numbers = [{} if value is None else {rule.metric: value} for value in values]
    return [a for place, n in enumerate(numbers) if (a := rule(Report(place * every, numbers=n))) is not None]


def told(values: Iterable[float | None], rule: Spike | None = None) -> Told:
    """Step and severity of each alert."""
    return [(alert.step or 0, alert.severity) for alert in alerts_of(values, rule)]


def pages(values: Iterable[float | None], rule: Spike | None = None) -> list[int]:
    """The steps of what calls a person."""
    return [step for step, severity in told(values, rule) if severity != "info"]


def flat(count: int) -> list[float]:
    """Twos: their scale is the least there is, a thousandth of them."""
    return [2.0] * count


def at(scales: float) -> float:
    """The value that lies so many scales above twos."""
    return 2.0 + 0.002 * scales


def noise(count: int, middle: float = 3.0, scale: float = 0.1, seed: int = 0) -> list[float]:
    """Gaussian noise."""
    draw = random.Random(seed)
    return [middle + draw.gauss(0, scale) for _ in range(count)]


def burst(values: list[float], start: int, size: float, decay: float) -> list[float]:
    """The values with a burst that begins at once and decays."""
    return [v + size * math.exp((start - i) / decay) * (i >= start) for i, v in enumerate(values)]


def rise(values: list[float], start: int, size: float, steps: int = 1) -> list[float]:
    """The values with a rise that is complete after so many steps, and stays."""
    return [v + size * min(1.0, max(0.0, (i - start + 1) / steps)) for i, v in enumerate(values)]


# One value.


@pytest.mark.parametrize(
    ("scales", "severities"), [(12.1, ["info"]), (11.9, []), (1e6, ["info"]), (-12.1, ["info"]), (-11.9, [])]
)
def test_one_value_alone_is_a_notice(scales: float, severities: list[str]) -> None:
    """More than ``hard`` scales above or below; however far, it calls nobody."""
    assert [what for _, what in told([*flat(200), at(scales), *flat(400)])] == severities


def test_what_a_notice_says() -> None:
    """The value, what was usual, and the value beyond which one is told, in the metric's unit."""
    (up,) = alerts_of([*flat(200), 9.0])
    assert (up.rule, up.value, up.step, up.severity) == ("Spike", 9.0, 200, "info")
    assert up.threshold == pytest.approx(at(12))
    assert up.text == "step 200: train/cross_entropy jumped to 9 from a median of 2 (usual spread 0.002)"
    (down,) = alerts_of([*flat(200), 1.0])
    assert down.text == "step 200: train/cross_entropy fell to 1 from a median of 2 (usual spread 0.002)"
    assert down.threshold == pytest.approx(at(-12))
    assert told([*flat(200), at(10)], Spike("cross_entropy", hard=9.0)) == [(200, "info")]


@pytest.mark.parametrize(("window", "gap"), [(128, 16), (16, 4), (3, 1), (5, 0), (200, 7)])
def test_it_says_how_many_values_it_needs(window: int, gap: int) -> None:
    """One fewer, and the same value is not judged."""
    rule = Spike("cross_entropy", window, gap)
    assert told([*flat(rule.needs), 9.0], Spike("cross_entropy", window, gap)) == [(rule.needs, "info")]
    assert told([*flat(rule.needs - 1), 9.0], rule) == []


@pytest.mark.parametrize(("before", "armed"), [(63, False), (64, True), (65, True), (300, True)])
def test_it_begins_after_64_values(before: int, armed: bool) -> None:
    """Sooner nothing is known to hold a value against."""
    assert bool(told([*flat(before), at(1000)])) == armed


# Several values.


@pytest.mark.parametrize(
    ("scales", "count", "fires"),
    [
        (8, 1, False),
        (8, 2, True),  # each fills 60 % of the bucket
        (1e6, 2, True),
        (4.5, 4, False),
        (4.5, 5, True),
        (3, 5, False),
        (2.2, 6, False),  # stays: 1.2 each, of 8
        (2.2, 7, True),
        (1.5, 15, False),
        (1.5, 17, True),
        (1.0, 100, False),
    ],
)
def test_several_values_together_call_a_person(scales: float, count: int, fires: bool) -> None:
    """A jump of two, or a level that stays a little higher."""
    assert bool(pages([*flat(200), *[at(scales)] * count, *flat(30)])) == fires


def test_the_bucket_leaks_between() -> None:
    """Values at 8 with five quiet ones between never fill the bucket."""
    apart = [value for _ in range(9) for value in (at(8), *flat(5))]
    assert pages([*flat(200), *apart]) == []


def test_hard_values_that_repeat_call_a_person() -> None:
    """The third within ``quiet_steps`` judged values, or as many as ``repeats`` says; ``None``: never."""
    values = flat(200) + 4 * [at(20), *flat(80)]
    assert told(values) == [(200, "info"), (362, "warning")]
    assert told(values, Spike("cross_entropy", repeats=2)) == [(200, "info"), (281, "warning")]
    assert told(values, Spike("cross_entropy", repeats=None)) == [(200, "info"), (443, "info")]
    text = alerts_of(values)[1].text
    assert text == "step 362: train/cross_entropy jumped again, to 2.04 from a median of 2 (usual spread 0.002)"
    assert told(flat(200) + 4 * [at(20), *flat(210)]) == [(step, "info") for step in (200, 411, 622, 833)]


def test_a_notice_mutes_no_warning() -> None:
    """A hard value, and 28 later a burst of 17 values."""
    values = noise(600)
    values[300] += 1.3
    for step in range(328, 345):
        values[step] += 2.0
    assert told(values) == [(300, "info"), (329, "warning")]


def test_a_warning_mutes_notices_and_no_critical_alert() -> None:
    """Within ``quiet_steps`` of a warning one value more is no news; that it does not come back is."""
    values = [*flat(200), *[at(50)] * 150, at(500), *[at(50)] * 250]
    alerts = alerts_of(values)
    assert [(a.step, a.severity) for a in alerts] == [(200, "info"), (201, "warning"), (401, "critical")]
    assert "did not recover: its median is 2.1 200 judged values after it rose, 2 before" in alerts[2].text
    assert alerts[2].threshold == pytest.approx(at(2))
    assert told([*flat(200), *[at(50)] * 100, NAN, *[at(50)] * 10])[-1] == (300, "critical")


def test_a_fall_mutes_no_jump() -> None:
    """They are different news, though both are notices."""
    assert told([*flat(200), at(-50), *flat(50), at(50), *flat(50), at(50)]) == [(200, "info"), (251, "info")]


def test_what_comes_back_is_not_critical() -> None:
    """``recovery_steps`` later the newest 64 values are held against the level of before."""
    back = [*flat(200), *[at(50)] * 30, *flat(400)]
    assert told(back) == [(200, "info"), (201, "warning")]
    gone = [*flat(200), *[at(50)] * 400]
    assert told(gone, Spike("cross_entropy", recovery_steps=100))[-1] == (301, "critical")
    assert told(gone, Spike("cross_entropy", recovery_steps=None)) == [(200, "info"), (201, "warning")]


def test_a_level_is_held_against_what_was_before_it_rose() -> None:
    """A slow rise carries its own baseline along; told late, it is measured from where it began."""
    values = rise(noise(1200), 500, 2.0, 400)
    alerts = alerts_of(values)
    assert [a.severity for a in alerts[:2]] == ["warning", "critical"]
    assert alerts[1].threshold is not None and alerts[1].threshold < 3.4


# Rises on noise.


@pytest.mark.parametrize("seed", range(10))
def test_slow_rises_plateaus_and_bursts_on_noise(seed: int) -> None:
    """One nat in 300 steps where the noise is 0.1 or 0.17, three scales for good, eight that decay over 15 steps."""
    values = noise(1600, seed=seed)
    assert any(1000 <= step < 1100 for step in pages(rise(values, 1000, 0.3)))
    assert any(1000 <= step < 1045 for step in pages(burst(values, 1000, 0.8, 15)))
    assert any(1000 <= step < 1300 for step in pages(rise(values, 1000, 1.0, 300)))
    assert any(1000 <= step < 1300 for step in pages(rise(noise(1600, scale=0.17, seed=seed), 1000, 1.0, 300)))


# The seed of each series is fixed. 0.3 in 100,000 values are expected of Gaussian noise.
def test_noise_alone_raises_nothing() -> None:
    """Gaussian noise has no values beyond 12 scales, and levels that come by chance do not last."""
    assert told(noise(20_000)) == []


@pytest.mark.parametrize("period", [2, 3, 4, 5, 7, 8, 16, 24, 32])
def test_a_pattern_is_no_news(period: int) -> None:
    """Values that come again and again, also after as many as are compared with each other."""
    assert told([2.0 + step % period / 100 for step in range(1000)]) == []
    assert told([1.9, 2.1] * 500) == []


def test_noise_with_a_period_is_noise() -> None:
    """Where neighbours are alike (real data come in shards), a level has to last longer until it calls."""
    draw = random.Random(1)
    values = [3 + 0.04 * math.sin(i / 48 * 2 * math.pi) + draw.gauss(0, 0.03) for i in range(10_000)]
    assert pages(values) == []
    assert pages(rise(values, 5000, 0.3)) != []


@pytest.mark.parametrize("size", [0.6, 1.5])
def test_hard_batches_that_are_usual_are_told_at_first_only(size: float) -> None:
    """One in ten, from some step on: a few alerts, then it is known."""
    draw = random.Random(2)
    values = noise(10_000)
    mixed = [v + size * (i >= 1000 and draw.random() < 0.1) for i, v in enumerate(values)]
    raised = told(mixed)
    assert 1 <= len(raised) <= 4 and all(step < 1600 for step, _ in raised)


# Levels that change.


@pytest.mark.parametrize("later", [48, 60, 100, 300])
def test_it_has_learnt_a_new_level_after_48_values(later: int) -> None:
    """Stairs down, as at an epoch of fine-tuning: one notice, and what comes later is judged by the new level."""
    stairs = noise(500) + noise(1000, 2.5, seed=1)
    assert [what for _, what in told(stairs)] == ["info"]
    assert any(500 + later <= step < 545 + later for step in pages(burst(stairs, 500 + later, 0.8, 15)))
    hard = [v + 1.6 * (i == 500 + later) for i, v in enumerate(stairs)]
    assert (500 + later, "info") in told(hard)


def test_a_curriculum_step_is_told_once() -> None:
    """Harder data for good: a warning, then that it did not come back, then it is the level."""
    harder = noise(500) + noise(2000, 3.5, seed=1)
    assert [what for _, what in told(harder)] in (["warning", "critical"], ["info", "warning", "critical"])
    assert pages(burst(harder, 1200, 0.8, 15))[-1] >= 1200


def steep(count: int, seed: int = 0) -> list[float]:
    """A loss as in the first steps of a training: it falls from 11 to 5."""
    draw = random.Random(seed)
    return [5 + 6 * math.exp(-i / 80) + draw.gauss(0, 0.05) for i in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_a_falling_loss_is_no_drop_and_hides_no_burst(seed: int) -> None:
    """From the first values on that are judged."""
    values = steep(1500, seed)
    assert told(values) == []
    for start in (70, 120, 200, 400):
        assert any(start <= step < start + 20 for step in pages(burst(values, start, 2.0, 20))), start


def test_a_loss_that_drops_is_a_notice() -> None:
    """A repeated batch, leaked labels: one value far below, or some that are a little."""
    values = noise(600)
    low = [v - 0.7 * (300 <= i < 306) for i, v in enumerate(values)]
    assert told(low) == [(303, "info")] or told(low) == [(302, "info")]
    assert told([v - 2.0 * (i == 300) for i, v in enumerate(values)]) == [(300, "info")]


# Rows and steps.


@pytest.mark.parametrize("every", [5, 10, 50, 200])
def test_lengths_count_judged_values(every: int) -> None:
    """The same values give the same alerts, whatever the steps between them."""
    values = rise(noise(900), 300, 1.0)
    values[700] += 2.0
    one = [(a.step, a.severity, a.value, a.threshold) for a in alerts_of(values)]
    assert len(one) >= 3
    apart = [((a.step or 0) // every, a.severity, a.value, a.threshold) for a in alerts_of(values, every=every)]
    assert apart == one


# What it remembers.


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 900), st.integers(0, 10_000))
def test_a_checkpoint_changes_nothing(cut: int, seed: int) -> None:
    """At any value, within a block, a quiet time or a rise."""
    values = burst(rise(noise(900, seed=seed), 300, 0.25, 100), 640, 1.0, 10)
    values[150] += 2.0
    whole = alerts_of(values)
    first, second = Spike("cross_entropy"), Spike("cross_entropy")
    before = alerts_of(values[:cut], first)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    after = [second(Report(cut + place, numbers={"cross_entropy": v})) for place, v in enumerate(values[cut:])]
    assert before + [a for a in after if a is not None] == whole


def test_a_state_of_version_01_keeps_its_values() -> None:
    """What is usual is learnt from them; the monitor's own, too."""
    rule = Spike("cross_entropy")
    rule.load_state_dict({"past": flat(144), "bucket": 3.0, "quiet_until": 9000, "frozen": [9000, 2.0, 0.1]})
    assert told([at(12.1), at(12.1)], rule) == [(0, "info"), (1, "warning")]
    monitor = pplmon.Monitor(alerts=[pplmon.Above("cross_entropy", 5.0), Spike("cross_entropy")])
    state = monitor.state_dict()
    old = {"past": flat(144), "bucket": 0.0, "quiet_until": None, "frozen": None}
    memory = [["Above('cross_entropy', 5)", {"fired": True, "beyond": 3}], ["Spike('cross_entropy')", old]]
    monitor.load_state_dict({**state, "judge": {**state["judge"], "rules": memory, "usual": flat(144)}})


def expected(values: Sequence[float], window: int, gap: int) -> tuple[float, float, float, float] | None:
    """Middle, scales upwards and downwards and where a fall leads, by definition, in numpy."""
    block, lag = max(1, gap // 2), max(1, gap)
    known = len(values) // block * block - gap  # what was old at the last renewal
    level, changes = max(4, window // 4), max(4, window)
    old = np.array(values[max(0, known - changes - lag) : max(0, known)])
    if len(old) < lag + level:
        return None
    middle = float(np.median(old[-level:]))
    steps = np.sort(old[lag:] - old[:-lag])
    count, trend = len(steps), float(np.median(steps))
    spread = (steps[3 * count // 4] - steps[count // 4]) / 1.349 / math.sqrt(2)
    newest, straight = np.sort(old[-level:]), np.sort(old[-level:] - trend / lag * np.arange(level))
    level_spread = min((some[3 * level // 4] - some[level // 4]) / 1.349 * 2 / 3 for some in (newest, straight))
    scale, hard = max(spread, level_spread, 1e-3 * abs(middle), 1e-6), min(count, max(3, count // 32))
    above, below = max(scale, (steps[-hard] - trend) / 4), max(scale, (trend - steps[hard - 1]) / 4)
    return middle, above, below, middle + 1.5 * min(0.0, trend) / lag * (level / 2 + gap + block / 2)


def test_two_early_hard_batches_hide_no_later_one() -> None:
    """They do not widen the scale: a value of 9.8 against a median of 3 is told, as a notice or, as the third, a warning."""
    noise = random.Random(0)
    for places in ((40, 80), (70, 90), (66, 97)):
        values = [3.0 + noise.gauss(0, 0.2) + 6.0 * (step in places) + 6.8 * (step == 130) for step in range(131)]
        rule = pplmon.Spike("cross_entropy", quiet_steps=30)
        alerts = [rule(pplmon.Report(step, numbers={"cross_entropy": value})) for step, value in enumerate(values)]
        assert alerts[130] is not None, places


@given(
    st.lists(st.sampled_from([1.0, 2.0, 1.5, -3.0, 1e-9, 7.25]) | st.floats(-10, 10), max_size=80),
    st.integers(2, 24),
    st.integers(0, 9),
)
def test_the_baseline_is_what_its_definition_says(values: list[float], window: int, gap: int) -> None:
    """After every value, with ties, for odd and even sizes."""
    base = Baseline(window, gap)
    for count, value in enumerate(values):
        base.push(value)
        want = expected(values[: count + 1], window, gap)
        if want is None:
            assert base.middle is None
        else:
            assert (base.middle, base.scale, base.scale_below, base.falling) == pytest.approx(want, rel=1e-12)
    assert base.newest(5) == values[-5:]


def test_the_memory_of_the_noise_is_told_from_the_means_of_blocks() -> None:
    """1 for independent values; some 8 / 1.5 where a block of eight is one value eight times."""

    def memory(values: Iterable[float]) -> float:
        base, found = Baseline(), []
        for value in values:
            base.push(value)
            found.append(base.memory)
        return float(np.median(found[1000:]))

    assert memory(noise(4000)) < 1.1
    slow = [value for value in noise(500) for _ in range(8)]
    assert 3.5 < memory(slow) < 6.5


def test_the_long_middle_begins_anew() -> None:
    """The median of some 500 values; after ``forget`` only of what came later."""
    base = Baseline()
    for value in [*flat(600), *[3.0] * 200]:
        base.push(value)
    assert base.long_middle == 2.0
    base.forget()
    assert base.long_middle is None
    for _ in range(239):
        base.push(3.0)
    assert base.long_middle is None
    base.push(3.0)
    assert base.long_middle == 3.0


# What is no value, and settings.


def test_non_finite_values_are_critical_and_stay_out_of_the_baseline() -> None:
    """NaN and inf alert even before anything is known, once per quiet time, and change nothing else."""
    for sick in (NAN, INF):
        rule = Spike("cross_entropy", quiet_steps=50)
        assert told([2.0, sick, sick, 2.0], rule) == [(1, "critical")]
        assert told([2.0, *[sick] * 60], Spike("cross_entropy", quiet_steps=50)) == [(1, "critical"), (51, "critical")]
    ill = [*flat(80), *[NAN] * 100, *flat(80), at(11.9), *flat(9), at(12.1)]
    assert [step for step, what in told(ill) if what == "info"] == [270]
    nothing = Report(0, numbers={"cross_entropy": NAN, "tokens": 0})
    assert Spike("cross_entropy")(nothing) is None  # no value at all


@pytest.mark.filterwarnings("ignore:pplmon.*lacks")
def test_none_is_passed_over() -> None:
    """A number that could not be had is neither an alert nor a value."""
    values: list[float | None] = [*flat(100), *[None] * 50, at(12.1)]
    assert told(values) == [(150, "info")]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=30), st.integers(1, 12))
def test_no_number_is_too_large(values: list[float], times: int) -> None:
    """A perplexity may be anything that a float holds: nothing is raised, and what is remembered can be saved."""
    rule = Spike("perplexity", window=8, gap=2)
    alerts_of(values * times, rule)
    alerts_of(noise(200), rule)
    json.loads(json.dumps(rule.state_dict()))
    assert pages(burst(noise(200, seed=1), 100, 2.0, 20), rule)  # and it goes on


def test_scale_floors() -> None:
    """A constant series has a scale all the same: 1e-3 of its median, or 1e-6 where that is 0."""
    assert told([-3.0] * 200 + [-3.0 + 0.003 * 12.1], Spike("max_token_excess")) == [(200, "info")]
    assert told([-3.0] * 200 + [-3.0 + 0.003 * 11.9], Spike("max_token_excess")) == []
    assert told([0.0] * 200 + [12.1e-6]) == [(200, "info")]
    assert told([0.0] * 200 + [11.9e-6]) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"window": 1}, "window must be an integer of at least 2, got 1"),
        ({"gap": -1}, "gap must be an integer of at least 0"),
        ({"quiet_steps": 1.5}, "quiet_steps must be an integer"),
        ({"repeats": 1}, "repeats must be an integer of at least 2, got 1"),
        ({"leak": -1.0}, "leak must be a finite number of at least 0"),
        ({"leak": NAN}, "leak must be a finite"),
        ({"limit": 0}, "limit must be above 0"),
        ({"limit": INF}, "never fire"),
        ({"hard": 0}, "hard must be above 0 and finite: scales beyond which one value is a notice; got 0"),
        ({"hard": INF}, "hard must be above 0 and finite"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], text: str) -> None:
    """Settings with which the rule could never fire or never rest are refused."""
    with pytest.raises(ValueError, match=text):
        Spike("cross_entropy", **options)
