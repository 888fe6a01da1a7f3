"""Read back the records of one offline run of W&B from its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pplmon.replay.read.wandb_file import items, records


@dataclass
class OfflineRun:
    """The records of a run, by their kind."""

    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    alerts: list[Any] = field(default_factory=list)
    metrics: list[Any] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)


def read_run(path: Path) -> OfflineRun:
    """Read every record of a ``.wandb`` file."""
    run = OfflineRun()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            run.history.append(items(record.history.item))
        elif kind == "summary":
            run.summary.update(items(record.summary.update))
            for item in record.summary.remove:
                run.summary.pop(item.key or "/".join(item.nested_key), None)
        elif kind == "config":
            run.config.update(items(record.config.update))
        elif kind == "run":
            run.config.update(items(record.run.config.update))
        elif kind == "artifact":
            run.artifacts.append(record.artifact)
        elif kind == "alert":
            run.alerts.append(record.alert)
        elif kind == "metric":
            run.metrics.append(record.metric)
        elif kind == "exit":
            run.exits.append(record.exit.exit_code)
    return run
