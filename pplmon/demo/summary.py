"""The end of the demo: a table of the run from its journal, and whether the corrupted step was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pplmon.alerts.text import brief
from pplmon.demo.plan import Plan
from pplmon.page.command import opening
from pplmon.report.answer import Answer, Exit

Row = Mapping[str, Any]  # of the journal
ALERT = ("rule", "metric", "stage", "step", "severity", "text")  # of an alert, for --json

# Log key -> True where more is better. Losses are in nats.
SHOWN = {
    "train/cross_entropy": False,
    "train/perplexity": False,
    "val/perplexity": False,
    "train/token_accuracy": True,
    "val/token_accuracy": True,
    "train/max_sequence_loss": False,
    "train/max_token_loss": False,
}


def answer(
    plan: Plan, rows: Sequence[Row], seconds: float, journal: Path, page: Path, places: Mapping[str, str]
) -> Answer:
    """Return what the demo has to say of its run; ``places`` is what else is where, and what opens it."""
    corrupted = plan.corrupted_step
    found = None if corrupted is None else corruption_found(rows, corrupted)

    def values() -> dict[str, Any]:
        return {
            "steps": 1 + last_step(rows),
            "seconds": seconds,
            "corrupted_step": corrupted,
            "corrupted_row": plan.corrupted_row,
            "found": found,
            "alerts": [{name: row.get(name) for name in ALERT} for row in rows if row["kind"] == "alert"],
            "numbers": {key: series[-1][1] for key in SHOWN if (series := numbers(rows, key))},
            "journal": str(journal),
            "page": str(page),
        }

    def show() -> None:
        console = Console(highlight=False)
        console.print()
        console.print(summary_table(rows, f"{1 + last_step(rows)} steps in {seconds:.0f} s"))
        style = "bold red" if found is False else "bold green"
        console.print(Text("\n".join(verdict(rows, corrupted)), style), soft_wrap=True)
        console.print()
        named = {"journal": str(journal), **places, "page": str(page), "open it": opening(page)}
        width = max(map(len, named))
        for name, place in named.items():
            console.print(Text(f"{name:<{width}}  {place}"), soft_wrap=True)

    return Answer(values, show, Exit.FOUND if found is False else Exit.FINE)


def summary_table(rows: Sequence[Row], title: str) -> Table:
    """Return first, best, worst and last of the numbers in ``SHOWN`` over the logged windows and passes."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True, min_width=max(map(len, SHOWN)))
    for header in ("first", "best", "worst", "its window ends at", "last"):
        table.add_column(header, justify="right")
    for key, more_is_better in SHOWN.items():
        series = numbers(rows, key)
        if series:
            ordered = sorted(series, key=lambda point: point[1], reverse=more_is_better)
            (_, best), (step, worst) = ordered[0], ordered[-1]
            cells = (brief(series[0][1]), brief(best), brief(worst), f"step {step}", brief(series[-1][1]))
            table.add_row(key, *cells)
    return table


def numbers(rows: Sequence[Row], key: str) -> list[tuple[int, float]]:
    """Return (step, value) of every logged report that has the number ``key``, "stage/name"."""
    stage, name = key.split("/")
    reports = [row for row in rows if row["kind"] == "report" and row["stage"] == stage]
    return [(row["step"], float(row["numbers"][name])) for row in reports if name in row["numbers"]]


def last_step(rows: Sequence[Row]) -> int:
    """Return the last 0-based optimizer step that was judged; -1 where none was."""
    return max((row["step"] for row in rows if row["kind"] == "judged"), default=-1)


def corruption_found(rows: Sequence[Row], corrupted: int) -> bool:
    """Tell whether an alert of the training stage names the corrupted step."""
    return any(_is_of(row, corrupted) for row in rows)


def verdict(rows: Sequence[Row], corrupted: int | None) -> list[str]:
    """Say which alerts and notices named the corrupted step, and which others there were."""
    alerts = [row for row in rows if row["kind"] == "alert"]
    hits = [row for row in alerts if corrupted is not None and _is_of(row, corrupted)]
    lines = []
    if corrupted is not None:
        by = f"found by {', '.join(map(_rule, hits))} at step {corrupted}" if hits else "NOT found by any alert"
        lines.append(f"corrupted step {corrupted}: {by}")
    others = [f"{_rule(row)} at {row['stage']} step {row['step']}" for row in alerts if row not in hits]
    lines.append(f"other alerts and notices: {', '.join(others) or 'none'}")
    return lines


def _is_of(row: Row, step: int) -> bool:
    return row["kind"] == "alert" and row["stage"] == "train" and row.get("step") == step


def _rule(row: Row) -> str:
    return f"{row['rule']}({row.get('metric', '')})"
