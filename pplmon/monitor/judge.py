"""Run the rules on a read-out, and raise what they find with its evidence, on every rank alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pplmon import cells
from pplmon.alerts import Alert, MetricRule, Rule
from pplmon.alerts.baseline import Baseline
from pplmon.evidence import WorstSequence, WorstToken
from pplmon.monitor.delivery import Delivery
from pplmon.monitor.link import Link
from pplmon.numbers import share_of_jump
from pplmon.report import Report, Totals


class Judge:
    """The rules of one monitor. Every rank judges the same numbers, so every rank comes to the same alerts."""

    def __init__(self, rules: Sequence[Rule], delivery: Delivery, link: Link) -> None:
        self.rules = check_rules(rules)
        self._delivery, self._link = delivery, link
        self._reads_rows = not all(getattr(rule, "numbers_only", False) for rule in self.rules)
        self._first = True
        self._invalid = False
        self._usual = Baseline(window=128, gap=16)  # the cross-entropy of earlier read-outs, for blame

    def __call__(self, totals: Totals, report_of: Callable[[Totals, bool], Report], gathered: bool = False) -> None:
        """Judge one read-out.

        Args:
            totals: what was read out.
            report_of: (totals, evidence) -> its report, with the worst tokens and their text, or with numbers only.
            gathered: its rows are already those of all ranks.

        Raises:
            ValueError: at the first read-out with any token, for targets outside the vocabulary.
        """
        if totals.empty:
            return
        if self._reads_rows and not gathered:
            # A rule of the user's may look at the worst tokens, and has to see the same ones on every rank.
            totals, gathered = self._link.gather(totals), True
        report = report_of(totals, self._reads_rows)
        if self._link.writes:
            self._delivery.judged(report)
        alerts = self._check_targets(totals, report)
        raised = [self._delivery.guard(rule, "judging", rule, report) for rule in self.rules]
        alerts += [self._checked(rule, alert) for rule, alert in zip(self.rules, raised) if alert is not None]
        usual = self._usual.median() if self._usual.armed and report.stage == "train" else None
        self._learn(report)
        if alerts:
            # Every rank judged the same numbers, so every rank is here.
            evidence = report_of(totals if gathered else self._link.gather(totals), True)
            for alert in alerts:
                self._raise(alert, evidence, usual)

    def without_raising(self, totals: Totals, report_of: Callable[[Totals, bool], Report]) -> None:
        """Judge while another exception is on its way."""
        self._first = False
        self._delivery.guard(self, "judging", self, totals, report_of)

    def state_dict(self) -> dict[str, Any]:
        """Return what the rules remember, as plain values; a rule of the user's takes part if it has the same method."""
        rules: list[Any] = [[_identity(rule), getattr(rule, "state_dict", dict)()] for rule in self.rules]
        return {"first": self._first, "invalid": self._invalid, "rules": rules, "usual": self._usual.values()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give each rule back what it remembered; a rule that was not there before begins anew."""
        self._first, self._invalid = state["first"], state["invalid"]
        self._usual.restore(state["usual"])
        saved = [tuple(entry) for entry in state["rules"]]
        for rule in self.rules:
            found = next((entry for entry in saved if entry[0] == _identity(rule)), None)
            if found is not None:
                saved.remove(found)
                if found[1]:
                    rule.load_state_dict(found[1])  # type: ignore[attr-defined]

    def _checked(self, rule: Rule, raised: Any) -> Alert:
        """An answer that is no alert is one all the same: somebody meant to be told."""
        if isinstance(raised, Alert):
            return raised
        name = getattr(rule, "__name__", repr(rule))
        return Alert(name, f"{name} answered {raised!r}; a rule returns a pplmon.Alert or None")

    def _learn(self, report: Report) -> None:
        value = report.numbers.get("cross_entropy")
        if report.stage == "train" and value is not None and math.isfinite(value):
            self._usual.push(value)

    def _raise(self, alert: Alert, evidence: Report, usual: float | None) -> None:
        whole = replace(
            alert,
            blame_sequence=_blame(evidence, usual, evidence.worst_sequences[:1]),
            blame_token=_blame(evidence, usual, [t for t in evidence.worst if math.isfinite(t.loss)][:1]),
            step=evidence.step if alert.step is None else alert.step,
            worst=alert.worst or evidence.worst,
            worst_sequences=alert.worst_sequences or evidence.worst_sequences,
        )
        self._delivery.alert(whole, writes=self._link.writes)

    def _check_targets(self, totals: Totals, report: Report) -> list[Alert]:
        """Raise at the first read-out that there is; later, alert on the edge."""
        count, first = totals["invalid_targets"], self._first
        was, self._first, self._invalid = self._invalid, False, count > 0
        if not count or was:
            return []
        size, example = totals["vocab_size"], totals["invalid_target_example"] - cells.EXAMPLE_OFFSET
        text = (
            f"{count} targets are outside the vocabulary{f' [0, {size})' if size >= 0 else ''}, for example {example}; "
            f"ignore_index is {self._link.pattern.ignore_index}. Does the tokenizer fit the model, and is padding marked by "
            "ignore_index or left out by mask?"
        )
        if first:
            raise ValueError(text)
        if not self.rules:
            return []
        text = f"step {report.step}: {text}"
        return [Alert("InvalidTargets", text, "invalid_targets", report.step, report.stage, count, 0.0, "critical")]


def _identity(rule: Rule) -> str:
    """What tells a rule from another in a checkpoint. Of several alike, the first saved is the first to be restored."""
    if isinstance(rule, MetricRule):
        return repr(rule)
    named = rule if hasattr(rule, "__qualname__") else type(rule)
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', '')}"


def _blame(evidence: Report, usual: float | None, worst: Sequence[WorstToken | WorstSequence]) -> float | None:
    """How much of the jump of the cross-entropy over what is usual the worst token, or sequence, explains."""
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
