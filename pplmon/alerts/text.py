"""Worst tokens and worst sequences as tables, and the words of an alert: the same for every place that shows them.

Decoded text comes from the training data, so it may hold anything: newlines, terminal escapes, markup, halves of
characters. It is shown as ``repr`` shows it (quoted, so that a leading space is seen), and markup in it is escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from pplmon.alerts import Alert
from pplmon.report.strict_json import finite_or_text
from pplmon.report.visible import visible
from pplmon.report.worst import WorstSequence, WorstToken

END = 1000  # characters of a long error that are shown at either end
TITLE_LENGTH = 64  # characters: W&B takes no longer title
CELL_LENGTH = 600  # characters of a text in a table
Cell = str | float | int | None

# Fields of WorstToken and WorstSequence, in reading order. Losses are in nats (a sequence's: nats per token).
TOKEN_COLUMNS = (
    "loss",
    "step",
    "micro_batch",
    "rank",
    "sequence",
    "position",
    "sample_id",
    "target",
    "target_text",
    "predicted",
    "predicted_text",
    "predicted_probability",
    "context_text",
)
SEQUENCE_COLUMNS = (
    "loss",
    "tokens",
    "step",
    "micro_batch",
    "rank",
    "sequence",
    "position",
    "document_id",
    "sample_id",
)


class Table(NamedTuple):
    """Columns and rows for any kind of table. Text is printable already, and no cell is NaN or infinite."""

    columns: list[str]
    rows: list[list[Cell]]


def token_table(tokens: Sequence[WorstToken]) -> Table:
    """Return the worst tokens; columns of nothing but ``None`` are left out."""
    return _table(tokens, TOKEN_COLUMNS)


def sequence_table(sequences: Sequence[WorstSequence]) -> Table:
    """Return the worst sequences; columns of nothing but ``None`` are left out."""
    return _table(sequences, SEQUENCE_COLUMNS)


def markdown(table: Table) -> str:
    """Return ``table`` as a markdown table; "" where it has no rows."""
    if not table.rows:
        return ""
    lines = [table.columns, ["---"] * len(table.columns), *([_cell(c) for c in row] for row in table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def blame(alert: Alert) -> list[str]:
    """Return a sentence on the share of the jump of the cross-entropy that each explains, where known: a group, a sequence, a token."""
    group = "The group " + visible(alert.blame_group or "").replace("\n", " ")
    shares = (
        (group, alert.blame_group_share),
        ("The worst sequence", alert.blame_sequence),
        ("The worst token", alert.blame_token),
    )
    return [
        f"{what} explains {share:.0%} of the jump of the cross-entropy." for what, share in shares if share is not None
    ]


def title(alert: Alert) -> str:
    """Return a title for an alert, of at most 64 characters on one line."""
    what = alert.rule if alert.metric is None else f"{alert.rule}: {alert.stage}/{alert.metric}"
    line = visible(what).replace("\n", " ")
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…"


def one_line(error: Exception) -> str:
    """Return an error's text on one line: what does not print is escaped, and of a long text the middle is left out."""
    text = visible(str(error)).replace("\n", " ")
    return text if len(text) <= 2 * END else f"{text[:END]} … {text[-END:]}"


def brief(value: float) -> str:
    """Return a number with the few digits that a reader needs."""
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(finite_or_text(value))


def _table(items: Sequence[WorstToken | WorstSequence], names: Sequence[str]) -> Table:
    columns = {name: _column([getattr(item, name) for item in items]) for name in names}
    filled = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
    return Table(list(filled), [list(row) for row in zip(*filled.values())])


def _column(values: list[Cell]) -> list[Cell]:
    # One column is of one type, or W&B refuses it: beside a NaN the finite losses are text, too.
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        return [brief(value) if isinstance(value, (int, float)) else value for value in values]
    return [_quoted(value) if isinstance(value, str) else value for value in values]


def _quoted(text: str) -> str:
    whole = repr(text)
    return whole if len(whole) <= CELL_LENGTH else f"{whole[:CELL_LENGTH]}… ({len(whole):,} characters)"


def _cell(value: Cell) -> str:
    if isinstance(value, str):
        return escaped(value)
    return "" if value is None else brief(value)


def escaped(text: str) -> str:
    """Return text whose markup, of markdown or HTML, is shown and not obeyed ("<|endoftext|>" is a token)."""
    entities = text.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", entities)
