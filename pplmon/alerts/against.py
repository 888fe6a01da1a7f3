"""Judge a run beside an earlier one on the same data: rules see the difference, and alerts say what is data, what model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pplmon.alerts.alert import Alert, MetricRule, Rule
from pplmon.alerts.earlier import Earlier
from pplmon.alerts.noise import Noise
from pplmon.alerts.rules.baseline import LEAST_SCALE, Baseline
from pplmon.report.report import Report

MAIN = "cross_entropy"  # the number whose noise tells if the orders of the data match
FLOOR = 0.1  # of a number's own noise: less is no noise, as where two runs are bit-identical for a while
UNUSUAL = 4.0  # scales of the difference
WITHIN = 200  # judged values: an alert on the number itself, so soon after one on its difference, is about the same
DATA, MODEL = "data", "model"


class Against:
    """Judges reports beside the rows of an earlier run.

    A rule that holds values against earlier ones (``MetricRule.compares``) also judges the difference to the earlier run:
    what it finds there only this run shows (*model*). What it finds in the number itself both show (*data*), so a warning
    becomes a notice. All of this while the noise of both runs is alike; else the rule judges as without an earlier run.
    An alert of any other rule is *data* if the earlier run is beyond the threshold, too.
    """

    def __init__(self, earlier: Earlier) -> None:
        self.earlier = earlier
        self.aligned = 0  # judged values that the earlier run has, too
        self._row: Mapping[str, float | int | None] | None = None
        self._noise: dict[str, Noise] = {}  # by number
        self._twins: dict[str, _Twin] = {}  # by the rule's text
        self._states: Mapping[str, Any] = {}  # of twins, from a checkpoint
        self._said: bool | None = None  # the last that was said of the order: whether they match

    def begin(self, report: Report) -> str | None:
        """Find the earlier run's row for a report; return what there is to say of the order of the data, when it changes."""
        self._row = self.earlier.at(report) if report.stage == "train" else None
        if self._row is None:
            return None
        self.aligned += 1
        told = False
        for name in {MAIN, *(twin.rule.metric for twin in self._twins.values())}:
            pair = self._pair(name, report)
            if pair is not None and self._noise.setdefault(name, Noise()).add(*pair) and name == MAIN:
                told = True
        return self._say() if told else None

    def judge(self, rule: Rule, report: Report) -> Alert | None:
        """Judge a report by one rule, after ``begin``."""
        alert = rule(report)
        if alert is not None and not isinstance(alert, Alert):
            return alert  # it is told what a rule returns
        if self._row is None or (isinstance(rule, MetricRule) and rule.stage != report.stage):
            return alert
        if isinstance(rule, MetricRule) and rule.compares:
            return self._beside(rule, report, alert)
        return None if alert is None else self._labelled(alert, self._of_threshold(alert))

    @property
    def matches(self) -> bool:
        """Return True while the orders of the data match, by the noise of the cross-entropy."""
        return MAIN in self._noise and self._noise[MAIN].alike

    @property
    def noise(self) -> Noise | None:
        """Return how alike the noise of the cross-entropy is."""
        return self._noise.get(MAIN)

    def state_dict(self) -> dict[str, Any]:
        """Return what it knows, as plain values."""
        twins = {name: twin.state_dict() for name, twin in self._twins.items()}
        noise = {name: noise.state_dict() for name, noise in self._noise.items()}
        return {"twins": {**self._states, **twins}, "noise": noise, "by": self.earlier.by, "said": self._said}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self._states, self.earlier.by, self._said = dict(state["twins"]), state["by"], state["said"]
        self._twins.clear()
        for name, part in state["noise"].items():
            self._noise.setdefault(name, Noise()).load_state_dict(part)

    def _beside(self, rule: MetricRule, report: Report, alert: Alert | None) -> Alert | None:
        pair, noise = self._pair(rule.metric, report), self._noise.setdefault(rule.metric, Noise())
        if pair is None:
            return alert
        twin = self._twin(rule)
        found = twin.judge(pair[0] - pair[1], report, noise)
        if not noise.alike:
            return alert
        if alert is None or twin.tells(alert):  # so it does what was found just now, unless the alert is graver
            return None if found is None else _of_difference(found, pair[1])
        cause = MODEL if found is not None or twin.unusual else DATA
        if cause == DATA and alert.severity == "warning":
            alert = replace(alert, severity="info")
        return self._labelled(alert, cause)

    def _twin(self, rule: MetricRule) -> _Twin:
        name = repr(rule)
        if name not in self._twins:
            self._twins[name] = twin = _Twin(rule)
            if name in self._states:
                twin.load_state_dict(self._states[name])
        return self._twins[name]

    def _pair(self, name: str, report: Report) -> tuple[float, float] | None:
        """Return a finite number of this run and of the earlier one."""
        ours, theirs = report.numbers.get(name), None if self._row is None else self._row.get(name)
        if ours is None or theirs is None or not (math.isfinite(ours) and math.isfinite(theirs)):
            return None
        return float(ours), float(theirs)

    def _of_threshold(self, alert: Alert) -> str | None:
        """Return whose doing a value beyond a threshold is; ``None`` where it cannot be told."""
        theirs = None if self._row is None or alert.metric is None else self._row.get(alert.metric)
        if not self.matches or theirs is None or alert.value is None or alert.threshold is None:
            return None
        return DATA if (alert.value > alert.threshold) == (theirs > alert.threshold) else MODEL

    def _labelled(self, alert: Alert, cause: str | None) -> Alert:
        if cause is None:
            return alert
        both = "the earlier run shows it, too (data)" if cause == DATA else "only this run shows it (model)"
        return replace(alert, cause=cause, text=f"{alert.text}; {both}")

    def _say(self) -> str | None:
        noise = self._noise[MAIN]
        if self._said == noise.alike or noise.correlation is None:
            return None
        self._said = noise.alike
        told = f"the noise of {MAIN} correlates by {noise.correlation:.2f} with that of the earlier run, aligned by {self.earlier.by}"
        if noise.alike:
            quieter = noise.own / noise.difference if noise.difference else math.inf
            return f"{told}: one order of the data; the difference of the runs is {quieter:.3g} times quieter, and rules see it"
        return f"{told}: the orders of their data do not match here, and rules judge as without it"


