"""Suggest a threshold for a wanted rate of false alarms: a quantile of quiet steps, or a limit found by a search."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pplmon.alerts import Above, Below, MetricRule, options
from pplmon.replay.read.series import ReplayError, Row, Series
from pplmon.replay.score import PER, WITHIN, Watch

LEAST_VALUES = 1000  # quiet values that an estimate of the tail needs
TAIL = 0.01  # the share of them that shows how fast it falls
HIGHEST_LIMIT, LOWEST_LIMIT = 1e6, 0.05
CLOSE_ENOUGH = 1.01  # the limit is searched to 1 %


@dataclass(frozen=True)
class Suggestion:
    """A changed rule, and its false alarms on this run."""

    rule: str  # as it was
    suggested: str | None  # as text; None where the data do not suffice
    false_events: int | None = None  # on this run's quiet values
    false_per_100k_values: float | None = None
    note: str = ""


def check_rate(rate: float) -> float:
    """Raise for a rate that cannot be reached: alarms within 200 judged values are one event."""
    if not 0 < rate <= PER / WITHIN:
        raise ReplayError(
            f"--wanted-rate is in false alarms per {PER:,} judged values: above 0, and at most {PER / WITHIN:g}, because "
            f"alarms within {WITHIN} values are one; got {rate:g}"
        )
    return rate


def suggest(rule: MetricRule, rate: float, series: Series, watch: Watch) -> Suggestion:
    """Return the rule with a threshold (``Above``, ``Below``) or ``tuned_by`` that gives about ``rate``.

    Args:
        rule: the rule to tune; its other arguments stay.
        rate: false alarms per 100,000 judged values: pages, or notices of a rule that gives only those.
        series: the series to tune on.
        watch: its incidents, whose values are left out.
    """
    check_rate(rate)
    quiet = watch.quiet_values([rule.stage])
    allowed = rate * quiet / PER
    runs = [[row for row in rows if rule.judges(row.stage)] for rows in series.runs]
    option = rule.tuned_by
    if option is None:
        return Suggestion(repr(rule), None, note="it has no threshold to choose")
    if isinstance(rule, (Above, Below)):
        value, note = _threshold(rule, allowed, runs, watch)
    else:
        value, note = _limit(rule, option, allowed, runs, watch)
    if value is None:
        return Suggestion(repr(rule), None, note=note)
    try:
        new = changed(rule, option, value)
    except ValueError as error:
        return Suggestion(repr(rule), None, note=str(error))
    events = watch.false_events(_alarms(new, runs))
    per = events * PER / quiet if quiet else None
    return Suggestion(repr(rule), repr(new), events, per, note)


def changed(rule: MetricRule, option: str, value: Any) -> MetricRule:
    """Return a fresh rule like this one, with one argument changed."""
    new = type(rule)(**{**options(rule), option: value})
    new.warns = False
    return new


def _alarms(rule: MetricRule, runs: Sequence[Sequence[Row]]) -> list[tuple[int, int]]:
    """Judge every run by a fresh copy of the rule; return (run, step) of each alarm."""
    alarms = []
    for run, rows in enumerate(runs):
        fresh = type(rule)(**options(rule))
        fresh.warns = False
        raised = ((row.step, alert) for row in rows if (alert := fresh(row)) is not None)
        alarms += [(run, step) for step, alert in raised if rule.severity == "info" or alert.severity != "info"]
    return alarms


def _limit(
    rule: MetricRule, option: str, allowed: float, runs: Sequence[Sequence[Row]], watch: Watch
) -> tuple[float | None, str]:
    """Search the least limit with no more than ``allowed`` false alarms: the rule is run for each limit."""

    def too_many(limit: float) -> bool:
        return watch.false_events(_alarms(changed(rule, option, limit), runs)) > allowed

    if not any(runs):
        return None, "there is no row of its stage"
    high = float(options(rule)[option])
    while too_many(high):
        high *= 2
        if high > HIGHEST_LIMIT:
            return None, f"it alerts more often at any limit up to {HIGHEST_LIMIT:g}"
    low = high / 2
    while low > LOWEST_LIMIT and not too_many(low):
        high, low = low, low / 2
    while high / low > CLOSE_ENOUGH and low > LOWEST_LIMIT:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if too_many(middle) else (low, middle)
    return _rounded(high, up=True), _resolution(allowed, watch.quiet_values([rule.stage]))


def _resolution(allowed: float, quiet: int) -> str:
    if allowed >= 1:
        return ""
    least = PER / quiet if quiet else math.inf
    return (
        f"{quiet:,} quiet values show no rate below {least:.3g} per 100k: this is the least limit without a false "
        "alarm in them; a longer run tells more"
    )


def _threshold(
    rule: Above | Below, allowed: float, runs: Sequence[Sequence[Row]], watch: Watch
) -> tuple[float | None, str]:
    """Return the value that quiet steps pass ``allowed`` times; beyond the data by extrapolating their tail."""
    sign = 1.0 if isinstance(rule, Above) else -1.0
    values = sorted(_lasting(rule, sign, runs, watch), reverse=True)
    if len(values) <= allowed or not values:
        return None, f"{len(values)} quiet values are too few"
    if allowed >= 1:
        rank = int(allowed)  # so many values are beyond it
        return _rounded(sign * (values[rank - 1] + values[rank]) / 2, up=sign > 0), ""
    if len(values) < LEAST_VALUES:
        return (
            None,
            f"the wanted rate is beyond {len(values)} quiet values: at least {LEAST_VALUES} tell how the tail falls",
        )
    count = int(TAIL * len(values))
    edge = values[count]
    fall = sum(value - edge for value in values[:count]) / count  # the mean excess: 1/slope of an exponential tail
    note = f"beyond what {watch.quiet_values([rule.stage]):,} quiet values show: extrapolated from how the worst {TAIL:.0%} fall off"
    return _rounded(sign * (edge + fall * math.log(count / allowed)), up=sign > 0), note


def _lasting(rule: Above | Below, sign: float, runs: Sequence[Sequence[Row]], watch: Watch) -> list[float]:
    """Return, for each quiet row, the value that it and its predecessors, ``for_steps`` in all, are beyond."""
    values = []
    for rows in runs:
        newest: deque[float] = deque(maxlen=rule.for_steps)
        for row in rows:
            value = row.numbers.get(rule.metric)
            if value is None or not math.isfinite(value) or row.step < rule.after_step or watch.in_incident(row.step):
                continue
            newest.append(sign * value)
            if len(newest) == rule.for_steps:
                values.append(min(newest))
    return values


def _rounded(value: float, up: bool) -> float:
    """Round to four digits, away from firing."""
    if value == 0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 3)
    return float(f"{(math.ceil if up else math.floor)(value / unit) * unit:.6g}")
