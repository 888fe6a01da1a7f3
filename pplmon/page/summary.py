"""The content of a page as plain values, for ``--json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pplmon.alerts.addresses import address
from pplmon.page.compare import differences, differing
from pplmon.page.events import events
from pplmon.page.headline import headline
from pplmon.page.runs import Run
from pplmon.page.verdict import verdict


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the verdict, the headline and the alerts of each run, and in what the runs differ."""
    found: dict[str, Any] = {"runs": [_run(run, place) for place, run in enumerate(runs)]}
    if len(runs) > 1:
        found["differences"] = {line.title: line.values for line in differences(runs)}
        found["settings_that_differ"] = differing(runs)
    return found


def _run(run: Run, place: int) -> dict[str, Any]:
    judged = verdict(run)
    return {
        "name": run.name,
        "journal": str(run.path),
        "steps": run.steps,
        "over": run.worst is not None,
        "state": judged.state,
        "verdict": judged.text,
        "headline": {tile.title: tile.value for tile in headline(run)},
        "alerts": [
            {
                "step": event.step,
                "stage": event.stage,
                "severity": event.severity,
                "texts": [saying.text for saying in event.sayings],
                "blame": event.blame,
                "address": event.address,
                "files": [path for _, path in event.files],
                "worst": [address(text.token) for text in event.texts],
            }
            for event in events(run, place)
        ],
    }
