"""Read TensorBoard's scalars from a directory of event files, or from one of them."""

from __future__ import annotations

from pathlib import Path

from pplmon.replay.read.reader import Cells, LogReader
from pplmon.replay.read.series import ReplayError


class TensorBoardReader(LogReader):
    """Reads TensorBoard's scalars; a run may have several files in one directory."""

    kind = "tensorboard"
    pattern = "events.out.tfevents.*"
    expects = "events.out.tfevents.*"
    order = 30

    def matches(self, file: Path) -> bool:
        return ".tfevents." in file.name

    def place(self, file: Path) -> Path:
        return file.parent

    def table(self, path: Path, step: str | None) -> tuple[list[str], Cells]:
        from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
            EventAccumulator,
        )

        if step:
            raise ReplayError("TensorBoard's events have steps of their own: leave --step out")
        try:
            board = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()  # 0 keeps every point
            tags = list(board.Tags()["scalars"])
            points = [(tag, event.step, event.value) for tag in tags for event in board.Scalars(tag)]
        except Exception as error:  # TensorBoard's reader raises many kinds on a damaged file
            raise ReplayError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
        return tags, ((step, {tag: value}) for tag, step, value in points)
