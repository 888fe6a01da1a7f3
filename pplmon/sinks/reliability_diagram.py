"""The reliability diagram of a report: how often predictions of each sureness are right, as SVG and as pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

from pplmon.alerts.words import number
from pplmon.report.numbers import Value
from pplmon.report.report import Report

RELIABILITY = "reliability"  # in log keys
HEAD = f"{RELIABILITY}/"
WIDTH, HEIGHT, LEFT, TOP, SIDE = 380, 460, 48, 76, 300  # of the picture, and of the square in it, in pixels
STRIP = 32  # the height of the share of tokens below the square
BIN = 0.05  # the width of a bin
FEW = 100  # tokens: with fewer, chance alone moves the accuracy by 0.05 and more
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
# The page's colours, which follow the reader's theme there; elsewhere the light ones.
COLORS = {
    "ink": "#1b1f24",
    "soft": "#565e68",
    "grid": "#e3e6ea",
    "line0": "#d55e00",
    "line2": "#3a9ad9",
    "paper": "#ffffff",
}


class Point(NamedTuple):
    """The tokens whose argmax has a probability from ``start`` on."""

    start: float
    tokens: int
    accuracy: float
    confidence: float


class Box(NamedTuple):
    """A filled rectangle; a line where it is thin."""

    x: float
    y: float
    width: float
    height: float
    color: str


class Stroke(NamedTuple):
    """A straight line."""

    x: float
    y: float
    to_x: float
    to_y: float
    color: str
    thick: int = 1


class Words(NamedTuple):
    """A line of text that begins, is centred or ends at a place: "start", "middle" or "end"."""

    x: float
    y: float
    text: str
    color: str = "soft"
    anchor: str = "middle"


@dataclass(frozen=True)
class Diagram:
    """Bins of predictions by their probability: a bar is as high as they are often right, on the diagonal if calibrated."""

    title: str
    told: str
    points: tuple[Point, ...]

    @classmethod
    def of(cls, numbers: Mapping[str, Value], title: str) -> Diagram | None:
        """Return the diagram of a report's numbers; ``None`` where ``Calibration`` did not measure them."""
        starts = sorted({name.split("/")[1] for name in numbers if name.startswith(HEAD)}, key=float)
        columns = [[numbers.get(f"{HEAD}{start}/{name}") for name in Point._fields[1:]] for start in starts]
        points = tuple(
            Point(float(start), int(tokens), accuracy, confidence)
            for start, (tokens, accuracy, confidence) in zip(starts, columns)
            if tokens and accuracy is not None and confidence is not None
        )
        return cls(title, _told(numbers, sum(point.tokens for point in points)), points) if points else None

    @classmethod
    def of_pass(cls, report: Report) -> Diagram | None:
        """Return the diagram of a whole pass over val or test data; ``None`` of a window, of which a run has thousands."""
        whole = report.stage.split("/")[0] in ("val", "test")
        return cls.of(report.numbers, f"{report.stage}, step {report.step}") if whole else None

    def svg(self) -> str:
        """Return an SVG element, in the colours of the page that it stands in, if that has any."""
        parts = "".join(map(_element, self._shapes()))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
            f'aria-label="{escape(f"Reliability diagram, {self.title}: {self.told}")}" '
            f'font-family="system-ui,sans-serif" font-size="12">{parts}</svg>'
        )

    def pixels(self, scale: int = 2) -> Any:
        """Return a uint8 array [height, width, 3], for loggers that take pictures."""
        import numpy as np
        from PIL import Image, ImageDraw, ImageFont

        image = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), COLORS["paper"])
        pen, font = ImageDraw.Draw(image), ImageFont.load_default(12 * scale)
        for shape in self._shapes():
            color, x, y = COLORS[shape.color], shape.x * scale, shape.y * scale
            if isinstance(shape, Box):
                pen.rectangle((x, y, x + shape.width * scale, y + shape.height * scale), color)
            elif isinstance(shape, Stroke):
                pen.line((x, y, shape.to_x * scale, shape.to_y * scale), color, shape.thick * scale)
            else:
                pen.text((x, y), shape.text, color, font, {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor])
        return np.asarray(image)

    def _shapes(self) -> Iterator[Box | Stroke | Words]:
        """Yield what both pictures are made of, what lies below first."""
        yield Box(0, 0, WIDTH, HEIGHT, "paper")
        yield Words(8, 18, self.title, "ink", "start")
        yield Words(8, 36, self.told, "soft", "start")
        for tick in TICKS:
            yield Stroke(LEFT, _y(tick), LEFT + SIDE, _y(tick), "grid")
            yield Words(LEFT - 8, _y(tick) + 4, f"{tick:g}", anchor="end")
            yield Words(_x(tick), TOP + SIDE + STRIP + 22, f"{tick:g}")
        most = max(point.tokens for point in self.points)
        for point in self.points:
            left, wide = _x(point.start) + 1, BIN * SIDE - 2
            top = _y(point.accuracy)
            yield Box(left, top, wide, TOP + SIDE - top, "line2" if point.tokens >= FEW else "grid")
            yield Box(left, TOP + SIDE + 4, wide, STRIP * point.tokens / most, "soft")
        yield Stroke(_x(0), _y(0), _x(1), _y(1), "soft")
        for point in self.points:
            if point.tokens >= FEW:
                yield Stroke(
                    _x(point.confidence), _y(point.accuracy), _x(point.confidence), _y(point.confidence), "line0", 3
                )
        yield Stroke(LEFT, TOP + SIDE, LEFT + SIDE, TOP + SIDE, "soft")
        yield Words(8, TOP - 14, "accuracy; orange: its distance from p", "soft", "start")
        yield Words(LEFT + SIDE / 2, HEIGHT - 10, "p of the first choice; below 0: how many tokens")


def _told(numbers: Mapping[str, Value], tokens: int) -> str:
    parts = [(numbers.get(name), name.replace("_", " ")) for name in ("overconfidence", "calibration_error")]
    known = [f"{name} {value:.3f}" for value, name in parts if value is not None and math.isfinite(value)]
    return ", ".join([*known, f"{number(tokens)} tokens"])


def _x(share: float) -> float:
    return LEFT + share * SIDE


def _y(share: float) -> float:
    return TOP + (1 - share) * SIDE


def _element(shape: Box | Stroke | Words) -> str:
    color = f"var(--{shape.color},{COLORS[shape.color]})"
    if isinstance(shape, Box):
        return f'<rect x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}" fill="{color}"/>'
    if isinstance(shape, Stroke):
        ends = f'x1="{shape.x:.1f}" y1="{shape.y:.1f}" x2="{shape.to_x:.1f}" y2="{shape.to_y:.1f}"'
        return f'<line {ends} stroke="{color}" stroke-width="{shape.thick}"/>'
    return f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" fill="{color}" text-anchor="{shape.anchor}">{escape(shape.text)}</text>'
