"""Read the ``.wandb`` file of an offline run: LevelDB log framing around protobuf records.

wandb's own reader (``wandb.sdk.internal.datastore``) went away in 0.30; the framing and the records stayed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER = (b":W&B", 0xBEE1, 0)
BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What one offline run recorded."""

    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    alerts: list[Any] = field(default_factory=list)
    metrics: list[Any] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)


def read_run(path: Path) -> OfflineRun:
    """Return the records of one ``.wandb`` file. A record that a kill cut short is passed over, with what follows.

    Raises:
        ValueError: it is no such file.
    """
    from wandb.proto import wandb_internal_pb2

    pb: Any = wandb_internal_pb2  # its names are made when it is imported
    run = OfflineRun()
    for data in _records(path):
        record = pb.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary.update(_items(record.summary.update))
        elif kind == "alert":
            run.alerts.append(record.alert)
        elif kind == "metric":
            run.metrics.append(record.metric)
        elif kind == "exit":
            run.exits.append(record.exit.exit_code)
    return run


def _items(items: Any) -> dict[str, Any]:
    """Return keys and values; a nested key (a media file's fields) becomes a mapping."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = found
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return found


def _records(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    if len(data) < 7 or struct.unpack("<4sHB", data[:7]) != HEADER:
        raise ValueError(
            f"{path} is no .wandb file of a run: it does not begin with W&B's mark. Give the file run-<id>.wandb of an "
            "offline run"
        )
    position, parts = 7, b""
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:  # too small for a header: padding
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        chunk = data[position + 7 : position + 7 + length]
        position += 7 + length
        if len(chunk) < length or kind not in (FULL, FIRST, MIDDLE, LAST):
            return  # cut short, or zeros that were never written
        parts = chunk if kind in (FULL, FIRST) else parts + chunk
        if kind in (FULL, LAST):
            yield parts
