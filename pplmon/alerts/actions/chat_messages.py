"""Turn an alert into a message for Slack, Discord, or any receiver of JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from pplmon.alerts import Alert
from pplmon.alerts.actions.sender import Message
from pplmon.alerts.text import Table, blame, sequence_table, title, token_table
from pplmon.report.strict_json import plain
from pplmon.report.visible import visible

SLACK_LENGTH, DISCORD_LENGTH = 3000, 2000  # characters; Discord refuses more, Slack folds it
SLACK_HOSTS = ("slack.com", "slack-gov.com")
DISCORD_HOSTS = ("discord.com", "discordapp.com")

Shape = Callable[[Message, int], dict[str, Any]]


def as_json(message: Message, rows: int) -> dict[str, Any]:
    """Return every field of the alert as strict JSON, with at most ``rows`` worst tokens and sequences."""
    fields = asdict(message.alert)
    for name in ("worst", "worst_sequences"):
        fields[name] = fields[name][:rows]
    more = {"title": title(message.alert), "held_back": message.held_back, "dropped": message.dropped}
    content: dict[str, Any] = plain({"kind": "alert", **fields, **more})
    return content


def as_slack(message: Message, rows: int) -> dict[str, Any]:
    """Return a message for Slack's incoming webhooks."""
    text = _chat(message, rows, "*", SLACK_LENGTH)
    return {"text": text}


def as_discord(message: Message, rows: int) -> dict[str, Any]:
    """Return a message for Discord's webhooks that pings nobody, whatever the training data contain."""
    return {"content": _chat(message, rows, "**", DISCORD_LENGTH, escape=False), "allowed_mentions": {"parse": []}}


SHAPES: Mapping[str, Shape] = {"json": as_json, "slack": as_slack, "discord": as_discord}


def shape_for(host: str) -> str:
    """Return the name of the shape that a host takes."""
    for name, hosts in (("slack", SLACK_HOSTS), ("discord", DISCORD_HOSTS)):
        if any(host == known or host.endswith(f".{known}") for known in hosts):
            return name
    return "json"


def body(message: Message, rows: int) -> str:
    """Return what happened, how much one sequence or token explains, and the evidence, as lines of text."""
    alert = message.alert
    lines = [visible(alert.text), *blame(alert), *_evidence(alert, rows)]
    if message.held_back:
        lines.append(f"({message.held_back} more like it since the last message)")
    if message.dropped:
        lines.append(f"({message.dropped} other alerts could not be sent; the journal has them)")
    return "\n".join(lines)


def _evidence(alert: Alert, rows: int) -> list[str]:
    tokens = [f"worst token: {_row(token_table((token,)))}" for token in alert.worst[:rows]]
    return tokens + [f"worst sequence: {_row(sequence_table((row,)))}" for row in alert.worst_sequences[:rows]]


def _row(table: Table) -> str:
    cells = zip(table.columns, table.rows[0])
    return ", ".join(f"{name} {cell:.4g}" if isinstance(cell, float) else f"{name} {cell}" for name, cell in cells)


def _chat(message: Message, rows: int, bold: str, most: int, escape: bool = True) -> str:
    """Return a headline, and the rest as a block of code, in which no markup is obeyed."""
    alert = message.alert
    head, text = f"{alert.severity}: {title(alert)}", body(message, rows).replace("```", "'''")
    if escape:  # Slack's own three; without it "<!channel>" in a training text would call everybody
        head, text = _escaped(head), _escaped(text)
    frame = f"{bold}{head}{bold}\n```\n{{}}\n```"
    room = most - len(frame)
    return frame.replace("{}", text if len(text) <= room else f"{text[: room - 1]}…")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
