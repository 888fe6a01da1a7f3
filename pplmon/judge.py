"""Run the rules on a read-out, and raise what they find with its evidence, on every rank alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pplmon import cells
from pplmon.alerts import Alert, Rule
from pplmon.delivery import Delivery
from pplmon.report import Report, Totals
from pplmon.tally import TokenTally


class Judge:
    """The rules of one monitor. Every rank judges the same numbers, so every rank comes to the same alerts."""

    def __init__(self, rules: Sequence[Rule], delivery: Delivery, pattern: TokenTally) -> None:
        self.rules = check_rules(rules)
        self._delivery, self._pattern = delivery, pattern
        self._reads_rows = not all(getattr(rule, "numbers_only", False) for rule in self.rules)
        self._first = True
        self._invalid = False

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
            totals, gathered = self._pattern.gather(totals), True
        report = report_of(totals, self._reads_rows)
        if self._writes:
            self._delivery.judged(report)
        alerts = self._check_targets(totals, report)
        raised = [self._delivery.guard(rule, "judging", rule, report) for rule in self.rules]
        alerts += [self._checked(rule, alert) for rule, alert in zip(self.rules, raised) if alert is not None]
        if alerts:
            # Every rank judged the same numbers, so every rank is here.
            evidence = report_of(totals if gathered else self._pattern.gather(totals), True)
            for alert in alerts:
                self._raise(alert, evidence)

    def _checked(self, rule: Rule, raised: Any) -> Alert:
        """An answer that is no alert is one all the same: somebody meant to be told."""
        if isinstance(raised, Alert):
            return raised
        name = getattr(rule, "__name__", repr(rule))
        return Alert(name, f"{name} answered {raised!r}; a rule returns a pplmon.Alert or None")

    @property
    def _writes(self) -> bool:
        return self._pattern.group.rank == 0

    def _raise(self, alert: Alert, evidence: Report) -> None:
        if self._writes:
            self._delivery.alert(
                replace(
                    alert,
                    step=evidence.step if alert.step is None else alert.step,
                    worst=alert.worst or evidence.worst,
                    worst_sequences=alert.worst_sequences or evidence.worst_sequences,
                )
            )

    def _check_targets(self, totals: Totals, report: Report) -> list[Alert]:
        """Raise at the first read-out that there is; later, alert on the edge."""
        count, first = totals["invalid_targets"], self._first
        was, self._first, self._invalid = self._invalid, False, count > 0
        if not count or was:
            return []
        size, example = totals["vocab_size"], totals["invalid_target_example"] - cells.EXAMPLE_OFFSET
        text = (
            f"{count} targets are outside the vocabulary{f' [0, {size})' if size >= 0 else ''}, for example {example}; "
            f"ignore_index is {self._pattern.ignore_index}. Does the tokenizer fit the model, and is padding marked by "
            "ignore_index or left out by mask?"
        )
        if first:
            raise ValueError(text)
        if not self.rules:
            return []
        text = f"step {report.step}: {text}"
        return [Alert("InvalidTargets", text, "invalid_targets", report.step, report.stage, count, 0.0, "critical")]


def check_rules(rules: Sequence[Rule]) -> list[Rule]:
    """Return rules as a list, each a callable."""
    for rule in rules:
        if not callable(rule) or isinstance(rule, type):
            raise TypeError(
                f"a rule is a callable Report -> Alert | None, got {rule!r}; write [pplmon.NonFinite()], say"
            )
    return list(rules)
