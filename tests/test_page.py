"""The page as a file: it holds all it needs, text from data stays text, and the command that writes it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import pplmon
from pplmon import cli
from pplmon.page import command
from pplmon.page.render import HERE
from tests.launch import run_script
from tests.page_runs import write_long_run, write_run

HOSTILE = '</script></style><h1 onclick="x">&lt;{{ 7 * 7 }}<!-- \u202e'


class Seen(HTMLParser):
    """Every element of a page with its attributes, its text, and its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        inside = self.elements[-1][0] if self.elements else ""
        (self.scripts if inside == "script" else self.texts).append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one planted sequence."""
    return write_run(tmp_path_factory.mktemp("run")).parent


@pytest.fixture(scope="module")
def seen(run: Path) -> Seen:
    """Its page, taken apart."""
    return Seen(pplmon.page(run).html)


def test_it_asks_for_nothing(seen: Seen) -> None:
    """No element names a place to fetch from, and the page's own policy forbids all."""
    fetching = [
        (tag, name)
        for tag, given in seen.elements
        for name in given
        if name in ("src", "srcset", "action", "data", "poster")
    ]
    assert fetching == []
    links = [given["href"] for _, given in seen.elements if "href" in given]
    assert all(link is not None and link.startswith(("#", "data:,")) for link in links)
    (policy,) = [
        given["content"] for tag, given in seen.elements if given.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    assert "url(" not in seen.texts[1]  # the style sheet


def test_only_its_own_scripts_may_run(seen: Seen) -> None:
    """The policy names them by their hashes: a script that slipped in would be refused by the browser."""
    policy = next(
        given["content"] for _, given in seen.elements if given.get("http-equiv") == "Content-Security-Policy"
    )
    data, *scripts = [script for script in seen.scripts if script.strip()]
    json.loads(data)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy is not None
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert len(hashes) == 2


def test_the_licence_of_uplot_is_in_every_copy(seen: Seen) -> None:
    """MIT asks for its notice."""
    assert "Copyright (c) 2022 Leon Sorokin" in "".join(seen.scripts)
    assert (HERE / "uplot/LICENSE").is_file()


def test_it_can_be_searched(seen: Seen) -> None:
    """Verdict, alert, address and the planted text stand in the page as text."""
    for part in (
        "Healthy, 1 incident at step 70",
        "train/max_sequence_loss is 12.4688, above 6",
        "sample 7003",
        " PLANTED",
    ):
        assert part in seen.text


def test_every_figure_is_named_and_has_a_table(seen: Seen) -> None:
    """A screen reader meets a figure with a name, a place for the cursor's values, a table behind it."""
    figures = [given for tag, given in seen.elements if tag == "figure"]
    ids = {given["id"] for _, given in seen.elements if "id" in given}
    assert len(figures) == 5
    assert all(given["role"] == "figure" and given["aria-labelledby"] in ids for given in figures)
    assert sum(
        given.get("class") == "live" and given.get("aria-live") == "polite" for _, given in seen.elements
    ) == len(figures)
    assert sum("rows" in (given.get("class") or "") for _, given in seen.elements) == len(figures)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    """As a token, a rule, a run's name and a setting: no element comes of it, and all of it is there to be read."""

    def rule(r: pplmon.Report) -> pplmon.Alert | None:
        return pplmon.Alert(HOSTILE, HOSTILE, HOSTILE, r.step) if r.step == 5 else None

    directory = tmp_path / HOSTILE.replace("/", "∕").replace('"', "")
    calm = Seen(pplmon.page(write_run(tmp_path / "calm", steps=12, spike=5)).html)
    journal = write_run(directory, steps=12, spike=5, planted=HOSTILE, more_alerts=[rule])
    with open(journal, "a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": "run", HOSTILE: HOSTILE, "alerts": [HOSTILE]}) + "\n")
    page = pplmon.page(journal)
    hostile = Seen(page.html)
    kinds = {tag for tag, _ in calm.elements} | {"pre"}  # the whole of a text that is cut elsewhere
    assert {tag for tag, _ in hostile.elements} <= kinds
    assert sum(tag == "h1" for tag, _ in hostile.elements) == 1
    assert not any(name.startswith("on") for _, given in hostile.elements for name in given)
    assert "\u202e" not in page.html
    assert hostile.text.count('<h1 onclick="x">&lt;{{ 7 * 7 }}<!--') >= 5


def test_text_is_bounded(tmp_path: Path) -> None:
    """A token of 20,000 characters costs its own length a few times, not once for each place that shows it."""
    page = pplmon.page(write_run(tmp_path, planted="y" * 20_000))
    assert max(map(len, re.findall("y+", re.sub(r"<pre.*?</pre>", "", page.html, flags=re.DOTALL)))) <= 600
    assert len(page.html) < 500_000


def test_a_notebook_shows_it_in_a_frame_of_its_own(run: Path) -> None:
    """Its styles and scripts stay within; the frame has the whole page, escaped once."""
    page = pplmon.page(run)
    (frame,) = Seen(page._repr_html_()).elements
    assert frame[0] == "iframe"
    assert frame[1]["sandbox"] == "allow-scripts"
    assert frame[1]["srcdoc"] == page.html


def test_it_is_written_whole(run: Path, tmp_path: Path) -> None:
    """Into a directory that is made, with nothing left beside it."""
    path = pplmon.page(run).save(tmp_path / "new" / "page.html")
    assert path.read_text(encoding="utf-8") == pplmon.page(run).html
    assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]


