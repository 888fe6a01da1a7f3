"""``--run NAME``: a replay and a page of one of several runs in a journal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pplmon
from pplmon import Monitor, cli, replay
from pplmon.sinks import Journal
from tests.page_runs import write_run
from tests.test_replay import stats


@pytest.fixture
def named(tmp_path: Path) -> list[str]:
    """Write two runs into one journal, of 30 steps with one alert and of 20 without; return their names."""
    for steps, high in ((30, 12), (20, None)):
        monitor = Monitor(every_n_steps=10, sinks=[Journal(tmp_path)], alerts=[pplmon.Above("max_token_loss", 5.0)])
        for step in range(steps):
            monitor.observe(stats([9.0 if step == high else 1.0]))
            monitor.step()
        monitor.close()
    lines = map(json.loads, (tmp_path / "pplmon.jsonl").read_text().splitlines())
    return [row["run"] for row in lines if row["kind"] == "run"]


def test_a_replay_of_an_earlier_run(named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its rows, its rules and its alerts; without a name the last, and a note that says which there are."""
    first, last = named
    for arguments, fired, span in (
        ([], [], [0, 19]),
        (["--run", first], [12], [0, 29]),
        (["--run", last], [], [0, 19]),
    ):
        assert cli.main(["replay", str(tmp_path), "--json", *arguments]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [alert["step"] for alert in found["alerts"]] == fired
        assert found["spans"] == [span] and found["differs_from_journal"] == [0, 0]
        (note,) = found["notes"]
        assert note.endswith(f"--run NAME takes one of {first}, {last}.")
    assert cli.main(["replay", str(tmp_path), "--run", "none"]) == 2
    assert f"--run: the journal has no run 'none'; it has '{first}', '{last}'" in capsys.readouterr().err


def test_a_page_of_an_earlier_run(named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Named on the page, from Python and by the command; a name that is not there is told."""
    first, _ = named
    assert pplmon.page(tmp_path).runs[0].steps == 20
    page = pplmon.page(tmp_path, run=first)
    assert page.runs[0].steps == 30 and f"run {first}" in page.html
    assert cli.main(["report", str(tmp_path), "--run", first, "--json"]) == 0
    assert [event["step"] for event in json.loads(capsys.readouterr().out)["runs"][0]["events"]] == [12]
    assert cli.main(["report", str(tmp_path), "--run", "none"]) == 2
    assert "the journal has no run 'none'" in capsys.readouterr().err


def test_a_name_needs_one_journal(named: list[str], tmp_path: Path) -> None:
    """A log has no runs with names, and several journals each have their own."""
    write_run(tmp_path / "other", steps=5, spike=None)
    with pytest.raises(ValueError, match=f"one of a single journal, got 2 journals and the name '{named[0]}'"):
        pplmon.page(tmp_path, tmp_path / "other", run=named[0])
    (tmp_path / "metrics.csv").write_text("step,train/cross_entropy\n1,2.0\n")
    with pytest.raises(replay.ReplayError, match=r"--run names a run in a journal, and .*metrics.csv is none \(csv\)"):
        replay.read(tmp_path / "metrics.csv", run=named[0])
