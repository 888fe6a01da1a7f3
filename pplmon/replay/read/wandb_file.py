"""Read the ``.wandb`` file of an offline run: LevelDB log framing around protobuf records.

wandb's own reader (``wandb.sdk.internal.datastore``) went away in 0.30; the framing and the records stayed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pplmon.replay.read.reader import STEPS, Cells, LogReader, by_step, step_column
from pplmon.sinks.journal import FILE_NAME

HEADER = (b":W&B", 0xBEE1, 0)
BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


class WandbReader(LogReader):
    """Reads the history of W&B's offline runs."""

    kind = "wandb"
    pattern = "*.wandb"
    expects = ".wandb"
    order = 20

    def table(self, path: Path, step: str | None) -> tuple[list[str], Cells]:
        rows = history(path)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        column = step_column(columns, step, path)
        return [name for name in columns if name not in STEPS], by_step(rows, column)

    def notes(self, path: Path) -> list[str]:
        inside = path.parent / "files" / FILE_NAME
        return [f"A journal lies beside it, which replays exactly: {inside}"] if inside.is_file() else []


def history(path: Path) -> list[dict[str, Any]]:
    """Return the rows that a run logged, in their order."""
    return [items(record.history.item) for record in records(path) if record.WhichOneof("record_type") == "history"]


def records(path: Path) -> Iterator[Any]:
    """Return W&B's records of one ``.wandb`` file. Reading ends at one that a kill left incomplete.

    Raises:
        ValueError: the file has another format.
    """
    from wandb.proto import wandb_internal_pb2

    pb: Any = wandb_internal_pb2  # its names are made when it is imported
    for data in _chunks(path):
        record = pb.Record()
        record.ParseFromString(data)
        yield record


def items(pairs: Any) -> dict[str, Any]:
    """Return keys and values of a record; a nested key (a media file's fields) becomes a mapping."""
    found: dict[str, Any] = {}
    for pair in pairs:
        *outer, last = pair.nested_key or [pair.key]
        place = found
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = json.loads(pair.value_json)
    return found


def _chunks(path: Path) -> Iterator[bytes]:
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
