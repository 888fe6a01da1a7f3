"""Judge a series by rules row by row, across interruptions, as the monitors that wrote it did."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pplmon.alerts import Alert, Rule, TargetCheck, checked, remind
from pplmon.alerts.earlier import Earlier
from pplmon.alerts.usual import Usual, read_for_blame
from pplmon.monitor.failures import FAILURES, Tries
from pplmon.replay.against import Beside
from pplmon.replay.read.series import Noted, Row, Segment, Series
from pplmon.replay.rules import Rules, lacking

Labelled = tuple[str, Rule]  # the text that the rule is shown under, the rule


@dataclass(frozen=True)
class Fired:
    """One alert of a replay."""

    rule: str  # the text that its rule is shown under
    alert: Alert
    run: int = 0  # where a journal holds several, one after the other
    repeated: bool = False  # a resumed process judged this step anew

    @property
    def page(self) -> bool:
        """True for what calls a person, False for a notice."""
        return self.alert.severity != "info"


@dataclass
class Result:
    """The result of a replay."""

    fired: list[Fired] = field(default_factory=list)
    stages: dict[str, str] = field(default_factory=dict)  # every rule's text, and the stage whose reports it judges
    notes: list[str] = field(default_factory=list)
    differs: tuple[int, int] | None = None  # alerts only in the journal, and only in the replay, of its own rules


def run(series: Series, rules: Rules, earlier: Earlier | None = None) -> Result:
    """Judge a series: the live rules judge every row as they saw it, given rules only rows not repeated later.

    With an earlier run, rules see the difference to it.
    """
    replay = Replay(series, earlier)
    if rules.has_live:
        replay.live(rules)
    replay.given(rules)
    differs = _differences(series.live, replay.fired) if rules.has_live and not rules.given() else None
    none = [] if replay.stages else ["There was no rule: the run had none (alerts=[]). Give some with --rule."]
    notes = dict.fromkeys([*none, *series.notes, *rules.notes, *replay.told()])
    return Result(replay.fired, replay.stages, [*notes], differs)


class Replay:
    """Rules over a series, and their alerts."""

    def __init__(self, series: Series, earlier: Earlier | None = None) -> None:
        self._earlier = earlier
        self.fired: list[Fired] = []
        self.stages: dict[str, str] = {}
        self._series = series
        self._notes: list[str] = []
        self._missed: dict[str, set[str]] = {}

    def live(self, rules: Rules) -> None:
        """Judge each process's rows by the rules that it had, restored to the states that they had when it resumed."""
        runs = -1
        for segment in self._series.segments:
            if segment.resumed_at is None or runs < 0:
                runs += 1
            process = self._process(rules, segment)
            if segment.resumed_at is not None and segment.cut_at is None:
                self._mark_repeated(segment.resumed_at, runs)
            self._judge(process, segment.rows, runs)

    def given(self, rules: Rules) -> None:
        """Judge each run by fresh rules, without the steps that were repeated later."""
        if not rules.given():
            return
        for number, rows in enumerate(self._series.runs):
            self._judge(_Process(rules.given(), self._missed, earlier=self._earlier), rows, number)
        # The alerts of live rules, if any, come first in the list: sort all by step.
        self.fired.sort(key=lambda f: (f.run, -1 if f.alert.step is None else f.alert.step))

    def told(self) -> list[str]:
        """Return notes for the user."""
        missed = [
            f"{label} asked for a number that is not there: {lacking(self._series, 'train', name)}"
            for label, names in self._missed.items()
            for name in sorted(names)
        ]
        return [*self._notes, *missed]

    def _judge(self, process: _Process, rows: Sequence[Row], number: int) -> None:
        self.fired += [Fired(label, alert, number) for label, alert in process.judge(rows)]
        self.stages.update(process.stages)
        self._notes += process.notes

    def _process(self, rules: Rules, segment: Segment) -> _Process:
        """Return the rules of one process of the run, with what they remembered where it resumed."""
        process = self._fresh(rules, segment)
        begins = segment.resumed_at if segment.cut_at is None else segment.cut_at
        if begins is None:
            return process
        why = "is not known"
        if segment.memory is not None:
            try:
                process.recall(segment.memory)
            except Exception as error:  # a damaged row may hold anything
                why = f"cannot be read ({type(error).__name__}: {error})"
                process = self._fresh(rules, segment)
            else:
                return process
        self._notes.append(f"The run goes on at step {begins}; what its rules remembered {why}: they begin anew.")
        return process

    def _fresh(self, rules: Rules, segment: Segment) -> _Process:
        return _Process(rules.live(segment), self._missed, with_targets=True, earlier=self._earlier)

    def _mark_repeated(self, step: int, number: int) -> None:
        self.fired = [
            replace(f, repeated=True) if f.run == number and f.alert.step is not None and f.alert.step >= step else f
            for f in self.fired
        ]


