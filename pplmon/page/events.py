"""The alerts of a run as a list of events, each with its evidence: address, text, and files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pplmon.alerts import Alert, at_fault
from pplmon.alerts.actions.files import FOLDER
from pplmon.alerts.addresses import address, sequence_of
from pplmon.alerts.alert import SEVERITIES
from pplmon.alerts.heatmap import Text, heatmap
from pplmon.alerts.text import blame, title
from pplmon.alerts.words import SENTENCE, number, plural, shown
from pplmon.page.runs import Run
from pplmon.page.verdict import incidents

WITH_EVIDENCE = 100  # events; of more the gravest have theirs, and the journal has all
SEQUENCES = 3  # of the worst ones of an event


@dataclass(frozen=True)
class Saying:
    """One alert of an event."""

    title: str
    text: str
    value: str
    threshold: str


@dataclass(frozen=True)
class Event:
    """All alerts of one step, which share their evidence."""

    key: str  # for links
    step: int
    stage: str
    severity: str
    alerts: Sequence[Alert]
    sayings: list[Saying]
    blame: list[str]
    address: str  # of what is at fault
    texts: list[Text]
    sequences: list[str]
    files: list[tuple[str, str]]  # what, path
    open: bool = False  # shown at once
    bare: bool = False  # its evidence is left to the journal


def events(run: Run, number_of_run: int) -> list[Event]:
    """Return the events of a run in the order of their steps; the highest one is open."""
    groups: dict[tuple[str, int], list[Alert]] = {}
    for alert in run.alerts:
        groups.setdefault((alert.stage, alert.step or 0), []).append(alert)
    gravest = sorted(groups, key=lambda place: _gravity(groups[place]), reverse=True)
    files = _Files(run)
    return [
        _event(
            f"e{number_of_run}-{index}",
            place,
            alerts,
            files,
            place in gravest[:1],
            place not in gravest[:WITH_EVIDENCE],
        )
        for index, (place, alerts) in enumerate(groups.items())
    ]


def _event(
    key: str, place: tuple[str, int], alerts: Sequence[Alert], files: _Files, is_open: bool, bare: bool
) -> Event:
    stage, step = place
    best = next((alert for alert in alerts if alert.worst or alert.worst_sequences), alerts[0])
    culprit = at_fault(best)
    return Event(
        key=key,
        step=step,
        stage=stage,
        severity=max((alert.severity for alert in alerts), key=SEVERITIES.index),
        alerts=alerts,
        sayings=[_saying(alert) for alert in alerts],
        blame=list(dict.fromkeys(line for alert in alerts for line in blame(alert))),
        address="" if culprit is None else address(culprit),
        texts=[] if bare else heatmap(best.worst),
        sequences=[
            f"{number(worst.loss)} nats per token over {plural(worst.tokens, 'token')}: {sequence_of(worst)}"
            for worst in best.worst_sequences[:SEQUENCES]
        ],
        files=files.of(step),
        open=is_open,
        bare=bare,
    )


def _saying(alert: Alert) -> Saying:
    text = alert.text.removeprefix(f"step {alert.step}: ")
    return Saying(shown(title(alert)), shown(text, SENTENCE), number(alert.value), number(alert.threshold))


def _gravity(alerts: Sequence[Alert]) -> tuple[int, float]:
    (incident,) = incidents(alerts)
    return max(SEVERITIES.index(alert.severity) for alert in alerts), incident.height


class _Files:
    """The batches and checkpoints that actions saved, by step: where the run said, and beside its journal."""

    def __init__(self, run: Run) -> None:
        self._home = run.path.absolute().parent
        named = run.settings.get("alert_folders", ())
        folders = dict.fromkeys([self._home / FOLDER, *map(Path, named)])
        self._found = {
            path.resolve(): path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())
        }

    def of(self, step: int) -> list[tuple[str, str]]:
        """Return what was saved of one step. Alerts of one step share their files, whichever rule names them."""
        found = []
        for path in self._found.values():
            what = (
                "checkpoint" if path.name.endswith(f"-step={step}.ckpt") else "batch" if _is_batch(path, step) else ""
            )
            if what:
                found.append((what, shown(self._relative(path), SENTENCE)))
        return found

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self._home) if path.is_relative_to(self._home) else str(path)


def _is_batch(path: Path, step: int) -> bool:
    return path.suffix == ".pt" and f"-step={step}-rank=" in path.name
