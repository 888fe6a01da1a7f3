"""The reliability diagram: one picture of a pass for TensorBoard, W&B and the page, drawn from what the journal keeps."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pplmon
from pplmon.sinks import Journal, TensorBoard, read_journal
from pplmon.sinks.reliability_diagram import BIN, COLORS, FEW, LEFT, SIDE, TOP, Diagram
from pplmon.sinks.wandb import WandB

BLUE = COLORS["line2"]


class Keeps:
    """Stands in for a W&B run: it keeps the rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.config: Any = self.summary

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.summary |= row


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Keeps, pplmon.Report]:
    """A window of training and a validation pass of a model that is too sure: where its files are, and the pass."""
    folder, keeps = tmp_path_factory.mktemp("diagram"), Keeps()
    sinks = [TensorBoard(folder), Journal(folder), WandB(keeps)]
    monitor = pplmon.Monitor(
        every_n_steps=1, alerts=[], sinks=sinks, numbers="all", tally=pplmon.TokenTally(extras=[pplmon.Calibration()])
    )
    logits = torch.randn(40, 100, 20, generator=torch.Generator().manual_seed(0)) * 3
    torch.manual_seed(0)
    targets = torch.distributions.Categorical(logits=logits * 0.6).sample()
    monitor.observe(logits, targets)
    monitor.step()
    with monitor.stage("val") as val:
        monitor.observe(logits, targets)
    monitor.close()
    assert val.report is not None
    return folder, keeps, val.report


def bars(svg: str, color: str) -> list[tuple[float, float]]:
    """The left edge and the height of each box of a colour."""
    found = re.findall(
        rf'<rect x="([\d.]+)" y="[\d.]+" width="[\d.]+" height="([\d.]+)" fill="var\([^,]+,{color}\)"/>', svg
    )
    return [(float(left), float(height)) for left, height in found]


def test_a_bar_is_as_high_as_its_bin_is_often_right(run: tuple[Path, Keeps, pplmon.Report]) -> None:
    """Against the bins of the extra; where chance alone would move it, it is pale."""
    numbers = run[2].numbers
    drawn = Diagram.of(numbers, "val, step 0")
    assert drawn is not None and sum(point.tokens for point in drawn.points) == numbers["tokens"]
    many = [point for point in drawn.points if point.tokens >= FEW]
    assert 5 < len(many) < len(drawn.points)
    expected = [(LEFT + point.start * SIDE + 1, point.accuracy * SIDE) for point in many]
    assert bars(drawn.svg(), BLUE) == [pytest.approx(bar, abs=0.06) for bar in expected]
    pale = bars(drawn.svg(), COLORS["grid"])
    assert len(pale) == len(drawn.points) - len(many)
    told = re.search(r"overconfidence ([\d.]+), 4,000 tokens", drawn.svg())
    assert told is not None and float(told[1]) == pytest.approx(numbers["overconfidence"], abs=5e-4)


def test_the_pixels_are_the_same_picture(run: tuple[Path, Keeps, pplmon.Report]) -> None:
    """In the middle of a bin's bar it is blue from the bottom to its accuracy, and not above it."""
    drawn = Diagram.of(run[2].numbers, "val, step 0")
    assert drawn is not None
    pixels, blue = drawn.pixels(), np.array([int(BLUE[place : place + 2], 16) for place in (1, 3, 5)])
    for point in drawn.points:
        column = round((LEFT + (point.start + BIN / 2) * SIDE) * 2)
        if point.tokens < FEW or abs(point.confidence - point.start - BIN / 2) < 0.01 or point.accuracy < 0.1:
            continue  # its orange line, or the diagonal, is in the way
        rows = np.flatnonzero((pixels[:, column] == blue).all(-1))
        assert rows.min() == pytest.approx((TOP + (1 - point.accuracy) * SIDE) * 2, abs=2)


def test_tensorboard_has_an_image_of_the_pass_and_no_curves_of_bins(run: tuple[Path, Keeps, pplmon.Report]) -> None:
    """A PNG of the size of the picture, of passes only: a run has thousands of windows."""
    events = EventAccumulator(str(run[0]), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    assert events.Tags()["images"] == ["val/reliability"]
    (image,) = events.Images("val/reliability")
    drawn = Diagram.of_pass(run[2])
    assert drawn is not None
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), drawn.pixels())
    assert len(image.encoded_image_string) < 60_000
    scalars = events.Tags()["scalars"]
    assert "val/overconfidence" in scalars and not any("reliability" in tag for tag in scalars)


def test_wandb_has_it_as_svg_and_its_summary_has_none(run: tuple[Path, Keeps, pplmon.Report]) -> None:
    """One of the pass, in the row of its numbers."""
    _, keeps, report = run
    rows = [row for row in keeps.rows if any("reliability" in key for key in row)]
    assert len(rows) == 1 and [key for key in rows[0] if "reliability" in key] == ["val/reliability"]
    drawn = Diagram.of_pass(report)
    assert drawn is not None and rows[0]["val/reliability"].html == drawn.svg()
    assert rows[0]["val/overconfidence"] == report.numbers["overconfidence"]
    assert not any("reliability" in key for key in keeps.summary)


def test_the_page_draws_the_last_of_each_stage_from_the_journal(run: tuple[Path, Keeps, pplmon.Report]) -> None:
    """As it stands, with no chart and no row of the table for a bin."""
    rows = [row for row in read_journal(run[0]) if row["kind"] == "report" and row["stage"] == "val"]
    drawn = Diagram.of(rows[-1]["numbers"], "val, step 0")
    html = pplmon.page(run[0]).html
    assert drawn is not None and drawn.svg() in html and html.count("Reliability diagram, ") == 2
    assert "reliability/0" not in html


def test_without_calibration_there_is_none() -> None:
    """Nor of bins that are all empty."""
    assert Diagram.of({"perplexity": 2.0}, "val") is None
    empty = {f"reliability/0.50/{name}": value for name, value in (("tokens", 0), ("accuracy", math.nan))}
    assert Diagram.of(empty, "val") is None
