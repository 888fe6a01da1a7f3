"""Text and numbers from a run, as any place may show them: every character visible, and of a bounded length."""

from __future__ import annotations

import math

from pplmon.alerts.text import brief
from pplmon.report.visible import visible

SHORT = 60  # characters of one token
LABEL = 120  # characters of a name, a path, a rule
SENTENCE = 600  # of an alert's text
WHOLE = 20_000  # of a text that is shown as a whole


def shown(text: object, most: int = LABEL) -> str:
    """Return text from the run: what does not print is escaped, and what is too long ends in its true length."""
    whole = str(text)
    if len(whole) <= most:
        return visible(whole)
    return f"{visible(whole[:most])}… ({len(whole):,} characters)"


def number(value: float | None) -> str:
    """Return a number at a length for reading; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) >= 1000):
        return f"{int(value):,}"
    return brief(value)


def percent(share: float) -> str:
    """Return a share of 1 in percent."""
    return f"{share:.0%}".replace("%", " %")


def plural(count: int, one: str) -> str:
    """Return "1 spike", "2 spikes"."""
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"
