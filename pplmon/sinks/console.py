"""The terminal: one line per logged window and per notice, and a panel per alert."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pplmon.alerts import Alert
from pplmon.alerts.addresses import address, sequence_of
from pplmon.alerts.text import blame, brief
from pplmon.alerts.words import LABEL, SENTENCE, SHORT, shown
from pplmon.report.report import Report
from pplmon.report.visible import visible
from pplmon.report.worst import WorstSequence, WorstToken
from pplmon.sinks.base import Sink

TOKENS = 5  # at most, in a panel
COLOURS = {"info": "blue", "warning": "yellow", "critical": "red"}
LABELS = {
    "cross_entropy": "cross-entropy",
    "perplexity": "perplexity",
    "token_accuracy": "accuracy",
    "max_token_loss": "max token",
    "max_sequence_loss": "max sequence",
}


class Console(Sink):
    """Print to a ``rich.console.Console``, by default one on standard output.

    ``print`` is called with each rendered text, so that a progress bar can make room for it. ``reports=False``
    shows alerts only, for use beside a bar that shows the numbers already.
    """

    def __init__(self, console: Any = None, print: Callable[[str], Any] | None = None, reports: bool = True) -> None:
        self._console = console
        self._print = print
        self._reports = reports
        self._shown: tuple[WorstToken, ...] = ()  # the evidence of the last panel

    def start(self, run: Mapping[str, Any]) -> None:
        """Print the rules in force, so that whoever replaced the default set sees what is left of it, and where files go."""
        from rich.text import Text

        rules = ", ".join(run.get("alerts", ())) or "none (alerts=[])"
        self._show(Text(visible(f"pplmon: rules in force: {rules}")), soft_wrap=True)
        files = ", ".join([*run.get("files", ()), *run.get("alert_folders", ())])
        if files:
            self._show(Text(visible(f"pplmon: writes {files}")), soft_wrap=True)

    def agreed(self, text: str) -> None:
        """Print it."""
        from rich.text import Text

        self._show(Text(visible(f"pplmon: {text}")), soft_wrap=True)

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Print one line: the step, and the main numbers."""
        if self._reports:
            from rich.text import Text

            self._show(Text(report_line(report)), soft_wrap=True)

    def alert(self, alert: Alert) -> None:
        """Print a panel with the alert's text, and with its worst tokens in context unless they were just shown."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        parts: list[Any] = [Text(shown(alert.text, SENTENCE))]
        if alert.worst and alert.worst != self._shown:  # rules that fire at one step have one and the same evidence
            parts += [Text("\n".join([*blame(alert), *map(_sequence_line, alert.worst_sequences[:1])]))]
            parts += [Text(), _token_table(alert.worst[:TOKENS])]
            self._shown = alert.worst
        kind = "notice" if alert.severity == "info" else alert.severity  # in the words of the page
        heading = Text(f"pplmon {kind}: {shown(alert.rule)}")
        self._show(Panel(Group(*parts), title=heading, title_align="left", border_style=COLOURS[alert.severity]))

    def notice(self, alert: Alert) -> None:
        """Print one line: what happened, and where it was worst."""
        from rich.text import Text

        worst = [_sequence_line(alert.worst_sequences[0])] if alert.worst_sequences else []
        worst = worst or [f"Worst token: {address(token)}." for token in alert.worst[:1]]
        line = " ".join([f"pplmon notice: {shown(alert.text, SENTENCE)}.", *worst])
        self._show(Text(visible(line).replace("\n", " "), style=COLOURS["info"]), soft_wrap=True)

    def finished(self, report: Report) -> None:
        """Print the worst tokens of the run."""
        if self._reports and report.worst:
            from rich.text import Text

            self._show(Text("the worst tokens of the run"))
            self._show(_token_table(report.worst[:TOKENS]))

    def _show(self, thing: Any, soft_wrap: bool = False) -> None:
        if self._console is None:
            from rich.console import Console as RichConsole

            self._console = RichConsole()
        if self._print is None:
            self._console.print(thing, soft_wrap=soft_wrap)
            return
        with self._console.capture() as captured:
            self._console.print(thing, soft_wrap=soft_wrap)
        self._print(captured.get().rstrip("\n"))


def report_line(report: Report) -> str:
    """Return a window as one line. Losses are in nats; non-finite tokens are counted only where there are any."""
    numbers = [f"{label} {brief(v)}" for name, label in LABELS.items() if (v := report.numbers.get(name)) is not None]
    if report.numbers.get("nonfinite_tokens"):
        numbers.append(f"non-finite tokens {report.numbers['nonfinite_tokens']}")
    return "  ".join([f"step {report.step}", report.stage, *numbers])


def _token_table(tokens: Sequence[WorstToken]) -> Any:
    """Return a table of few columns, because a terminal is narrow; no markup in texts is obeyed."""
    from rich.table import Table
    from rich.text import Text

    columns = {
        "loss (nats)": [brief(token.loss) for token in tokens],
        "where": [address(token) for token in tokens],
        "target": [_named(token.target, token.target_text) for token in tokens],
        "predicted": [_predicted(token) for token in tokens],
        "context": [
            "" if token.context_text is None else shown(repr(token.context_text), 2 * LABEL) for token in tokens
        ],
    }
    filled = {header: cells for header, cells in columns.items() if any(cells)}
    table = Table(box=None, pad_edge=False)
    for header in filled:
        table.add_column(header, overflow="fold")
    for row in zip(*filled.values()):
        table.add_row(*map(Text, row))
    return table


def _sequence_line(sequence: WorstSequence) -> str:
    """Return a line on the worst sequence, which a person looks up first."""
    where = [sequence_of(sequence), *([f"rank {sequence.rank}"] if sequence.rank else [])]
    return f"Worst sequence: {', '.join(where)}, {brief(sequence.loss)} nats per token over {sequence.tokens} tokens."


def _predicted(token: WorstToken) -> str:
    if token.predicted is None:
        return ""
    name = _named(token.predicted, token.predicted_text)
    return name if token.predicted_probability is None else f"{name} p={brief(token.predicted_probability)}"


def _named(token_id: int, text: str | None) -> str:
    return str(token_id) if text is None else f"{token_id} {shown(repr(text), SHORT)}"
