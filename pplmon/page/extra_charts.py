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
    rest = [name for name in names if name not in drawn][:MOST_OWN]
    return found + [Chart(f"own{i}", shown(name), (name,), ("train", "val")) for i, name in enumerate(rest)]


def label(name: str) -> str:
    """Return what a line is called: of a part of the tokens the part alone, since the chart says the rest."""
    if name in LABELS:
        return LABELS[name]
    patterns = [pattern for chart in EXTRAS for pattern in chart.names if "{" in pattern and fits(name, pattern)]
    return shown(name.split("/")[1] if patterns else name)


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
