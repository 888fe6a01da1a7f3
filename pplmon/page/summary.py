"""The content of a page as plain values, for ``--json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pplmon.page.compare import differences, differing
from pplmon.page.events import Event, events
from pplmon.page.runs import Run
from pplmon.page.verdict import verdict
from pplmon.report.declared import is_drawn

ALERT = ("rule", "metric", "severity", "value", "threshold", "text", "blame_sequence", "blame_token")
WORST = (
    *("loss", "step", "micro_batch", "rank", "sequence", "position", "sample_id"),
    *("target", "target_text", "predicted", "predicted_text", "context_text"),
)


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the verdict, the last numbers and the events of each run, and in what the runs differ."""
    several = len(runs) > 1
    return {
        "runs": [_run(run, place) for place, run in enumerate(runs)],
        "differences": {line.title: line.numbers for line in differences(runs)} if several else {},
        "settings_that_differ": differing(runs) if several else {},
    }


def _run(run: Run, place: int) -> dict[str, Any]:
    judged = verdict(run)
    notices = sum(alert.severity == "info" for alert in run.alerts)
    return {
        "name": run.name,
        "journal": str(run.path),
        "steps": run.steps,
        "over": run.worst is not None,
        "state": judged.state,
        "verdict": judged.text,
        "alerts_total": len(run.alerts) - notices,
        "notices_total": notices,
        "numbers": {
            _log_key(stage, name): value
            for stage, rows in run.windows.items()
            for name, value in rows[-1]["numbers"].items()
            if not is_drawn(name)
        },
        "events": [_event(event) for event in events(run, place)],
    }


def _log_key(stage: str, name: str) -> str:
    """Return the key of a number without its prefix: that of one of several data sets ("val/wiki") ends in its name."""
    stage, slash, part = stage.partition("/")
    return f"{stage}/{name}{slash}{part}"


def _event(event: Event) -> dict[str, Any]:
    return {
        "step": event.step,
        "stage": event.stage,
        "severity": event.severity,
        "alerts": [{name: getattr(alert, name) for name in ALERT} for alert in event.alerts],
        "address": event.address,
        "files": [path for _, path in event.files],
        "worst": [{name: getattr(text.token, name) for name in WORST} for text in event.texts],
    }