def test_page_is_called_before_and_after_its_package_is_imported(tmp_path: Path) -> None:
    """``pplmon.page`` is a package as well: its name must not change its meaning."""
    code = "import pplmon; f = pplmon.page; import pplmon.page.build; assert f is pplmon.page; pplmon.page('none')"
    (tmp_path / "code.py").write_text(code)
    done = run_script(str(tmp_path / "code.py"))
    assert "ReplayError: none does not exist" in done.stderr


def test_the_command_writes_beside_the_journal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says the verdict, where the page is, and what opens it."""
    assert cli.main(["report", str(run)]) == 0
    said = capsys.readouterr().out
    assert "Healthy, 1 incident at step 70: one sequence explains 100 % of the jump." in said
    assert f"{run / 'report.html'} (" in said
    assert said.rstrip().endswith(command.opening(run / "report.html"))
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_several_runs_go_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have no directory in common to write to; -o names another place."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, steps=10, spike=None)
    assert cli.main(["report", "runs/a", "runs/b"]) == 0
    assert (tmp_path / "report.html").is_file()
    assert cli.main(["report", "runs", "-o", "there/both.html", "--json"]) == 0
    assert (tmp_path / "there/both.html").is_file()
    printed = json.loads(capsys.readouterr().out.split("report.html\n")[-1])
    assert [found["name"] for found in printed["runs"]] == ["a", "b"]
    assert printed["differences"]["alerts"] == [0, 0]


def test_json_says_what_the_page_says(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Strict JSON and nothing else: verdict, the last numbers, and events with their alerts and addresses."""
    target = tmp_path / "p.html"
    assert cli.main(["report", str(run), "-o", str(target), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["page"], printed["bytes"]) == (str(target), target.stat().st_size)
    (found,) = printed["runs"]
    assert (found["state"], found["verdict"], found["steps"], found["over"]) == (
        "good",
        "Healthy, 1 incident at step 70: one sequence explains 100 % of the jump.",
        100,
        True,
    )
    (event,) = found["events"]
    assert (event["step"], event["address"]) == (70, "step 70, sequence 3, sample 7003")
    (alert,) = event["alerts"]
    assert (alert["rule"], alert["metric"], alert["threshold"]) == ("Above", "max_sequence_loss", 6.0)
    assert event["worst"][0]["target_text"] == " PLANTED" and event["worst"][0]["sample_id"] == 7003
    assert (found["alerts_total"], found["notices_total"]) == (1, 0)
    rows = pplmon.sinks.read_journal(run)
    last = [row for row in rows if row["kind"] == "report" and row["stage"] == "train"][-1]["numbers"]
    assert found["numbers"]["train/perplexity"] == last["perplexity"]


def test_a_directory_that_is_a_run_and_holds_others_says_what_it_leaves_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own journal is one run; those below are named, and nothing is said where there are none."""
    (tmp_path / "below").mkdir()
    for directory in (tmp_path, tmp_path / "below"):
        (directory / "pplmon.jsonl").write_bytes((run / "pplmon.jsonl").read_bytes())
    assert cli.main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "name these to see them, too" in said.err and str(tmp_path / "below") in said.err
    assert cli.main(["report", str(tmp_path / "below")]) == 0
    assert capsys.readouterr().err == ""


def test_what_cannot_be_shown_is_an_error_of_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told in a line, without a traceback."""
    assert cli.main(["report", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("pplmon report: ")


def test_following_writes_again_until_the_run_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page loads itself again while the run goes on, and no more when it is over."""
    monkeypatch.setattr(command, "LOOK", 0.02)
    monkeypatch.setattr(command, "SHARE", 0)
    target = tmp_path / "report.html"
    write_run(tmp_path, steps=30, spike=None, close=False)
    seen: list[str] = []

    def go_on() -> None:
        while not target.exists():
            time.sleep(0.01)
        seen.append(target.read_text(encoding="utf-8"))
        write_run(tmp_path, steps=60, spike=None)

    writer = threading.Thread(target=go_on)
    writer.start()
    assert cli.main(["report", str(tmp_path), "--follow"]) == 0
    writer.join()
    first, last = seen[0], target.read_text(encoding="utf-8")
    assert '"follow":10' in first
    assert re.search(r"\b2[0-9] steps", first)  # those of the open window may wait for its report
    assert '"follow":0' in last and "60 steps" in last
    assert capsys.readouterr().out.count(str(target)) == 4  # twice: where it is, and what opens it


def test_following_ends_when_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C leaves a page that no longer loads itself again."""

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    write_run(tmp_path, steps=10, spike=None, close=False)
    assert cli.main(["report", str(tmp_path), "--follow"]) == 0
    assert '"follow":0' in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_run_of_100_000_points_is_a_small_page_and_soon_made(tmp_path: Path) -> None:
    """Less than 5 s of one core and 3 MB, with each of its 50 spikes of one step."""
    spikes = write_long_run(tmp_path, 100_000, 50)
    begun = time.process_time()
    page = pplmon.page(tmp_path)
    page.save(tmp_path / "report.html")
    assert time.process_time() - begun < 5
    assert len(page.html) < 3_000_000
    events = re.findall(r'<details class="event warning".*?<b>step ([\d,]+)</b>', page.html, re.DOTALL)
    assert [int(step.replace(",", "")) for step in events] == spikes
    drawn = json.loads(Seen(page.html).scripts[0])["runs"][0]["tables"]["train"]
    steps = np.frombuffer(base64.b64decode(drawn["steps"]), "<f8")
    losses = np.frombuffer(base64.b64decode(drawn["columns"]["max_sequence_loss"]), "<f4")
    assert steps[losses > 10].tolist() == spikes
    assert drawn["rows"] == 100_000 > len(steps)
