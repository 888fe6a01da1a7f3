"""The charts of a page, for its script: which lines stand in which, and the arrays behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pplmon.alerts.words import shown
from pplmon.page.distribution import Distribution
from pplmon.page.encode import doubles, floats
from pplmon.page.events import Event
from pplmon.page.extra_charts import extra_charts, label
from pplmon.page.runs import Run
from pplmon.page.table import Table, tokens_at
from pplmon.report.histogram import eighth_edge
from pplmon.sinks.dashboards import CHARTS, DISTRIBUTION, Chart

UPON_COLUMNS = (0, 3)  # colours that are seen on the distribution's blue


@dataclass(frozen=True)
class Line:
    """One line: whose, of what, what it is called, and its place among the colours."""

    run: int
    stage: str
    name: str
    label: str
    color: int


@dataclass(frozen=True)
class Drawing:
    """One figure of the page."""

    key: str
    title: str
    unit: str
    meaning: str
    lines: list[Line]
    band: tuple[int, int] | None = None  # two of the lines: the lower and the upper
    logarithmic: bool = False
    wide: bool = False
    distribution: int | None = None  # the run whose loss distribution it is


def drawings(runs: Sequence[Run]) -> list[Drawing]:
    """Return the figures of one run; of several the same with one number each, and a line for each run."""
    charts = [*CHARTS, *extra_charts(list(dict.fromkeys(name for run in runs for name in run.own_numbers)))]
    found = [drawn for chart in charts for drawn in (_one(chart, runs) if len(runs) == 1 else _several(chart, runs))]
    whole = [_distribution(runs, number) for number, run in enumerate(runs) if run.distribution is not None]
    whole = [figure for figure in whole if figure.lines]
    first = sum(figure.key.split("-")[0] == CHARTS[0].key for figure in found)
    return [*found[:first], *whole, *found[first:]]


def payload(runs: Sequence[Run], figures: Sequence[Drawing], listed: Sequence[Sequence[Event]]) -> dict[str, Any]:
    """Return everything that the script draws from."""
    return {
        "runs": [_run(run, found) for run, found in zip(runs, listed)],
        "charts": [_figure(figure) for figure in figures],
    }


def _one(chart: Chart, runs: Sequence[Run]) -> Iterator[Drawing]:
    places = [(stage, name) for name in chart.names for stage in _stages(chart, runs[0], name)]
    several = len({stage for stage, _ in places}) > 1
    lines = [
        Line(0, stage, name, f"{label(name)}, {shown(stage)}" if several else label(name), color)
        for color, (stage, name) in enumerate(places)
    ]
    if lines:
        band = _band(chart, [name for _, name in places])
        yield Drawing(
            chart.key, chart.title, chart.unit, chart.meaning, lines, band, chart.logarithmic, chart is CHARTS[0]
        )


def _several(chart: Chart, runs: Sequence[Run]) -> Iterator[Drawing]:
    for name in chart.names:
        lines = [
            Line(
                number,
                stage,
                name,
                f"{shown(run.name)}, {shown(stage)}" if len(chart.stages) > 1 else shown(run.name),
                number,
            )
            for number, run in enumerate(runs)
            for stage in _stages(chart, run, name)
        ]
        if lines:
            title = f"{chart.title}: {label(name)}" if len(chart.names) > 1 else chart.title
            yield Drawing(f"{chart.key}-{name}", title, chart.unit, chart.meaning, lines, None, chart.logarithmic)


def _distribution(runs: Sequence[Run], number: int) -> Drawing:
    title = DISTRIBUTION.title if len(runs) == 1 else f"{DISTRIBUTION.title}: {shown(runs[number].name)}"
    key = f"{DISTRIBUTION.key}{number}"
    names = [name for name in DISTRIBUTION.names if _has(DISTRIBUTION, runs[number], "train", name)]
    lines = [Line(number, "train", name, label(name), color) for color, name in zip(UPON_COLUMNS, names)]
    return Drawing(key, title, DISTRIBUTION.unit, DISTRIBUTION.meaning, lines, wide=len(runs) == 1, distribution=number)


def _stages(chart: Chart, run: Run, name: str) -> list[str]:
    """Return the stages of a chart in which a run has the number: of several data sets each is one."""
    return [part for stage in chart.stages for part in run.parts(stage) if _has(chart, run, part, name)]


def _has(chart: Chart, run: Run, stage: str, name: str) -> bool:
    points = run.tables[stage].points(name) if stage in run.tables else []
    return any(value > 0 for _, value in points) if chart.only_above_zero else bool(points)


def _band(chart: Chart, names: Sequence[str]) -> tuple[int, int] | None:
    if chart.band is None or not set(chart.band) <= set(names):
        return None
    return names.index(chart.band[0]), names.index(chart.band[1])


def _figure(figure: Drawing) -> dict[str, Any]:
    lines = [{"run": n.run, "stage": n.stage, "name": n.name, "label": n.label, "color": n.color} for n in figure.lines]
    names = ("key", "title", "unit", "band", "logarithmic", "distribution")
    return {**{name: getattr(figure, name) for name in names}, "lines": lines}


def _run(run: Run, found: Sequence[Event]) -> dict[str, Any]:
    train = run.tables.get("train", Table([], {}, 0))
    marks = {event.step for event in found}
    return {
        "name": shown(run.name),
        "tables": {stage: _table(table.thinned(marks), train) for stage, table in run.tables.items()},
        "distribution": None if run.distribution is None else _columns(run.distribution, train),
        "events": [{"key": e.key, "step": e.step, "stage": e.stage, "severity": e.severity} for e in found],
        "eventTokens": doubles(tokens_at(train, [event.step for event in found])),
    }


def _table(table: Table, train: Table) -> dict[str, Any]:
    return {
        "rows": table.rows,
        "steps": doubles(table.steps),
        "tokens": doubles(tokens_at(train, table.steps)),
        "columns": {name: floats(column) for name, column in table.columns.items()},
    }


def _columns(drawn: Distribution, train: Table) -> dict[str, Any]:
    buckets = len(drawn.shares[0])
    before = [start - 1 for start in drawn.starts]
    return {
        "starts": doubles(before),
        "ends": doubles(drawn.ends),
        "startTokens": doubles(tokens_at(train, before)),
        "endTokens": doubles(tokens_at(train, drawn.ends)),
        "edges": floats(eighth_edge(drawn.first + bucket) for bucket in range(buckets + 1)),
        "shares": floats(share for column in drawn.shares for share in column),
    }
