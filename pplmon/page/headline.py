"""The few numbers that stand at the top of a page, each with a small line of its course."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pplmon.alerts.words import number, plural, shown
from pplmon.page.runs import Run
from pplmon.report.numbers import CATALOGUE

WIDTH, HEIGHT = 120.0, 28.0  # of a small line, in its own units
BINS = 60

# Stage, number, title (with the stage of each of several data sets), and whether its highest value is what matters, not its last.
TILES = (
    ("train", "perplexity", "perplexity, {}", False),
    ("val", "perplexity", "perplexity, {}", False),
    ("train", "token_accuracy", "accuracy, {}", False),
    ("train", "max_sequence_loss", "worst sequence", True),
    ("train", "max_token_loss", "worst token", True),
)


@dataclass(frozen=True)
class Tile:
    """One number, what is to be said of it, and the points of its line ("" where there are too few)."""

    title: str
    value: str
    note: str
    line: str = ""
    bad: bool = False


def headline(run: Run) -> list[Tile]:
    """Return the tiles of a run; a number that it lacks has none."""
    tiles = []
    for stage, name, title, peak in TILES:
        for part in run.parts(stage):
            points = [(s, v) for s, v in run.tables[part].points(name) if math.isfinite(v)]
            if points:
                tiles.append((_peak if peak else _last)(title.format(shown(part)), name, points))
    return [*tiles, _nonfinite(run), _alerts(run)]


def sparkline(points: Sequence[tuple[int, float]], logarithmic: bool = False) -> str:
    """Return the points of an SVG polyline that keeps the least and the largest value of each of 60 bins."""
    if len(points) < 2:
        return ""
    values = [math.log(max(v, 1e-12)) if logarithmic else v for _, v in points]
    low, span = min(values), (max(values) - min(values)) or 1.0
    first, length = points[0][0], (points[-1][0] - points[0][0]) or 1
    chosen: list[int] = []
    for b in range(BINS):
        indices = range(b * len(points) // BINS, (b + 1) * len(points) // BINS)
        if indices:
            chosen += sorted({min(indices, key=values.__getitem__), max(indices, key=values.__getitem__)})
    return " ".join(
        f"{(points[i][0] - first) / length * WIDTH:.1f},{(1 - (values[i] - low) / span) * HEIGHT:.1f}" for i in chosen
    )


def _last(title: str, name: str, points: Sequence[tuple[int, float]]) -> Tile:
    better = max if CATALOGUE[name].best == "max" else min
    step, best = better(points, key=lambda point: point[1])
    return Tile(
        title, number(points[-1][1]), f"best {number(best)}, step {step:,}", sparkline(points, name == "perplexity")
    )


def _peak(title: str, name: str, points: Sequence[tuple[int, float]]) -> Tile:
    step, highest = max(points, key=lambda point: point[1])
    now = f"step {step:,}; now {number(points[-1][1])}"
    return Tile(title, f"{number(highest)} {CATALOGUE[name].unit.replace(' per token', '')}", now, sparkline(points))


def _nonfinite(run: Run) -> Tile:
    points = [p for table in run.tables.values() for p in table.points("nonfinite_tokens") if p[1] > 0]
    count = sum(value for _, value in points)
    note = f"the first at step {min(points)[0]:,}" if points else "none in the run"
    return Tile("non-finite tokens", number(count), note, bad=bool(points))


def _alerts(run: Run) -> Tile:
    pages = [alert for alert in run.alerts if alert.severity != "info"]
    steps = list(dict.fromkeys(alert.step for alert in pages))
    note = f"at step {steps[0]:,}" if len(steps) == 1 else f"at {len(steps):,} steps" if steps else "none in the run"
    if notices := len(run.alerts) - len(pages):
        note += f"; {plural(notices, 'notice')}"
    return Tile("alerts", number(len(pages)), note, bad=any(alert.severity == "critical" for alert in pages))
