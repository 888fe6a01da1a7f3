"""A run of 20,000 steps with 50 spikes of one step: how many of them each dashboard shows.

    python -m benchmarks.fifty_spikes

TensorBoard's own default is asked beside ``pplmon view``, each over HTTP. The page's figures are what its script draws from. For W&B,
whose server cannot be run here, it is the rows of an offline run, and what the workspace says of the panels that draw them.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pplmon
from pplmon.page.charts import drawings, payload
from pplmon.page.events import events
from pplmon.page.runs import find, read_runs
from pplmon.report.histogram import Histogram
from pplmon.report.worst import WorstToken
from pplmon.sinks import tensorboard_view
from pplmon.sinks.base import Sink

STEPS, SPIKES, LIMIT = 20_000, 50, 8.0
BUCKETS = 1_922
USUAL, SPIKE = 1_325, 1_505  # buckets near 1.6 and 12 nats


def spikes(steps: int) -> list[int]:
    """Return the steps of the spikes."""
    return sorted(random.Random(0).sample(range(steps), SPIKES))


def feed(sink: Sink, steps: int = STEPS) -> None:
    """Give a sink what a monitor would: a window for each step, and two alerts at each spike."""
    chance, spiked = random.Random(1), set(spikes(steps))
    sink.start({"alerts": [f"Above('max_sequence_loss', {LIMIT})"], "logged_numbers": "core"})
    for step in range(steps):
        worst = 2 + chance.random() + (10.0 if step in spiked else 0.0)
        numbers = {
            "cross_entropy": 1.6,
            "max_sequence_loss": worst,
            "max_token_loss": worst,
            "tokens_seen": 128 * (step + 1),
        }
        # A histogram of each window is more than TensorBoard keeps: those of every tenth, and of the spikes.
        drawn = _histogram(step in spiked) if step in spiked or step % 10 == 0 else Histogram()
        report = pplmon.Report(step, "train", numbers, histogram=drawn)
        sink.judged(report)
        if step in spiked:
            _alert(sink, step, worst)
        sink.report(report, {f"train/{name}": value for name, value in numbers.items()})
    sink.close()


def by_server(directory: Path, default: bool) -> int:
    """Return how many spikes a server of TensorBoard shows: one as it starts by itself, or that of ``pplmon view``."""
    if not default:
        return _above(_scalars(tensorboard_view.start(directory)))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(directory), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603 - its own module
    try:
        return _above(_scalars(f"http://localhost:{port}"))
    finally:
        server.terminate()
        server.wait()


def by_page(directory: Path) -> tuple[int, int]:
    """Return how many spikes are in the points that a page draws, and how many alerts it lists."""
    import base64
    from array import array

    runs = read_runs(find([directory]))
    listed = [events(run, place) for place, run in enumerate(runs)]
    drawn = payload(runs, drawings(runs), listed)["runs"][0]["tables"]["train"]["columns"]["max_sequence_loss"]
    points = array("f", base64.b64decode(drawn))
    return _above(points), len(listed[0])


def by_wandb(directory: Path) -> int:
    """Return how many spikes are in the rows of an offline run."""
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
    import wandb

    run = wandb.init(project="spikes", dir=str(directory))
    feed(pplmon.sinks.WandB(run))
    run.finish()
    from pplmon.replay.read.wandb_file import items, records

    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    time.sleep(1)
    rows = [items(record.history.item) for record in records(path) if record.WhichOneof("record_type") == "history"]
    return _above([row["train/max_sequence_loss"] for row in rows if "train/max_sequence_loss" in row])


def lossless_panels() -> list[str]:
    """Return the panels of the workspace that draw the spikes' number or count its alerts, and leave nothing out."""
    from pplmon.sinks.wandb_workspace import definition, workspace

    wanted = {"train/max_sequence_loss", "pplmon/alerts_total"}
    sections = definition(workspace("e", "p"))["spec"]["section"]["panelBankConfig"]["sections"]
    panels = [panel["config"] for section in sections for panel in section["panels"]]
    return [p["chartTitle"] for p in panels if wanted & {*p.get("metrics", ())} and _leaves_nothing_out(p)]


def _leaves_nothing_out(panel: Mapping[str, Any]) -> bool:
    kept = panel.get("pointVisualizationMethod") == "bucketing-gorilla"
    return kept and panel.get("ignoreOutliers") is False and panel.get("smoothingType") == "none"


def _histogram(spike: bool) -> Histogram:
    counts = [0] * BUCKETS
    counts[USUAL], counts[SPIKE] = 127, int(spike)
    return Histogram.of(counts)


def _alert(sink: Sink, step: int, worst: float) -> None:
    token = WorstToken(worst, step, context_text="around", target_text=" a", predicted_text=" b", predicted=1)
    for rule in ("Above", "second rule"):
        text = f"step {step}: train/max_sequence_loss is {worst:.4g}, above {LIMIT:g}"
        sink.alert(pplmon.Alert(rule, text, "max_sequence_loss", step, "train", worst, LIMIT, worst=(token,)))


def _scalars(url: str) -> list[float]:
    """Return the values that a server shows, once it has read all that it will."""
    address = f"{url}/data/plugin/scalars/scalars?tag=train%2Fmax_sequence_loss&run=."
    before: list[float] = []
    for _ in range(120):
        time.sleep(0.5)
        try:
            with urllib.request.urlopen(address) as answer:  # noqa: S310 - http, of this machine
                points = json.load(answer)
        except OSError:  # it is not there yet, or has not read the tag
            continue
        values = [value for _, _, value in points]
        if values and values == before and points[-1][1] == STEPS - 1:
            return values
        before = values
    raise TimeoutError(f"no answer from {address}")


def _above(values: Any) -> int:
    return sum(value > LIMIT for value in values)


def main() -> None:
    """Print how many of the spikes each dashboard shows."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        feed(pplmon.sinks.TensorBoard(directory / "board"))
        feed(pplmon.sinks.Journal(directory / "journal"))
        drawn, listed = by_page(directory / "journal")
        print(f"of {SPIKES} spikes of one step in {STEPS:,} steps:")
        print(f"  tensorboard, as it starts by itself  {by_server(directory / 'board', default=True)}")
        print(f"  pplmon view                          {by_server(directory / 'board', default=False)}")
        print(f"  pplmon report                        {drawn}, and {listed} alerts with their steps")
        print(f"  W&B, rows of an offline run          {by_wandb(directory)}")
        print(f"  W&B, panels that leave nothing out   {'; '.join(lossless_panels())}")


if __name__ == "__main__":
    main()