class _Process:
    """Fresh rules that judge the rows of one process of the run.

    ``with_targets``: also raise the monitor's own alerts on targets outside the vocabulary.
    """

    def __init__(
        self,
        rules: Sequence[Labelled],
        missed: dict[str, set[str]],
        with_targets: bool = False,
        earlier: Earlier | None = None,
    ) -> None:
        self._rules, self._missed = list(rules), missed
        self._targets = TargetCheck() if with_targets and rules else None
        if self._targets is not None:
            self._targets.first = False  # a read-out that was refused with an error is no judged row
        self._beside = None if earlier is None else Beside(earlier)
        self._usual = Usual()
        self._tries = [Tries() for _ in rules]
        self._noted: dict[bool, set[str]] = {False: set(), True: set()}  # rules that failed, and that were left out
        self.stages = {label: getattr(rule, "stage", "train") for label, rule in rules}
        self.notes: list[str] = []

    def judge(self, rows: Sequence[Row]) -> list[tuple[str, Alert]]:
        """Judge rows in their order; return each alert with its rule's text."""
        alerts: list[tuple[str, Alert]] = []
        plain = all(getattr(rule, "numbers_only", False) for _, rule in self._rules)
        grouped = bool(rows and read_for_blame(rows[-1]))
        for row in rows:
            moved = self._usual.moved(row) if grouped else {}
            if self._targets is not None:
                count = row.numbers.get(TargetCheck.METRIC)
                if count is not None and math.isfinite(count) and self._targets.verdict(int(count)) is not None:
                    text = f"{count} targets are outside the vocabulary"
                    alert = self._targets.alert(row.step, row.stage, count, text)  # type: ignore[arg-type]
                    alerts.append((TargetCheck.RULE, replace(alert, **moved)))
            told = None if self._beside is None else self._beside.against.begin(row)
            if told is not None:
                self.notes.append(f"Step {row.step}: {told}.")
            if grouped:
                self._usual.learn(row)
            for tries, (label, rule) in zip(self._tries, self._rules):
                if not tries.due():
                    continue
                try:
                    answer = self._ask(rule, row if plain else self._noting(label, rule, row))
                except Exception as error:  # as in a live run: it is reported, and the other rules go on
                    tries.failed()
                    self._note(label, tries, row, error)
                    continue
                tries.worked()
                if answer is not None:
                    alert = replace(checked(rule, answer), **moved)
                    alerts.append((label, alert if alert.step is not None else replace(alert, step=row.step)))
        if self._beside is not None:
            self.notes += self._beside.notes(sum(row.stage == "train" for row in rows))
        return alerts

    def _ask(self, rule: Rule, row: Row) -> Alert | None:
        return rule(row) if self._beside is None else self._beside.against.judge(rule, row)

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Restore the states that the rules of the run had."""
        remind([rule for _, rule in self._rules], memory["rules"])
        if self._targets is not None:
            self._targets.load_state_dict({**memory, "first": False})
        if "usual" in memory:
            self._usual.load_state_dict(memory)
        if self._beside is not None and "against" in memory:
            self._beside.against.load_state_dict(memory["against"])

    def _noting(self, label: str, rule: Rule, row: Row) -> Row:
        """Return the row; for a user's rule as one that records which missing numbers are read."""
        if getattr(rule, "numbers_only", False):
            return row
        return Row(row.step, row.stage, Noted(row.numbers, self._missed.setdefault(label, set())))

    def _note(self, label: str, tries: Tries, row: Row, error: Exception) -> None:
        if tries.failures in (1, FAILURES) and label not in self._noted[tries.is_out]:
            self._noted[tries.is_out].add(label)
            out = "; it is left out, and tried again now and then, as in a live run" if tries.is_out else ""
            self.notes.append(f"{label} failed at step {row.step}: {type(error).__name__}: {error}{out}.")


def _differences(live: Sequence[Mapping[str, Any]], fired: Sequence[Fired]) -> tuple[int, int]:
    """Return how many alerts only the journal has, and how many only the replay gave."""
    names = ("rule", "metric", "stage", "step", "value", "threshold")
    journal = Counter(repr([row.get(name) for name in names]) for row in live)
    replayed = Counter(repr([getattr(f.alert, name) for name in names]) for f in fired)
    return (journal - replayed).total(), (replayed - journal).total()
