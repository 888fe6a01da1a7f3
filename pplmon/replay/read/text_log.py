"""Read plain text logs that have a step and a loss in a line: of nanoGPT, llm.c, modded-nanogpt, Megatron and others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pplmon.replay.read.reader import Cells, LogReader, by_step
from pplmon.replay.read.series import ReplayError
from pplmon.replay.read.text import lines, unpacked_name

NUMBER = r"[+-]?(?:\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?|nan|inf(?:inity)?)"
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # colours
_STEP = re.compile(
    r"(?:^s(?=:)|\b(?:global[ _]?step|steps?|iter(?:ation)?|update)\b)['\"]?\s*[:=#\[(]?\s*(\d[\d,]*)", re.IGNORECASE
)
_LOSS = re.compile(  # as in: lm loss value: 2.5E+00 | val_loss=2.5 | loss train: 2.5
    rf"\b((?:[a-z]+[ _/])?(?:loss|perplexity|ppl)(?:[ _/](?:train|val))?)(?: value)?\b['\"]?\s*[:=|]?\s*"
    rf"({NUMBER})(?!\w|\.\d)",
    re.IGNORECASE,
)
_BARE = re.compile(rf"\s*(\d+)\s+(train|val|test)\s+({NUMBER})\s*", re.IGNORECASE)  # "250 val 3.2", of llm.c's twin
_SHORT = re.compile(rf"\b(trl|tel):({NUMBER})")  # of llm.c: the loss on train and on test data
_SHORT_NAMES = {"trl": "train loss", "tel": "val loss"}
_VALIDATION = re.compile(r"\bvalidation\b|\beval", re.IGNORECASE)  # the loss that such a line names is not train's


class TextLogReader(LogReader):
    """Reads lines of text; ``pattern`` is the user's own, with the groups ``step`` and, say, ``loss``."""

    kind = "text log"
    expects = ".log, .txt or .out (a step and a loss in each line)"
    order = 90

    def __init__(self, own: str | None = None) -> None:
        self._own = None if own is None else _compiled(own)

    def matches(self, file: Path) -> bool:
        return unpacked_name(file).endswith((".log", ".txt", ".out", ".err"))

    def table(self, path: Path, step: str | None) -> tuple[list[str], Cells]:
        if step:
            raise ReplayError("a text log has no columns: leave --step out, and name the step by --pattern")
        rows = [row for line in lines(path) if (row := self._row(_ESCAPES.sub("", line)))]
        if not rows:
            raise ReplayError(
                f"{path} has no line with a step and a loss{'' if self._own is None else ' that fits --pattern'}; say "
                r"how they look: --pattern 'it (?P<step>\d+) .*? ce (?P<loss>\S+)'"
            )
        columns = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
        return columns, by_step(rows, "step", self.left_out)

    def _row(self, line: str) -> dict[str, str]:
        """Return the step and the values of a line; nothing where it lacks either."""
        if self._own is not None:
            found = self._own.search(line)
            return {} if found is None else {name: value for name, value in found.groupdict().items() if value}
        bare = _BARE.fullmatch(line)
        if bare:
            return {"step": bare[1], f"{bare[2].lower()} loss": bare[3]}
        step, values = _STEP.search(line), dict(_values(line))
        return {"step": step[1].rstrip(","), **values} if step and values else {}


def _values(line: str) -> Iterator[tuple[str, str]]:
    """Yield each loss of a line by its name, the first of one name last."""
    of_validation = _VALIDATION.search(line) is not None
    for found in reversed(list(_LOSS.finditer(line))):
        name = found[1].lower()
        yield (f"val {name.split()[-1]}" if of_validation and "train" not in name else name), found[2]
    for found in _SHORT.finditer(line):
        yield _SHORT_NAMES[found[1]], found[2]


def _compiled(pattern: str) -> re.Pattern[str]:
    """Return the user's pattern.

    Raises:
        ReplayError: it is none, or lacks its groups.
    """
    try:
        found = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ReplayError(f"--pattern is no regular expression: {error}; got {pattern!r}") from None
    if "step" not in found.groupindex or len(found.groupindex) < 2:
        raise ReplayError(
            r"--pattern wants the groups step and a number's, as in '(?P<step>\d+) (?P<loss>\S+)'; "
            f"got {pattern!r} with {', '.join(found.groupindex) or 'none'}"
        )
    return found
