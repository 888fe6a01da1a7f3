"""Says in a sentence whether a run is healthy, and when it was not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from pplmon.alerts import Alert, Spike
from pplmon.alerts.words import percent, plural, shown
from pplmon.page.runs import Run
from pplmon.replay.read.series import ReplayError
from pplmon.replay.rules import parse_rule

APART = 10  # alerts at most so many steps apart are one incident
LATEST = 3  # read-outs whose median has to be back on the good side for an alert to be over
NAMED = 3  # incidents; of more only the first, the last and the highest


@dataclass(frozen=True)
class Verdict:
    """One sentence, and how grave it is: "good", "look" or "bad"."""

    state: str
    text: str


@dataclass(frozen=True)
class Incident:
    """Alerts of one stage that follow each other closely."""

    alerts: tuple[Alert, ...]

    @property
    def step(self) -> int:
        """Return the step at which it began."""
        return self.alerts[0].step or 0

    @property
    def notice(self) -> bool:
        """Return True if no alert of it calls a person."""
        return all(alert.severity == "info" for alert in self.alerts)

    @property
    def height(self) -> float:
        """Return the largest factor by which an alert of it was beyond its threshold."""
        return max((alert.height for alert in self.alerts), default=0.0)

    @property
    def cause(self) -> str:
        """Say how much one sequence, one token or one group explains, where it is most of it."""
        for what in ("sequence", "token"):
            share = max(getattr(alert, f"blame_{what}") or 0.0 for alert in self.alerts)
            if share >= 0.5:
                return f"one {what} explains {percent(share)} of the jump"
        share, group = max((alert.blame_group_share or 0.0, alert.blame_group or "") for alert in self.alerts)
        return f"the group {shown(group)} explains {percent(share)} of the jump" if share >= 0.5 else ""


def verdict(run: Run) -> Verdict:
    """Judge a run by its warnings and critical alerts that are not over. Where there are none, count what there was."""
    if not run.tables:
        return Verdict("look", "No numbers yet.")
    lasting = [alert for alert in run.alerts if alert.severity != "info" and not _over(run, alert)]
    if lasting:
        return Verdict("bad", f"Not healthy: {_lasting(lasting)}.")
    found = [incident for incident in incidents(run.alerts) if not incident.notice]
    noted = [alert for alert in run.alerts if alert.severity == "info"]  # counted as every logger counts them
    steps = [Incident(tuple(alerts)) for _, alerts in groupby(noted, key=lambda alert: alert.step)]
    said = [_told(_kinds(found), found)] if found else []
    said += [_told(plural(len(noted), "notice"), steps)] if noted else []
    if said:
        again = " again" if any(alert.severity == "critical" for alert in run.alerts) else ""
        return Verdict("good", f"Healthy{again}, {'; '.join(said)}.")
    if run.settings.get("alerts") == []:
        return Verdict("look", f"No rule judged this run ({plural(run.steps, 'step')}, alerts=[]).")
    needed = _too_short_for(run)
    if needed:
        few = f"No alert in {plural(run.steps, 'step')}, too few for the Spike rules"
        return Verdict("look", f"{few}: they judge from value {needed + 1} on.")
    return Verdict("good", f"Healthy: no alert in {plural(run.steps, 'step')}.")


def incidents(alerts: Sequence[Alert]) -> list[Incident]:
    """Return the alerts as incidents, in the order of their steps."""
    groups: list[list[Alert]] = []
    for alert in alerts:
        last = groups[-1][-1] if groups else None
        if last is not None and last.stage == alert.stage and (alert.step or 0) - (last.step or 0) <= APART:
            groups[-1].append(alert)
        else:
            groups.append([alert])
    return [Incident(tuple(group)) for group in groups]


def _too_short_for(run: Run) -> int:
    """Return how many values the run's Spike rules learn from, where none of them has judged any; else 0."""
    if run.settings.get("resumed_at") is not None:
        return 0  # they have what they learnt before
    rules = [rule for text in run.settings.get("alerts") or () if (rule := _spike(text)) is not None]
    least = min((rule.needs for rule in rules if rule.judges("train")), default=0)
    values = len(run.tables["train"].steps) if "train" in run.tables else 0
    return least if values <= least else 0


def _spike(text: str) -> Spike | None:
    """Return the rule that a journal names, if it is a Spike; a rule of the user's may not be known here."""
    try:
        rule = parse_rule(text)
    except ReplayError:
        return None
    return rule if isinstance(rule, Spike) else None


def _over(run: Run, alert: Alert) -> bool:
    """Tell whether the number is back on the good side of its threshold. A rule of the user's may have neither."""
    table = run.tables.get(alert.stage)
    if table is None or alert.metric is None or alert.threshold is None or alert.value is None:
        return True
    later = [value for step, value in table.points(alert.metric)[-LATEST:] if alert.step is None or step > alert.step]
    if not later:
        return False
    now = median(later)
    return now >= alert.threshold if _side(alert) == "below" else now <= alert.threshold


def _lasting(alerts: Sequence[Alert]) -> str:
    first = alerts[0]
    if first.metric == "nonfinite_tokens":
        return f"losses are NaN or infinite since step {first.step:,}"
    names = list(dict.fromkeys(f"{alert.stage}/{shown(alert.metric)}" for alert in alerts))
    more = f" (and {plural(len(names) - 1, 'other number')} beyond theirs)" if len(names) > 1 else ""
    return f"{names[0]} went {_side(first)} its limit at step {first.step:,}{more} and has not come back"


def _side(alert: Alert) -> str:
    return "below" if (alert.value or 0.0) < (alert.threshold or 0.0) else "above"


def _told(what: str, found: Sequence[Incident]) -> str:
    """Return ``what`` with its steps, and the cause of the highest."""
    if len(found) == 1:
        return ": ".join(filter(None, (f"{what} at step {found[0].step:,}", found[0].cause)))
    if len(found) <= NAMED:
        return f"{what}, at steps {' and '.join(f'{incident.step:,}' for incident in found)}"
    highest = max(found, key=lambda incident: incident.height)
    cause = f" ({highest.cause})" if highest.cause else ""
    return f"{what} from step {found[0].step:,} to {found[-1].step:,}, the highest at step {highest.step:,}{cause}"


def _kinds(found: Sequence[Incident]) -> str:
    """Return how many incidents there are, by the word for all of them. None is called an alert: it may be several."""
    kinds = {_kind(incident) for incident in found}
    return plural(len(found), kinds.pop() if len(kinds) == 1 else "incident")


def _kind(incident: Incident) -> str:
    rules = {alert.rule for alert in incident.alerts}
    return "spike" if "Spike" in rules else "non-finite loss" if "NonFinite" in rules else "incident"
