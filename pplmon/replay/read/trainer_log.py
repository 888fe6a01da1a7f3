"""Read LLaMA-Factory's ``trainer_log.jsonl``: lines of JSON whose step is called ``current_steps``."""

from __future__ import annotations

from pathlib import Path

from pplmon.replay.read.json_lines_file import JsonLinesReader
from pplmon.replay.read.text import unpacked_name


class TrainerLogReader(JsonLinesReader):
    """Reads the log that LLaMA-Factory writes beside its checkpoints."""

    kind = "trainer log"
    pattern = "trainer_log.jsonl"
    expects = "trainer_log.jsonl"
    order = 42

    def matches(self, file: Path) -> bool:
        return unpacked_name(file) == self.pattern
