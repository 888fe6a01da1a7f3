"""The text around worst tokens as a piece of HTML that stands by itself: pointing at a token tells what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pplmon.alerts.addresses import address
from pplmon.alerts.heatmap import Cell, heatmap
from pplmon.alerts.words import SENTENCE, shown
from pplmon.report.worst import WorstToken

# The page's shades, by the probability that the token had: background and ink.
SHADES = {
    "h0": "background:#eef1f4;color:#1b1f24",
    "h1": "background:#fdeccb;color:#1b1f24",
    "h2": "background:#fdd29a;color:#1b1f24",
    "h3": "background:#f9ae67;color:#1b1f24",
    "h4": "background:#ee8540;color:#14171b",
    "h5": "background:#b8410d;color:#fff",
    "h6": "background:#7a1f05;color:#fff",
    "nf": "background:#14171b;color:#ffd60a",
    "un": "color:#777;font-style:italic",
}
STYLE = "font:14px/1.7 ui-monospace,monospace;background:#fff;color:#1a1a1a;padding:12px;white-space:pre-wrap;overflow-wrap:anywhere"


def heatmap_html(heading: str, tokens: Sequence[WorstToken]) -> str:
    """Return the heading, and the known stretches of each sequence under its address, the darker the less probable."""
    parts = [f"<b>{escape(shown(heading, SENTENCE))}</b>"]
    for text in heatmap(tokens):
        parts.append(f"<small>{escape(address(text.token))}</small>")
        parts.append(" ⋯ ".join("".join(map(_cell, stretch)) for stretch in text.stretches))
    legend = (
        "the darker a token, the less probable it was; outlined: the worst; grey: not scored; point at one for more"
    )
    return f'<meta charset="utf-8"><div dir="auto" style="{STYLE}">{"<br>".join([*parts, f"<small>{legend}</small>"])}</div>'


def _cell(cell: Cell) -> str:
    edge = ";outline:2px solid #0050b3;font-weight:bold" if cell.worst else ""
    return f'<span title="{escape(_told(cell))}" style="{SHADES[cell.shade]}{edge}">{escape(cell.text)}</span>'


def _told(cell: Cell) -> str:
    parts = [f"target {cell.target or cell.text}", f"loss {cell.loss} nats" if cell.loss else "not scored"]
    parts += [f"p(target) {cell.probability}"] if cell.probability else []
    parts += [f"predicted {cell.predicted}"] if cell.predicted else []
    return " · ".join([*parts, *([f"p {cell.top}"] if cell.top else [])])
