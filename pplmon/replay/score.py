"""Score a rule: the marked incidents that it caught, its delay, and its false alarms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from pplmon.replay.judge import Fired, Result
from pplmon.replay.read.series import ReplayError, Series

WITHIN = 200  # judged values: alarms that close together are one event, and an incident is over so long after its end
DIGITS = 18  # of a step
PER = 100_000  # judged values, or optimizer steps, that a rate counts


@dataclass(frozen=True)
class Incident:
    """The steps (0-based, both included) at which something was really wrong."""

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Incident:
        """Return the incident in ``18402`` or ``18000-18500``."""
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
        if found is None:
            raise ReplayError(f"--incident wants a step or a range of steps, as 18402 or 18000-18500; got {text!r}")
        if max(map(len, found.groups(""))) > DIGITS:
            raise ReplayError(f"--incident wants steps of at most {DIGITS} digits; got one of {len(text):,} characters")
        start, end = int(found[1]), int(found[2] or found[1])
        if end < start:
            raise ReplayError(f"--incident {text}: it ends before it begins; write {end}-{start}")
        return cls(start, end)


@dataclass(frozen=True)
class Score:
    """The score of one rule, or of all together."""

    rule: str
    pages: int  # warnings and critical alerts
    notices: int
    events: int  # pages within WITHIN judged values of an event's first are that event
    incidents: int
    caught: int  # by a page
    noticed: int  # by a page or a notice
    delays: tuple[int, ...]  # optimizer steps from an incident's start to its first page, for those caught
    false_events: int
    quiet_values: int  # judged values outside incidents
    quiet_steps: int  # the optimizer steps that they cover

    @property
    def recall(self) -> float | None:
        """Return the share of incidents that were caught."""
        return self.caught / self.incidents if self.incidents else None

    @property
    def delay(self) -> float | None:
        """Return the median delay in optimizer steps."""
        return median(self.delays) if self.delays else None

    @property
    def false_per_100k_values(self) -> float | None:
        """Return false events per 100,000 quiet judged values, the rate of a live run whatever the rows of a log."""
        return self.false_events * PER / self.quiet_values if self.quiet_values else None

    @property
    def false_per_100k_steps(self) -> float | None:
        """Return false events per 100,000 quiet optimizer steps."""
        return self.false_events * PER / self.quiet_steps if self.quiet_steps else None


class Watch:
    """The values and steps of a series, each in an incident or quiet."""

    def __init__(self, series: Series, incidents: Sequence[Incident] = ()) -> None:
        self.spans, self.incidents = series.spans(), tuple(incidents)
        self.within = WITHIN * series.spacing()  # in optimizer steps
        last = max(end for _, end in self.spans)
        for incident in incidents:
            if not any(incident.start <= end and incident.end >= start for start, end in self.spans):
                raise ReplayError(f"--incident {incident.start}: the run has steps {self.spans[0][0]} to {last} only")
        self.quiet_steps = sum(self._quiet(*span) for span in self.spans)
        self._quiet_rows = Counter(row.stage for run in series.runs for row in run if not self.in_incident(row.step))

    def quiet_values(self, stages: Collection[str] = ("train",)) -> int:
        """Return how many values rules of these stages judged outside incidents; of all stages where there are no such rows."""
        heads = tuple(f"{stage}/" for stage in stages)  # of each of several data sets
        judged = [n for stage, n in self._quiet_rows.items() if stage in stages or stage.startswith(heads)]
        return sum(judged) or self._quiet_rows.total()

    def in_incident(self, step: int) -> bool:
        """Return True from an incident's start until it is over."""
        return any(i.start <= step <= i.end + self.within for i in self.incidents)

    def events(self, alarms: Iterable[tuple[int, int]]) -> list[list[int]]:
        """Group alarms, (run, step), into events; return each event's steps."""
        events: list[tuple[int, list[int]]] = []
        for run, step in sorted(alarms):
            if events and events[-1][0] == run and step - events[-1][1][0] <= self.within:
                events[-1][1].append(step)
            else:
                events.append((run, [step]))
        return [steps for _, steps in events]

    def false_events(self, alarms: Iterable[tuple[int, int]]) -> int:
        """Count the events that do not begin in an incident: an alarm just before an incident is false, too."""
        return sum(not self.in_incident(steps[0]) for steps in self.events(alarms))

    def score(self, rule: str, fired: Sequence[Fired], stages: Collection[str] = ("train",)) -> Score:
        """Score one rule's alerts; ``stages`` are those that it judges."""
        counted = [(f.run, f.alert.step, f) for f in fired if not f.repeated and f.alert.step is not None]
        pages = [(run, step) for run, step, f in counted if f.page]
        delays = self._delays(step for _, step in pages)
        return Score(
            rule=rule,
            pages=sum(f.page for f in fired),
            notices=sum(not f.page for f in fired),
            events=len(self.events(pages)),
            incidents=len(self.incidents),
            caught=len(delays),
            noticed=len(self._delays(step for _, step, _ in counted)),
            delays=tuple(delays),
            false_events=self.false_events(pages),
            quiet_values=self.quiet_values(stages),
            quiet_steps=self.quiet_steps,
        )

    def _delays(self, steps: Iterable[int]) -> list[int]:
        """Return the steps from each incident's start to the first alarm in it, of those that have one."""
        ordered = sorted(steps)
        firsts = [
            next((s - i.start for s in ordered if i.start <= s <= i.end + self.within), None) for i in self.incidents
        ]
        return [delay for delay in firsts if delay is not None]

    def _quiet(self, start: int, end: int) -> int:
        """Count a run's steps outside incidents."""
        quiet, at = 0, start
        for incident in sorted(self.incidents, key=lambda i: i.start):
            quiet += max(0, min(incident.start, end + 1) - at)
            at = max(at, incident.end + self.within + 1)
        return quiet + max(0, end + 1 - at)


def scores(watch: Watch, result: Result) -> list[Score]:
    """Score each rule alone, and if there are several all of them together, last."""
    stages = {**result.stages, **{f.rule: result.stages.get(f.rule, "train") for f in result.fired}}
    each = [watch.score(rule, [f for f in result.fired if f.rule == rule], [at]) for rule, at in stages.items()]
    together = watch.score("any of them", result.fired, {*stages.values()})
    return [*each, together] if len(each) > 1 else each