class _Twin:
    """A fresh copy of a rule that judges the difference, and what is usual of the difference."""

    def __init__(self, rule: MetricRule) -> None:
        self.rule = rule.for_difference()
        self.rule.warns = False
        self.unusual = False  # the last difference
        self._usual = Baseline()
        self._judged = 0
        self._told: dict[str, int] = {}  # the last alert of each severity

    def judge(self, difference: float, report: Report, noise: Noise) -> Alert | None:
        """Judge one difference."""
        floor = FLOOR * noise.own
        self.rule.keep_scale_above(floor)
        self._usual.least = max(floor, LEAST_SCALE)
        usual, now = self._usual, self._judged
        self.unusual = usual.middle is not None and abs(difference - usual.middle) > UNUSUAL * usual.scale
        alert = self.rule(
            Report(report.step, report.stage, {self.rule.metric: difference, "tokens": report.numbers.get("tokens")})
        )
        usual.push(difference)
        self._judged = now + 1
        if alert is not None and noise.alike:
            self._told[alert.severity] = now
        return alert

    def tells(self, alert: Alert) -> bool:
        """Return True if an alert of at least this severity told of the difference lately."""
        return any(self._judged - at <= WITHIN and not _graver(alert, told) for told, at in self._told.items())

    def state_dict(self) -> dict[str, Any]:
        """Return its state as plain values."""
        return {
            "rule": self.rule.state_dict(),
            "usual": self._usual.state_dict(),
            "judged": self._judged,
            "told": dict(self._told),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self.rule.load_state_dict(state["rule"])
        self._usual.load_state_dict(state["usual"])
        self._judged, self._told = int(state["judged"]), {str(k): int(v) for k, v in state["told"].items()}


def _graver(alert: Alert, told: str) -> bool:
    return alert.severity != told and alert.reaches(told)


def _of_difference(alert: Alert, theirs: float) -> Alert:
    """Return an alert on a difference in the unit of the number itself."""
    text = alert.text.replace(
        f"{alert.stage}/{alert.metric} ", f"{alert.stage}/{alert.metric} less the earlier run's ", 1
    )
    value, threshold = (None if v is None else v + theirs for v in (alert.value, alert.threshold))
    return replace(alert, value=value, threshold=threshold, cause=MODEL, text=f"{text}; only this run shows it (model)")
