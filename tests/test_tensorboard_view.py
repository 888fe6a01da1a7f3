"""``pplmon view``: the server that it starts is asked over HTTP for what it shows."""

from __future__ import annotations

import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pplmon
from benchmarks.fifty_spikes import LIMIT, SPIKES, feed
from pplmon.cli import main
from pplmon.sinks import tensorboard_view

STEPS = 4_000  # more than TensorBoard keeps by itself; python -m benchmarks.fifty_spikes has 20,000
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The event files of a run of 4,000 logged steps, 50 of which are spikes of one step, each with two alerts."""
    directory = tmp_path_factory.mktemp("board")
    feed(pplmon.sinks.TensorBoard(directory), STEPS)
    return directory


@pytest.fixture(scope="module")
def ask(board: Path) -> Ask:
    """Ask the server of ``pplmon view`` for one of its answers."""
    return asking(tensorboard_view.start(board))


@pytest.fixture(scope="module")
def ask_default(board: Path) -> Ask:
    """Ask a server that was started as TensorBoard's own page says, without any flag of ours."""
    from tensorboard import program

    server = program.TensorBoard()
    server.configure(argv=["tensorboard", "--logdir", str(board), "--port", "0"])
    return asking(server.launch().rstrip("/"))


def asking(url: str) -> Ask:
    """Return a function that asks a server, and waits until it has read the last point."""

    def of(route: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{url}/data/plugin/{route}?{urllib.parse.urlencode(query)}") as answer:
            return json.load(answer)

    for _ in range(300):
        try:
            if of("scalars/scalars", tag="pplmon/alerts_total", run=".")[-1][1] == STEPS - 1:
                return of
        except (OSError, IndexError):  # it has not read the tag yet
            pass
        time.sleep(0.1)
    raise AssertionError(f"{url} has not read the run")


def test_every_spike_is_among_the_points(ask: Ask) -> None:
    """The default server shows three or four of fifty."""
    points = ask("scalars/scalars", tag="train/max_sequence_loss", run=".")
    assert len(points) == STEPS
    assert sum(value > LIMIT for _, _, value in points) == SPIKES


def test_the_count_of_alerts_has_every_step(ask: Ask) -> None:
    """It rises by two at each spike."""
    points = ask("scalars/scalars", tag="pplmon/alerts_total", run=".")
    assert sorted({value for _, _, value in points}) == list(range(0, 2 * SPIKES + 1, 2))


def test_every_alert_is_visible_as_text(ask: Ask) -> None:
    """One text a step, with both alerts of it and the evidence in four columns."""
    texts = ask("text/text", tag="pplmon/alerts/text_summary", run=".")
    assert len({entry["step"] for entry in texts}) == len(texts) == SPIKES
    for entry in texts:
        assert "2 alerts" in entry["text"] and "Above" in entry["text"] and "second rule" in entry["text"]
        assert re.findall(r"<th>(.*?)</th>", entry["text"])[:4] == [
            "context",
            "target → predicted",
            "loss (nats)",
            "where",
        ]


def test_a_default_server_shows_every_alert_too(ask_default: Ask) -> None:
    """Its curve lost most spikes, but their texts are there, both alerts of a step in one, and so is their count."""
    points = ask_default("scalars/scalars", tag="train/max_sequence_loss", run=".")
    assert len(points) == 1_000 and sum(value > LIMIT for _, _, value in points) < SPIKES
    texts = ask_default("text/text", tag="pplmon/alerts/text_summary", run=".")
    assert len(texts) == SPIKES and all("second rule" in entry["text"] for entry in texts)
    assert ask_default("scalars/scalars", tag="pplmon/alerts_total", run=".")[-1][2] == 2 * SPIKES


def test_the_distributions_show_every_spike(ask: Ask) -> None:
    """The highest percentile of a window with a spike is its largest loss."""
    drawn = ask("distributions/distributions", tag="train/token_loss", run=".")
    highest = [percentiles[-1][1] for _, _, percentiles in drawn]
    assert sum(value > LIMIT for value in highest) == SPIKES


def test_custom_charts_are_laid_out_and_each_has_one_tag(ask: Ask) -> None:
    """As the server gives them to the page; the first is that of the alerts."""
    (category,) = ask("custom_scalars/layout")["category"]
    charts = {chart["title"]: chart["multiline"]["tag"] for chart in category["chart"]}
    assert list(charts)[:2] == ["Alerts so far", "Notices so far"]
    found = ask("custom_scalars/scalars", run=".", tag=charts["Token loss: worst sequence (nats)"][0])
    assert found["regex_valid"] and list(found["tag_to_events"]) == ["train/max_sequence_loss"]


def test_the_command_prints_the_links_and_what_to_type(
    board: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smoothing is off in them, and the number of samples is explicit."""
    monkeypatch.setattr(tensorboard_view, "wait_for_the_user", lambda: None)
    monkeypatch.setattr(tensorboard_view, "start", lambda *_: "http://localhost:6006")
    assert main(["view", str(board)]) == 0
    said = capsys.readouterr().out
    assert "http://localhost:6006/#custom_scalars&_smoothingWeight=0" in said
    assert (
        f"tensorboard --logdir {board} --samples_per_plugin scalars=1000000,text=10000,histograms=2000,distributions=2000"
        in said
    )
    assert main(["view", str(board), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["curves"] == "http://localhost:6006/?smoothing=0#timeseries"


def test_a_place_without_event_files_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what to do with a journal."""
    assert main(["view", str(tmp_path)]) == 2
    assert f"pplmon report {tmp_path}" in capsys.readouterr().err


def test_a_port_that_is_taken_is_an_error(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says which flag takes another."""
    import socket

    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        assert main(["view", str(board), "--port", str(taken.getsockname()[1])]) == 2
    assert "--port 0 takes a free one" in capsys.readouterr().err
