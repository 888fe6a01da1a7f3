"""The result of a replay, printed for people (rich) and as plain values for ``--json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pplmon.alerts.text import blame, brief
from pplmon.replay.judge import Fired, Result
from pplmon.replay.read.series import Series
from pplmon.replay.score import Score
from pplmon.replay.suggest import Suggestion
from pplmon.report.visible import visible

SHOWN = 50  # alerts; --json has all
PAGES = "pages: warnings and critical alerts. events: pages close together, counted as one."
FALSE = "false: events that begin within no --incident, per 100,000 judged values and per 100,000 optimizer steps."
UNMARKED = (
    "false: all events, as no --incident marks a true one, per 100,000 judged values and per 100,000 optimizer steps."
)
NONE_SEEN = "0 (< 60): none was seen, so the rate is below 60, with 95 % confidence."
PIPE_WIDTH = 160  # columns: rich takes a pipe for 80, and would fold a rule's text


def values(
    series: Series, result: Result, scores: Sequence[Score], suggestions: Sequence[Suggestion]
) -> dict[str, Any]:
    """Return everything as plain values."""
    return {
        "path": str(series.path),
        "kind": series.kind,
        "rows": sum(1 for _ in series.rows()),
        "spans": series.spans(),
        "alerts": [_alert(fired) for fired in result.fired],
        "rules": [_score(score) for score in scores],
        "suggestions": [vars(suggestion) for suggestion in suggestions],
        "notes": result.notes,
        "differs_from_journal": result.differs,
    }


def show(series: Series, result: Result, scores: Sequence[Score], suggestions: Sequence[Suggestion]) -> None:
    """Print the replay."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH

    def line(text: str, style: str = "") -> None:
        console.print(visible(text), markup=False, style=style or None, soft_wrap=True)

    line(_title(series))
    for fired in result.fired[:SHOWN]:
        line(_line(fired), {"critical": "red", "warning": "yellow"}.get(fired.alert.severity, "dim"))
    if len(result.fired) > SHOWN:
        line(f"… and {len(result.fired) - SHOWN:,} more; --json has them all")
    if not result.fired:
        line("No rule would have fired.")
    console.print(_table(scores, escape))
    line(PAGES, "dim")
    if any(score.quiet_values for score in scores):
        line(f"{FALSE if any(score.incidents for score in scores) else UNMARKED} {NONE_SEEN}", "dim")
    for suggestion in suggestions:
        line(_suggestion(suggestion))
    if result.differs is not None:
        line(_comparison(series, result.differs))
    for note in result.notes:
        line(f"note: {note}", "dim")


def _title(series: Series) -> str:
    spans = ", ".join(f"{start}–{end}" for start, end in series.spans())
    rows = sum(1 for _ in series.rows())
    apart = series.spacing()
    every = f", {apart} steps apart (a live rule judges every step)" if apart > 1 and series.kind != "journal" else ""
    return f"{series.path} ({series.kind}): {rows:,} rows of steps {spans}{every}"


def _line(fired: Fired) -> str:
    alert = fired.alert
    numbers = [
        f"{what} {brief(v)}" for what, v in (("value", alert.value), ("threshold", alert.threshold)) if v is not None
    ]
    notice = "" if fired.page else "  (a notice)"
    repeated = "  (judged again after a resume)" if fired.repeated else ""
    text = alert.text.removeprefix(f"step {alert.step}: ")
    blamed = "".join(f"  {sentence}" for sentence in blame(alert))
    return f"step {alert.step}  {fired.rule}  {', '.join(numbers)}  {text}{blamed}{notice}{repeated}".replace("\n", " ")


def _table(scores: Sequence[Score], escape: Any) -> Any:
    from rich.table import Table

    marked = any(score.incidents for score in scores)
    table = Table(box=None, pad_edge=False)
    table.add_column("rule", overflow="fold")
    more = ("caught", "noticed", "delay", "false") if marked else ()
    for name in ("pages", "notices", "events", *more, "false per 100k values", "false per 100k steps"):
        table.add_column(name, justify="right")
    for score in scores:
        counts = [str(count) for count in (score.pages, score.notices, score.events)]
        if marked:
            told = [f"{count}/{score.incidents}" for count in (score.caught, score.noticed)]
            counts += [*told, _steps(score.delay), str(score.false_events)]
        rates = (
            _rate(score, score.false_per_100k_values, score.quiet_values),
            _rate(score, score.false_per_100k_steps, score.quiet_steps),
        )
        table.add_row(escape(visible(score.rule)), *counts, *rates)
    return table


def _steps(delay: float | None) -> str:
    return "" if delay is None else f"{delay:g}"


def _rate(score: Score, rate: float | None, quiet: int) -> str:
    if rate is None:
        return ""
    limit = float(f"{3e5 / quiet:.2g}")  # none seen in n: up to 3/n is likely (95 %) to show none
    return f"{rate:.3g}" if score.false_events else f"0 (< {limit:,g})"


def _suggestion(found: Suggestion) -> str:
    note = f" ({found.note})" if found.note else ""
    if found.suggested is None:
        return f"suggested for {found.rule}: nothing{note}"
    rate = "" if found.false_per_100k_values is None else f", {found.false_per_100k_values:.3g} per 100k values"
    return f"suggested for {found.rule}: {found.suggested}: {found.false_events} false here{rate}{note}"


def _comparison(series: Series, differs: tuple[int, int]) -> str:
    if differs == (0, 0):
        return f"The journal has the same {len(series.live)} alerts."
    return f"The journal differs: {differs[0]} alerts stand only there, {differs[1]} only here."


def _alert(fired: Fired) -> dict[str, Any]:
    alert = fired.alert
    names = (
        "metric",
        "stage",
        "step",
        "value",
        "threshold",
        "severity",
        "cause",
        "text",
        "blame_group",
        "blame_group_share",
    )
    return (
        {"rule": fired.rule, "name": alert.rule}
        | {name: getattr(alert, name) for name in names}
        | {
            "run": fired.run,
            "repeated": fired.repeated,
        }
    )


def _score(score: Score) -> dict[str, Any]:
    names = ("recall", "delay", "false_per_100k_values", "false_per_100k_steps")
    more = {name: getattr(score, name) for name in names}
    return {**vars(score), **more}
