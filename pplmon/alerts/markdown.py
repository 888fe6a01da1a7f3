"""Alerts and their evidence as markdown, which TensorBoard shows: the text first, then what was expected, then the address."""

from __future__ import annotations

from collections.abc import Sequence

from pplmon.alerts.addresses import address
from pplmon.alerts.alert import Alert
from pplmon.alerts.text import Cell, Table, blame, brief, escaped, markdown
from pplmon.alerts.words import LABEL, SENTENCE, SHORT, plural, shown
from pplmon.report.worst import WorstSequence, WorstToken

SEQUENCES = 3  # of the worst ones


def step_markdown(alerts: Sequence[Alert]) -> str:
    """Return all alerts of one step as one text; they share their evidence."""
    first = alerts[0]
    step = "" if first.step is None else f"step {first.step}, "
    notices = sum(alert.severity == "info" for alert in alerts)
    counts = [plural(n, what) for n, what in ((len(alerts) - notices, "alert"), (notices, "notice")) if n]
    parts = [f"### {step}{escaped(first.stage)}: {', '.join(counts)}"]
    parts += [
        f"**{'notice' if a.severity == 'info' else a.severity}** ({_line(a.rule, LABEL)}): {_line(a.text, SENTENCE)}"
        for a in alerts
    ]
    parts += dict.fromkeys(sentence for alert in alerts for sentence in blame(alert))
    best = next((alert for alert in alerts if alert.worst or alert.worst_sequences), first)
    evidence = evidence_markdown(best.worst, best.worst_sequences)
    return "\n\n".join([*parts, *([evidence] if evidence else [])])


def evidence_markdown(tokens: Sequence[WorstToken], sequences: Sequence[WorstSequence]) -> str:
    """Return the worst tokens and sequences as tables of few columns, so that none is squeezed; "" where there are none."""
    parts = []
    if tokens:
        columns = ["context", "target → predicted", "loss (nats)", "where"]
        parts += [markdown(Table(columns, [[_context(t), guess(t), brief(t.loss), address(t)] for t in tokens]))]
    if sequences:
        rows: list[list[Cell]] = [
            [address(s), f"{brief(s.loss)} nats per token", s.tokens] for s in sequences[:SEQUENCES]
        ]
        parts += [markdown(Table(["worst sequences", "loss", "tokens"], rows))]
    return "\n\n".join(parts)


def named(identity: int, text: str | None) -> str:
    """Return a token as a reader knows it: its text, quoted so that a leading space is seen, else its id."""
    return f"token {identity}" if text is None else shown(repr(text), SHORT)


def guess(token: WorstToken) -> str:
    """Return what was expected, and what the model predicted in its place with which probability, where that is known."""
    if token.predicted is None:
        return named(token.target, token.target_text)
    chance = "" if token.predicted_probability is None else f" (p {brief(token.predicted_probability)})"
    return f"{named(token.target, token.target_text)} → {named(token.predicted, token.predicted_text)}{chance}"


def _context(token: WorstToken) -> str:
    if token.context_text is not None:
        return shown(repr(token.context_text), SENTENCE)
    return " ".join(str(identity) for identity in token.context_ids if identity is not None)


def _line(text: str, most: int) -> str:
    return escaped(shown(text, most).replace("\n", " "))
