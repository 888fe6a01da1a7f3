"""Name the files that belong to an alert, and the directory that they go to."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pplmon.alerts import Alert

FOLDER = "alerts"  # within the trainer's log directory, where none is named


def folder(directory: str | os.PathLike[str] | None, monitor: Any, who: str) -> Path:
    """Return the directory to write to: the user's, else ``alerts/`` beside the trainer's logs.

    Raises:
        ValueError: none was named, and there is no trainer that has one.
    """
    if directory is not None:
        return Path(directory)
    logs = getattr(monitor, "log_dir", None)
    if logs is None:
        raise ValueError(f'{who} without a directory needs a Lightning trainer; write {who}("runs/a/alerts"), say')
    return Path(logs) / FOLDER


def stem(alert: Alert) -> str:
    """Return the name of an alert's file, without its ending: rule, number and step."""
    parts = [alert.rule] if alert.metric is None else [alert.rule, alert.metric]
    return "-".join(re.sub(r"[^\w.]+", "_", part)[:60] for part in parts) + f"-step={alert.step}"
