"""Several runs side by side: their numbers, and the settings that differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pplmon.alerts.words import SENTENCE, number, shown
from pplmon.page.runs import HIGHEST, Run
from pplmon.report.numbers import CATALOGUE

Reading = Callable[[Run], float | None]


@dataclass(frozen=True)
class Line:
    """One row of the table: what it is, each run's number, and which of them is the best."""

    title: str
    numbers: list[float | None]
    best: list[bool]

    @property
    def values(self) -> list[str]:
        """Return the numbers as text."""
        return [number(value) for value in self.numbers]


def differences(runs: Sequence[Run]) -> list[Line]:
    """Return the numbers in which runs are compared, each run's beside the others'."""
    lines = []
    for title, reading, better in _readings(runs):
        values = [reading(run) for run in runs]
        if any(value is not None for value in values):
            known = [value for value in values if value is not None and math.isfinite(value)]
            best = better(known) if better is not None and len(set(known)) > 1 else None
            lines.append(Line(title, values, [v == best and v is not None for v in values]))
    return lines


def settings(run: Run) -> dict[str, str]:
    """Return what the journal says of a run's settings, as text."""
    hidden = ("kind", "run", "memory", "prefix", "files", "alert_folders")
    return {
        shown(name): shown(", ".join(map(str, value)) if isinstance(value, list) else value, SENTENCE)
        for name, value in run.settings.items()
        if name not in hidden and value is not None
    }


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the settings that are not the same in all runs, each run's beside the others'."""
    given: list[Mapping[str, str]] = [settings(run) for run in runs]
    names = dict.fromkeys(name for one in given for name in one)
    table = {name: [one.get(name, "–") for one in given] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1}


def _points(run: Run, stage: str, name: str) -> list[float]:
    table = run.tables.get(stage)
    return [v for _, v in table.points(name)] if table else []


def _last(stage: str, name: str) -> Reading:
    return lambda run: next(iter(_points(run, stage, name)[-1:]), None)


def _extreme(stage: str, name: str, of: Callable[[Sequence[float]], float]) -> Reading:
    def read(run: Run) -> float | None:
        known = [value for value in _points(run, stage, name) if math.isfinite(value)]
        return of(known) if known else None

    return read


def _readings(runs: Sequence[Run]) -> list[tuple[str, Reading, Callable[[Sequence[float]], float] | None]]:
    rows: list[tuple[str, Reading, Callable[[Sequence[float]], float] | None]] = [
        ("steps", lambda run: run.steps, None),
        ("tokens trained on", _last("train", "tokens_seen"), None),
    ]
    parts = {part: stage for stage in ("val", "train", "test") for run in runs for part in run.parts(stage)}
    for part, stage in parts.items():
        for name in ("perplexity", "token_accuracy"):
            better = max if CATALOGUE[name].best == "max" else min
            rows.append((f"{shown(part)}/{name}, last", _last(part, name), better))
            if stage == "val":
                rows.append((f"{shown(part)}/{name}, best", _extreme(part, name, better), better))
    lowest = min if len({run.steps for run in runs}) == 1 else None  # the highest of fewer steps is lower anyway
    for name in HIGHEST:
        rows.append((f"train/{name}, highest", _extreme("train", name, max), lowest))
    rows.append(("train/nonfinite_tokens, in all", lambda run: sum(_points(run, "train", "nonfinite_tokens")), min))
    rows.append(("alerts", lambda run: sum(alert.severity != "info" for alert in run.alerts), min))
    rows.append(("notices", lambda run: sum(alert.severity == "info" for alert in run.alerts), min))
    return rows
