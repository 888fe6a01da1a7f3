"""Read ``trainer_state.json`` of Hugging Face's Trainer, and of TRL and others that build on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pplmon.replay.read.reader import Cells, LogReader, by_step, step_column
from pplmon.replay.read.text import lines, unpacked_name

SUMMARY = "train_runtime"  # the key of the row that closes a run, whose train_loss is the mean over all steps
HISTORY = "log_history"


class TrainerStateReader(LogReader):
    """Reads the history in a Trainer's state; of a run's checkpoints the last has it all."""

    kind = "trainer state"
    pattern = "trainer_state.json"
    expects = "trainer_state.json"
    order = 35

    def matches(self, file: Path) -> bool:
        return unpacked_name(file).endswith(".json")

    def place(self, file: Path) -> Path:
        if not file.parent.name.startswith("checkpoint-"):
            return file
        saved = [*file.parent.parent.glob(f"checkpoint-*/{self.pattern}"), file]
        return max(saved, key=_steps_of)

    def table(self, path: Path, step: str | None) -> tuple[list[str], Cells]:
        try:
            state: Any = json.loads("".join(lines(path)))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
        history = state.get(HISTORY) if isinstance(state, dict) else state
        if not isinstance(history, list):
            raise ValueError(f"{path} has no list {HISTORY!r}: expected the trainer_state.json of a Trainer")
        rows = [row for row in history if isinstance(row, dict) and SUMMARY not in row]
        for row in history:
            if not isinstance(row, dict):
                self.left_out.add("an entry of the history that is no object", row)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        column = step_column(columns, step, path)
        return [name for name in columns if name not in (column, "epoch")], by_step(rows, column, self.left_out)


def _steps_of(file: Path) -> int:
    number = file.parent.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() and len(number) < 19 else -1
