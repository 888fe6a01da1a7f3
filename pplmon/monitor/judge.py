"""Run the rules on a read-out, and raise their alerts with evidence, on every rank alike."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pplmon.alerts import Alert, MetricRule, Rule, TargetCheck, checked, remembered, remind
from pplmon.alerts.against import Against
from pplmon.alerts.earlier import Earlier
from pplmon.alerts.usual import Usual
from pplmon.monitor.delivery import Delivery
from pplmon.monitor.ranks import Link
from pplmon.report import layout
from pplmon.report.checks import invalid_targets
from pplmon.report.formulas import share_of_jump
from pplmon.report.report import Report
from pplmon.report.totals import Totals
from pplmon.report.worst import WorstSequence, WorstToken

log = logging.getLogger("pplmon")


class Judge:
    """The rules of one monitor. Every rank judges the same numbers, so every rank comes to the same alerts."""

    def __init__(self, rules: Sequence[Rule], delivery: Delivery, link: Link) -> None:
        self.rules = check_rules(rules)
        self._delivery, self._link = delivery, link
        self._reads_rows = not all(getattr(rule, "numbers_only", False) for rule in self.rules)
        self._targets = TargetCheck()
        self._usual = Usual()  # for blame
        self.raised = {"alerts": 0, "notices": 0}  # in the run, before a resume too
        self._against: Against | None = None
        self._memory: Mapping[str, Any] | None = None  # of the comparison, until there is an earlier run

    def compare_to(self, earlier: Earlier) -> None:
        """Judge beside an earlier run from here on. Every rank is given the same one."""
        self._against = Against(earlier)
        if self._memory is not None:
            self._against.load_state_dict(self._memory)

    def __call__(self, totals: Totals, report_of: Callable[[Totals, bool], Report], gathered: bool = False) -> None:
        """Judge one read-out.

        Args:
            totals: the totals of the read-out.
            report_of: (totals, evidence) -> the report, with worst tokens if ``evidence``, else with numbers only.
            gathered: True if the rows are already those of all ranks.

        Raises:
            ValueError: the first read-out with any token has targets outside the vocabulary.
        """
        if totals.empty:
            return
        if self._reads_rows and not gathered:
            # A rule of the user's may look at the worst tokens, and has to see the same ones on every rank.
            totals, gathered = self._link.gather(totals), True
        report = report_of(totals, self._reads_rows)
        alerts = self._check_targets(totals, report)
        writes = self._link.writes
        if writes:
            self._delivery.judged(report)  # not before: a replay assumes that the rules saw this row
        if self._against is not None:
            told = self._against.begin(report)
            if told is not None and writes:
                self._tell(f"step {report.step}: {told}", self._against.matches)
        raised = self._ask(report)
        alerts += [checked(rule, alert) for rule, alert in zip(self.rules, raised) if alert is not None]
        usual = self._usual.mean.middle if report.stage == "train" else None
        moved = self._usual.moved(report) if alerts else {}
        self._usual.learn(report)
        if alerts:
            # Every rank judged the same numbers, so every rank is here.
            evidence = report_of(totals if gathered else self._link.gather(totals), True)
            for alert in alerts:
                self._raise(replace(alert, **moved), evidence, usual)
        if writes:
            self._delivery.remember(report.step, self.memory)

    def without_raising(self, totals: Totals, report_of: Callable[[Totals, bool], Report]) -> None:
        """Judge while another exception is being raised: a failure here is a warning."""
        self._targets.first = False
        self._delivery.guard(self, "judging", self, totals, report_of)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the rules as plain values; a user's rule takes part if it has the same method."""
        own = {**self._usual.state_dict(), "raised": dict(self.raised)}
        return {**self._targets.state_dict(), "rules": remembered(self.rules), **own, **self._compared()}

    def memory(self) -> dict[str, Any]:
        """Return the states of pplmon's own rules for the journal, where a replay of a resumed run begins."""
        ours = [rule for rule in self.rules if isinstance(rule, MetricRule)]
        usual = self._usual.state_dict() if self._usual.groups else {}  # without groups a replay blames nobody
        return {**self._targets.state_dict(), "rules": remembered(ours), **usual, **self._compared()}

    def _compared(self) -> dict[str, Any]:
        return {} if self._against is None else {"against": self._against.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of each rule; a rule that was not there before begins anew."""
        self._targets.load_state_dict(state)
        self._usual.load_state_dict(state)
        self.raised.update(state.get("raised", {}))
        remind(self.rules, state["rules"])
        self._memory = state.get("against")
        if self._against is not None and self._memory is not None:
            self._against.load_state_dict(self._memory)

    def _tell(self, text: str, matches: bool) -> None:
        if matches:
            log.info("pplmon: %s", text)
        else:
            warnings.warn(f"pplmon: {text}", RuntimeWarning, stacklevel=2)

    def _ask(self, report: Report) -> list[Alert | None]:
        guard, against = self._delivery.guard, self._against
        if against is None:
            return [guard(rule, "judging", rule, report) for rule in self.rules]
        return [guard(rule, "judging", against.judge, rule, report) for rule in self.rules]

    def _raise(self, alert: Alert, evidence: Report, usual: float | None) -> None:
        missing = evidence.ranks_missing
        alone = f" (rank {self._link.home.global_rank} alone, {missing} of its group missing)" if missing else ""
        whole = replace(
            alert,
            text=alert.text + alone,
            blame_sequence=_blame(evidence, usual, evidence.worst_sequences[:1]),
            blame_token=_blame(evidence, usual, [t for t in evidence.worst if math.isfinite(t.loss)][:1]),
            step=evidence.step if alert.step is None else alert.step,
            worst=alert.worst or evidence.worst,
            worst_sequences=alert.worst_sequences or evidence.worst_sequences,
            ranks_missing=missing or None,
        )
        self.raised["notices" if whole.severity == "info" else "alerts"] += 1
        self._delivery.alert(whole, writes=self._link.acts)

    def _check_targets(self, totals: Totals, report: Report) -> list[Alert]:
        """Raise for invalid targets at the first read-out; later, alert when they begin."""
        count = totals["invalid_targets"]
        verdict = self._targets.verdict(count)
        if verdict is None:
            return []
        size, example = totals["vocab_size"], totals["invalid_target_example"] - layout.EXAMPLE_OFFSET
        text = invalid_targets(count, size, example, self._link.pattern.ignore_index)
        if verdict == "error":
            raise ValueError(text)
        return [self._targets.alert(report.step, report.stage, count, text)] if self.rules else []


def _blame(evidence: Report, usual: float | None, worst: Sequence[WorstToken | WorstSequence]) -> float | None:
    """Return the share of the jump of the cross-entropy that the worst token, or sequence, explains."""
    mean, tokens = evidence.numbers.get("cross_entropy"), evidence.numbers.get("tokens")
    if usual is None or mean is None or not tokens or not worst:
        return None
    part = worst[0]
    return share_of_jump(part.loss, part.tokens if isinstance(part, WorstSequence) else 1, mean, int(tokens), usual)


def check_rules(rules: Sequence[Rule]) -> list[Rule]:
    """Return rules as a list, each a callable."""
    if callable(rules):
        raise TypeError(f"alerts takes a list of rules, got one: write [{rules!r}]")
    for rule in rules:
        if not callable(rule) or isinstance(rule, type):
            raise TypeError(
                f"a rule is a callable Report -> Alert | None, got {rule!r}; write [pplmon.NonFinite()], say"
            )
    return list(rules)
