"""Makes the page of one or several runs."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplmon.alerts.addresses import address, sequence_of
from pplmon.alerts.heatmap import Text, heatmap
from pplmon.alerts.words import number, plural, shown
from pplmon.page.charts import drawings, payload
from pplmon.page.compare import differences, differing, settings
from pplmon.page.encode import script_json
from pplmon.page.events import Event, events
from pplmon.page.evidence import tokens_of
from pplmon.page.headline import headline
from pplmon.page.render import render
from pplmon.page.runs import Run, find, read_runs
from pplmon.page.verdict import verdict
from pplmon.report.declared import find as number_named
from pplmon.report.declared import is_drawn
from pplmon.report.numbers import CATALOGUE
from pplmon.report.worst import WorstToken
from pplmon.sinks.reliability_diagram import Diagram

GLIMPSE = 24  # tokens beside the verdict
FRAME = 900  # pixels of a notebook's frame


@dataclass(frozen=True)
class Page:
    """One self-contained HTML page; a notebook shows it in place."""

    html: str
    runs: tuple[Run, ...]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, at once or not at all: whoever has it open may reload it at any time."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(f"{path.name}.tmp")
        whole.write_text(self.html, encoding="utf-8")
        whole.replace(path)
        return path

    def _repr_html_(self) -> str:
        frame = 'style="width:100%;border:0" sandbox="allow-scripts"'
        return f'<iframe {frame} height="{FRAME}" title="pplmon" srcdoc="{html.escape(self.html)}"></iframe>'


def page(*runs: str | os.PathLike[str], follow: int = 0, run: str | None = None) -> Page:
    """Return the page of the runs in one or several places (journals, or directories that hold some).

    ``follow``: seconds after which the open page loads itself again. ``run``: the name of one of several runs in a single
    journal; ``None`` takes the last.
    """
    found = read_runs(find(runs), run)
    listed = [events(one, place) for place, one in enumerate(found)]
    figures = drawings(found)
    names = [shown(one.name) for one in found]
    content = {
        "title": f"{', '.join(names)}: {verdict(found[0]).text}" if len(found) == 1 else f"pplmon: {', '.join(names)}",
        "heading": names[0] if len(found) == 1 else plural(len(found), "run"),
        "views": [_view(one, own) for one, own in zip(found, listed)],
        "differences": differences(found) if len(found) > 1 else [],
        "differing": differing(found) if len(found) > 1 else {},
        "figures": figures,
    }
    data = {**payload(found, figures, listed), "follow": follow}
    return Page(render(content, script_json(data)), tuple(found))


def _view(run: Run, listed: Sequence[Event]) -> dict[str, Any]:
    stages = list(run.windows)
    return {
        "name": shown(run.name),
        "verdict": verdict(run),
        "facts": _facts(run),
        "culprit": next((_culprit(event) for event in listed if event.open and event.texts), None),
        "tiles": headline(run),
        "events": [{**vars(event), "texts": _texts(event.texts, sequence_of)} for event in listed],
        "worst": _texts(heatmap(tokens_of(run.worst or {})), address),
        "reliability": _reliability(run),
        "stages": [shown(stage) for stage in stages],
        "numbers": _numbers(run, stages),
        "settings": settings(run),
    }


def _culprit(event: Event) -> dict[str, Any]:
    """The first words on the event that is open: whose text it was, and a line of it."""
    text = event.texts[0]
    stretch = next(stretch for stretch in text.stretches if any(cell.gravest for cell in stretch))
    middle = next(i for i, cell in enumerate(stretch) if cell.gravest)
    start = max(0, middle - GLIMPSE // 2)
    return {"key": event.key, "sequence": sequence_of(text.token), "cells": stretch[start : start + GLIMPSE]}


def _facts(run: Run) -> str:
    train = run.tables.get("train")
    seen = train.points("tokens_seen") if train else []
    parts = [plural(run.steps, "step"), *([f"{number(int(seen[-1][1]))} tokens"] if seen else [])]
    ranks = run.settings.get("ranks")
    parts += [plural(ranks, "rank")] if isinstance(ranks, int) else []
    parts.append("over" if run.worst is not None else "going on, or cut off")
    return " · ".join([*parts, f"journal {shown(run.path)}, last written {run.written:%Y-%m-%d %H:%M}"])


def _texts(found: Sequence[Text], where: Callable[[WorstToken], str]) -> list[dict[str, Any]]:
    return [{**vars(text), "address": where(text.token)} for text in found]


def _reliability(run: Run) -> list[str]:
    """Return the reliability diagram of the last window or pass of each stage, as SVG."""
    last = {stage: rows[-1] for stage, rows in run.windows.items()}
    found = [Diagram.of(row["numbers"], f"{shown(stage)}, step {row['step']}") for stage, row in last.items()]
    return [diagram.svg() for diagram in found if diagram is not None]


def _numbers(run: Run, stages: Sequence[str]) -> list[dict[str, Any]]:
    last = [run.windows[stage][-1]["numbers"] for stage in stages]
    names = dict.fromkeys([*CATALOGUE, *(name for numbers in last for name in numbers)])
    return [
        {
            "name": shown(name),
            "last": [number(numbers.get(name)) for numbers in last],
            "unit": known.unit if (known := number_named(name)) else "",
            "meaning": known.meaning if known else "",
        }
        for name in names
        if any(name in numbers for numbers in last) and not is_drawn(name)
    ]
