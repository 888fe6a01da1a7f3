"""Read the ``.wandb`` file of an offline run: LevelDB log framing around protobuf records.

wandb's own reader (``wandb.sdk.internal.datastore``) went away in 0.30; the framing and the records stayed.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pplmon.replay.read.reader import Cells, LogReader, by_step, step_column
from pplmon.sinks.journal import FILE_NAME
from pplmon.sinks.left_out import LeftOut

HEADER = (b":W&B", 0xBEE1, 0)
BLOCK = 32 * 1024
FULL, FIRST, LAST = 1, 2, 4  # and 3 for what lies between
INTERNAL = "_step"  # W&B's own count of calls


class WandbReader(LogReader):
    """Reads the history of W&B's offline runs."""

    kind = "wandb"
    pattern = "*.wandb"
    expects = ".wandb"
    order = 20

    def table(self, path: Path, step: str | None) -> tuple[list[str], Cells]:
        rows = history(path, self.left_out)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        column = step_column(columns, step, path)
        return [name for name in columns if name not in (column, INTERNAL)], by_step(rows, column, self.left_out)

    def notes(self, path: Path) -> list[str]:
        inside = path.parent / "files" / FILE_NAME
        return [f"A journal lies beside it, which replays exactly: {inside}"] if inside.is_file() else []


def history(path: Path, left_out: LeftOut | None = None) -> list[dict[str, Any]]:
    """Return the rows that a run logged, in their order."""
    found = (record for record in records(path, left_out) if record.WhichOneof("record_type") == "history")
    return [items(record.history.item, left_out) for record in found]


def records(path: Path, left_out: LeftOut | None = None) -> Iterator[Any]:
    """Return W&B's records of one ``.wandb`` file; damaged ones are left out. Reading ends where a kill cut the file.

    Raises:
        ValueError: the file has another format.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto import wandb_internal_pb2

    pb: Any = wandb_internal_pb2  # its names are made when it is imported
    left_out = LeftOut() if left_out is None else left_out
    for data in _chunks(path, left_out):
        record = pb.Record()
        try:
            record.ParseFromString(data)
        except DecodeError as error:
            left_out.add("a record of W&B's that cannot be read", error)
        else:
            yield record


def items(pairs: Any, left_out: LeftOut | None = None) -> dict[str, Any]:
    """Return keys and values of a record; a nested key (a media file's fields) becomes a mapping."""
    found: dict[str, Any] = {}
    for pair in pairs:
        *outer, last = pair.nested_key or [pair.key]
        place: Any = found
        try:
            for name in outer:
                place = place.setdefault(name, {})
            place[last] = json.loads(pair.value_json)
        except (ValueError, RecursionError, AttributeError, TypeError):  # no JSON, or a name that holds a value already
            if left_out is not None:
                left_out.add("a value of W&B's that cannot be read", last)
    return found


def _chunks(path: Path, left_out: LeftOut) -> Iterator[bytes]:
    """Yield the records' bytes. After a damaged chunk reading goes on at the next block, as lengths are not to be trusted."""
    data = path.read_bytes()
    if len(data) < 7 or struct.unpack("<4sHB", data[:7]) != HEADER:
        raise ValueError(
            f"{path} is no .wandb file of a run: it does not begin with W&B's mark. Give the file run-<id>.wandb of an "
            "offline run"
        )
    position = 7
    parts: bytes | None = None  # of a record that several chunks hold
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:  # too small for a header: padding
            position += left
            continue
        crc, length, kind = struct.unpack("<IHB", data[position : position + 7])
        end = position + 7 + length
        if crc == length == kind == 0:  # never written
            position += left
            continue
        if end > len(data) and length <= left - 7:
            return  # cut short by a kill
        if zlib.crc32(data[position + 6 : end]) != crc:  # of the kind and what follows
            left_out.add("a block of W&B's file whose checksum is wrong", f"at byte {position:,}")
            parts, position = None, position + left
            continue
        chunk, position = data[position + 7 : end], end
        if kind in (FULL, FIRST):
            parts = chunk
        elif parts is not None:  # else its beginning was damaged
            parts += chunk
        if kind in (FULL, LAST) and parts is not None:
            yield parts
            parts = None
