"""The charts of numbers that extras measure: the parts of one kind are lines of one chart, everything else has its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pplmon.alerts.words import shown
from pplmon.report.declared import fits
from pplmon.sinks.dashboards import EXTRAS, LABELS, Chart

MOST_LINES = 8  # in a chart: as many as there are colours
MOST_OWN = 24  # charts of numbers that stand in no chart of the list


def extra_charts(names: Sequence[str]) -> list[Chart]:
    """Return charts of these numbers, which are not pplmon's own: those of the list first, one for each stage."""
    found: list[Chart] = []
    for chart in EXTRAS:
        lines = [name for pattern in chart.names for name in sorted(names, key=_natural) if fits(name, pattern)]
        found += _in_parts(chart, lines)
    drawn = {name for chart in found for name in chart.names}
    rest: dict[str, list[str]] = {}
    for name in sorted(set(names) - drawn, key=_natural):
        rest.setdefault(_kind(name), []).append(name)
    for place, (kind, alike) in enumerate(list(rest.items())[:MOST_OWN]):
        whole = Chart(f"own{place}", shown(kind), tuple(alike), ("train", "val"))
        found += [whole] if len(alike) == 1 else _in_parts(whole, alike)
    return found


def label(name: str) -> str:
    """Return what a line is called: of a part of the tokens the part alone, since the chart says the rest."""
    return LABELS.get(name) or shown(name.split("/")[1] if name.count("/") == 2 else name)


def _kind(name: str) -> str:
    """Return what a number has in common with those of other parts: "group/…/tokens" of "group/code/tokens"."""
    parts = name.split("/")
    return f"{parts[0]}/…/{parts[2]}" if len(parts) == 3 else name


def _in_parts(chart: Chart, lines: Sequence[str]) -> Iterator[Chart]:
    for start in range(0, len(lines), MOST_LINES):
        part = lines[start : start + MOST_LINES]
        more = f", {start + 1} to {start + len(part)}" if len(lines) > MOST_LINES else ""
        for stage in chart.stages:
            yield replace(
                chart,
                key=f"{chart.key}-{stage}{start or ''}",
                title=f"{chart.title}, {stage}{more}",
                names=tuple(part),
                stages=(stage,),
            )


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers within names by their size."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split("/")]
