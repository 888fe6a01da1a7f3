"""``Spike``: values that earlier ones do not explain, and levels that do not come back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from pplmon.alerts.alert import Alert, MetricRule, options
from pplmon.alerts.rules.baseline import LEAST_SCALE, Baseline
from pplmon.alerts.rules.bucket import Bucket
from pplmon.alerts.rules.quiet import Quiet
from pplmon.alerts.rules.rises import ONE_VALUE, Rise, Rises
from pplmon.report.checks import at_least, check_number
from pplmon.report.report import Report

RECENT = 64  # newest values whose median says whether the level has come back
NOT_BACK = 2.0  # scales above the level of before


class Spike(MetricRule):
    """Note a value that earlier ones do not explain, warn of what rises, and say what does not come back.

    Each value is held against the middle and the scale of earlier ones (``Baseline``), from the 65th judged value on:

    - *info*: one value lies more than ``hard`` scales above or below (``None``: ``leak + limit``), or several fall.
    - *warning*: several values together, or a level that stays or drifts up, fill a bucket to its ``limit``; or ``repeats``
      hard values come within ``quiet_steps`` (``Rises``).
    - *critical*: ``recovery_steps`` after a warning the median of the last 64 values still lies 2 scales above the level of
      before (``None``: never said); or a value is not finite.

    After an alert no other of its severity comes for ``quiet_steps``, and after a warning no notice. All lengths count judged
    values, whatever the steps between them. What is not finite never enters the baseline.
    """

    tuned_by = "limit"
    compares = True

    def __init__(
        self,
        metric: str,
        window: int = 128,
        gap: int = 16,
        leak: float = 2.0,
        limit: float = 10.0,
        quiet_steps: int = 200,
        stage: str = "train",
        recovery_steps: int | None = 200,
        hard: float | None = None,
        repeats: int | None = 3,
    ) -> None:
        super().__init__(metric, stage)
        for name, value, least in (
            ("window", window, 2),
            ("gap", gap, 0),
            ("quiet_steps", quiet_steps, 0),
            ("recovery_steps", 1 if recovery_steps is None else recovery_steps, 1),
            ("repeats", 2 if repeats is None else repeats, 2),
        ):
            at_least(name, value, least)
        leak, limit = check_number("leak", leak), check_number("limit", limit)
        hard = None if hard is None else check_number("hard", hard)
        if not 0 <= leak < math.inf:
            raise ValueError(f"leak must be a finite number of at least 0, got {leak!r}")
        if not 0 < limit < math.inf:
            raise ValueError(f"limit must be above 0 and finite, or Spike can never fire or never rest; got {limit!r}")
        if hard is not None and not 0 < hard < math.inf:
            raise ValueError(
                f"hard must be above 0 and finite: scales beyond which one value is a notice; got {hard!r}"
            )
        self.window, self.gap, self.leak, self.limit, self.hard = window, gap, leak, limit, hard
        self.quiet_steps, self.recovery_steps, self.repeats = quiet_steps, recovery_steps, repeats
        self._baseline = Baseline(window, gap)
        self._edge = leak + limit if hard is None else hard
        self._rises = Rises(leak, limit, self._edge, repeats, quiet_steps)
        self._fall = Bucket(leak + ONE_VALUE * limit, leak)
        self._quiet = Quiet(quiet_steps)
        self._judged = 0
        self._frozen: tuple[int, float, float] | None = None  # when to look again, level and scale of before

    @property
    def needs(self) -> int:
        """Return how many values it learns from before it judges one."""
        return self._baseline.needs

    def judge(self, value: float, report: Report) -> Alert | None:
        """Compare one value with earlier ones; return its gravest alert, or ``None``."""
        now = self._judged
        self._judged = now + 1
        if not math.isfinite(value):
            return self._not_finite(now, value, report)
        base, middle = self._baseline, self._baseline.middle
        alert = None
        if middle is not None:
            height, depth = (value - middle) / base.scale, (base.falling - value) / base.scale_below
            fall = self._fall
            fallen = fall.add(depth, middle, base.scale_below) if fall.fill or depth > fall.leak else 0.0
            if self._quiet.over("warning", now):
                rise = self._rises.look(now, value, height, middle, base)
                alert = None if rise is None else self._warn(now, rise, value, report)
            if alert is None and self._frozen is not None and now >= self._frozen[0]:
                alert = self._not_recovered(now, value, report)
            if alert is None and height > self._edge:
                alert = self._note("jump", now, value, report)
            elif depth > self._edge or fallen > self.limit:
                self._fall.empty()
                alert = alert or self._note("fall", now, value, report)
        base.push(value)
        return alert

    def for_difference(self) -> MetricRule:
        """Return a rule that waits for no recovery: runs of unlike settings may well part for good."""
        return type(self)(**{**options(self), "recovery_steps": None})

    def keep_scale_above(self, least: float) -> None:
        """Take no smaller scale from now on."""
        self._baseline.least = max(least, LEAST_SCALE)

    def state_dict(self) -> dict[str, Any]:
        """Return the baseline, the buckets, the ends of the quiet times, and the level to recover to."""
        return {
            "baseline": self._baseline.state_dict(),
            "rises": self._rises.state_dict(),
            "fall": self._fall.state(),
            "quiet": self._quiet.state_dict(),
            "judged": self._judged,
            "frozen": None if self._frozen is None else list(self._frozen),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned; of a state of version 0.1 only the values."""
        if "past" in state:
            self._baseline.load_state_dict(state["past"])
            return
        self._baseline.load_state_dict(state["baseline"])
        self._rises.load_state_dict(state["rises"])
        self._fall.restore(state["fall"])
        self._quiet.load_state_dict(state["quiet"])
        self._judged = int(state["judged"])
        frozen = state["frozen"]
        self._frozen = None if frozen is None else (int(frozen[0]), float(frozen[1]), float(frozen[2]))

    def _not_finite(self, now: int, value: float, report: Report) -> Alert | None:
        # Without a valid token there is no value at all: what made every token non-finite is for NonFinite to say.
        if report.tokens == 0 or not self._quiet.over("not finite", now):
            return None
        self._quiet.begin(now, "not finite")
        return self.alert(report, value, math.nan, "is not finite", severity="critical")

    def _warn(self, now: int, rise: Rise, value: float, report: Report) -> Alert:
        """Return a warning, and begin anew: the level of before is no longer what to expect."""
        self._rises.empty()
        self._fall.empty()
        self._baseline.forget()
        self._quiet.begin(now, "warning", "jump", "fall")
        # A second warning while we wait is judged by the level of before the first.
        if self.recovery_steps is not None and self._frozen is None:
            self._frozen = (now + self.recovery_steps, rise.middle, rise.scale)
        text = f"{rise.what} {value:.4g} from a median of {rise.middle:.4g} (usual spread {rise.scale:.2g})"
        return self.alert(report, value, rise.threshold, text)

    def _not_recovered(self, now: int, value: float, report: Report) -> Alert | None:
        assert self._frozen is not None
        _, middle, scale = self._frozen
        self._frozen = None
        level, limit = median([*self._baseline.newest(RECENT - 1), value]), middle + NOT_BACK * scale
        if level <= limit:
            return None
        text = f"did not recover: its median is {level:.4g} {self.recovery_steps} judged values after it rose, {middle:.4g} before"
        return self.alert(report, level, limit, text, severity="critical")

    def _note(self, kind: str, now: int, value: float, report: Report) -> Alert | None:
        """Return a notice of a hard value or of a fall, which are quiet each for itself."""
        if not self._quiet.over(kind, now):
            return None
        self._quiet.begin(now, kind)
        base, hard = self._baseline, self._edge
        what, scale, edge = "jumped to", base.scale, (base.middle or 0.0) + hard * base.scale
        if kind == "fall":
            what, scale, edge = "fell to", base.scale_below, base.falling - hard * base.scale_below
            base.forget()  # the level of before is no longer what to expect
        text = f"{what} {value:.4g} from a median of {base.middle:.4g} (usual spread {scale:.2g})"
        return self.alert(report, value, edge, text, severity="info")
