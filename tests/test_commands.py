"""Every command with ``--json``, as a process: standard output is strict JSON alone, with the keys and exit codes of docs/agents.md."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

import pplmon
from pplmon import cli
from pplmon.report.answer import Exit
from tests.launch import fresh, run_script
from tests.page_runs import write_run

PAGE = (Path(__file__).parents[1] / "docs" / "agents.md").read_text(encoding="utf-8")
COMMANDS = ("demo", "report", "view", "replay", "doctor", "dashboard wandb")
Text = subprocess.CompletedProcess[str]


def described(command: str) -> set[str]:
    """The keys that the page has in the table of a command."""
    section = PAGE.split(f"\n### `pplmon {command}`\n")[1].split("\n#")[0]
    return set(re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \|$", section, re.MULTILINE))


def leaves(value: Any, keys: set[str], at: str = "") -> Iterator[str]:
    """The path of each value: ``a.b[].c``; ``a.*`` for whatever lies below a key that ``keys`` leave open."""
    if f"{at}.*" in keys:
        assert isinstance(value, dict)
        yield f"{at}.*"
    elif isinstance(value, dict):
        for name, inside in value.items():
            yield from leaves(inside, keys, f"{at}.{name}" if at else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inside in value:
            yield from leaves(inside, keys, f"{at}[]")
    else:
        yield at


def strict(line: str) -> dict[str, Any]:
    """Read JSON that has neither NaN nor Infinity, nor the same key twice."""

    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} is no strict JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(pairs) == len(dict(pairs))
        return dict(pairs)

    found = json.loads(line, parse_constant=refuse, object_pairs_hook=once)
    assert isinstance(found, dict)
    return found


def called(where: Path, *arguments: str) -> Text:
    """Run the command in a process of its own."""
    return run_script("pplmon", *arguments, cwd=where, timeout_s=200, COLUMNS="200")


def answered(done: Text, command: str, code: Exit) -> dict[str, Any]:
    """Return the one object that was printed, which has the keys of the page."""
    assert done.returncode == code, done.stderr
    (line,) = done.stdout.splitlines()
    found = strict(line)
    assert set(leaves(found, described(command))) == described(command)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with their evidence, one with event files; a batch that agrees with its loss, and one whose loss is NaN."""
    where = tmp_path_factory.mktemp("runs")
    write_run(where / "a", on_alert=[pplmon.SaveBatch(where / "a" / "alerts")])
    write_run(where / "b", level=2.2)
    board = pplmon.sinks.TensorBoard(where / "a")
    board.report(pplmon.Report(0, numbers={"perplexity": 2.0}), {"train/perplexity": 2.0})
    board.close()
    logits, targets = torch.randn(2, 9, 7), torch.randint(7, (2, 9))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    for name, factor in (("right", 1.0), ("nan", torch.nan)):
        torch.save({"logits": logits, "targets": targets, "loss": loss * factor}, where / f"{name}.pt")
    (where / "loud.py").write_text(
        "import os, torch\n"
        "def batches():\n"
        "    print('a print of a user')\n"
        "    os.system('echo a child process')\n"
        "    return torch.load('right.pt')\n"
    )
    return where


def test_a_report(runs: Path) -> None:
    """Of two runs that are compared, with their settings; the numbers are the journal's."""
    done = called(runs, "report", "a", "b", "--json")
    found = answered(done, "report", Exit.FINE)
    assert found["bytes"] == (runs / "report.html").stat().st_size
    assert [run["alerts_total"] for run in found["runs"]] == found["differences"]["alerts"] == [1, 1]


def test_a_report_that_follows_gives_a_line_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the start, when the run has gone on, and at its end; each line is a whole object."""
    journal = write_run(tmp_path, steps=30, spike=None, close=False)
    slept: list[float] = []

    def goes_on(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 1:
            write_run(tmp_path, steps=60, spike=None)

    monkeypatch.setattr("pplmon.page.command.time.sleep", goes_on)
    assert cli.main(["report", str(journal), "--follow", "--json"]) == Exit.FINE
    lines = [strict(line)["runs"][0] for line in capsys.readouterr().out.splitlines()]
    assert [(line["steps"], line["over"]) for line in lines] == [(29, False), (60, True), (60, True)]


def test_a_replay(runs: Path) -> None:
    """With incidents, a wanted rate and an earlier run: every key is there."""
    rule, more = "Spike('max_sequence_loss', window=16)", ("--incident", "70", "--wanted-rate", "100", "--against", "b")
    found = answered(called(runs, "replay", "a", "--rule", rule, *more, "--json"), "replay", Exit.FINE)
    assert [(alert["step"], alert["metric"]) for alert in found["alerts"]] == [(70, "max_sequence_loss")]


@pytest.mark.parametrize(("source", "code"), [("loud.py:batches", Exit.FINE), ("nan.pt", Exit.FOUND)])
def test_the_doctor(runs: Path, source: str, code: Exit) -> None:
    """Findings are exit code 1; a user's own prints, and those of its child processes, go to standard error."""
    done = called(runs, "doctor", source, "--json")
    if code == Exit.FOUND:
        found = answered(done, "doctor", code)
        assert found["findings"] and found["loss"] == ["NaN"]
    else:
        assert (done.returncode, strict(done.stdout)["findings"]) == (code, [])
        assert "a print of a user\n" in done.stderr and "a child process\n" in done.stderr


def test_a_view(runs: Path) -> None:
    """Its line comes as soon as the server is there; Ctrl-C is its usual end."""
    command = [sys.executable, "-m", "pplmon", "view", "a", "--port", "0", "--json"]
    view = subprocess.Popen(command, cwd=runs, env=fresh(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert view.stdout is not None
    found = strict(view.stdout.readline())
    assert set(leaves(found, set())) == described("view")
    assert found["curves"].startswith(found["url"] + "/")
    view.send_signal(signal.SIGINT)
    out, err = view.communicate(timeout=60)
    assert (view.returncode, out) == (Exit.FINE, ""), err


@pytest.mark.parametrize(("command", "flag"), [("view", "--port=0"), ("report", "--follow")])
def test_an_interrupt_while_an_answer_is_printed_is_the_usual_end(
    command: str, flag: str, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command hears of it, though it waits for its answer to be printed: no traceback."""

    def interrupted(*given: Any) -> NoReturn:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_print_json", interrupted)
    monkeypatch.setattr("pplmon.sinks.tensorboard_view.start", lambda *given: "http://localhost:1")
    assert cli.main([command, str(runs / "a"), flag, "--json"]) == Exit.FINE
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(find_spec("wandb_workspaces") is None, reason="wandb-workspaces is not installed")
def test_a_dashboard(runs: Path) -> None:
    """The definition, without a login."""
    done = called(runs, "dashboard", "wandb", "--entity", "e", "--project", "p", "--json")
    assert answered(done, "dashboard wandb", Exit.FINE)["project"] == "p"


@pytest.mark.slow
@pytest.mark.ranks
def test_a_demo(tmp_path: Path) -> None:
    """Of two ranks, whose corrupted step no alert can know yet: 1; the bar and the words are on standard error."""
    done = called(tmp_path, "demo", "--devices", "2", "--steps", "6", "--corrupt-step", "3", "--json")
    assert done.returncode == Exit.FOUND, done.stderr
    found = strict(done.stdout)
    assert set(leaves(found, described("demo"))) | {"alerts"} == {re.sub(r"\[\].*", "", k) for k in described("demo")}
    assert (found["found"], found["corrupted_step"], found["alerts"]) == (False, 3, [])
    assert "pplmon demo: 6 steps" in done.stderr and (tmp_path / found["page"]).is_file()


@pytest.mark.slow
def test_a_demo_that_is_interrupted_missed_nothing(tmp_path: Path) -> None:
    """Lightning turns Ctrl-C into an exit code of 1; here it ends the process as the signal does."""
    command = [sys.executable, "-m", "pplmon", "demo", "--steps", "5000", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    demo = subprocess.Popen(command, cwd=tmp_path, env=fresh(), **pipes)
    assert demo.stderr is not None
    seen = ""
    while "Epoch 0:" not in seen:
        seen += demo.stderr.read(1)
    demo.send_signal(signal.SIGINT)
    out, _ = demo.communicate(timeout=60)
    assert (demo.returncode, out) == (-signal.SIGINT, "")


def test_an_alert_of_the_demo_has_the_keys_of_the_page(tmp_path: Path) -> None:
    """A run that is too short to be found has none."""
    from pplmon.demo.plan import Plan
    from pplmon.demo.summary import answer

    rows = pplmon.sinks.read_journal(write_run(tmp_path))
    made = answer(Plan(corrupt_step=70), rows, 1.0, tmp_path, tmp_path, {})
    assert made.code == Exit.FINE
    assert set(leaves(dict(made.values()), described("demo"))) == described("demo")


WRONG = {
    "demo": ["--steps", "0"],
    "report": ["nowhere"],
    "view": ["nowhere"],
    "replay": ["nowhere", "--wanted-rate", "-1"],
    "doctor": ["nowhere.pt"],
    "dashboard": ["wandb", "--project", "p"],
}


@pytest.mark.parametrize("command", [*WRONG, "no-such-command"])
def test_an_error_is_json_too(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One object with one key, exit code 2, and the same words on standard error."""
    assert cli.main([command, *WRONG.get(command, []), "--json"]) == Exit.FAILED
    said = capsys.readouterr()
    found = strict(said.out)
    assert set(found) == {"error"} and found["error"] and found["error"] in said.err


def test_a_mistake_of_ours_is_not_taken_for_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Python's own exit code after a traceback is 1, which would say that the doctor has found something."""
    monkeypatch.setattr("pplmon.doctor.batches.batches_of", lambda *_: [])
    monkeypatch.setattr("pplmon.doctor.judge", lambda *_: {}["a mistake"])
    assert cli.main(["doctor", "a.pt", "--json"]) == Exit.FAILED
    said = capsys.readouterr()
    assert strict(said.out) == {"error": "KeyError: 'a mistake'"} and "Traceback" in said.err


def test_whoever_reads_the_answers_may_stop(runs: Path) -> None:
    """A closed pipe is no error."""
    command = f"{sys.executable} -m pplmon report a --follow --json | head -c 20"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=runs,
        env=fresh(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout[:8], done.stderr) == (Exit.FINE, '{"page":', "")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("doctor nan.pt --json", Exit.FOUND),
        pytest.param("replay a", Exit.FINE, marks=pytest.mark.slow),
        pytest.param("doctor nan.pt", Exit.FOUND, marks=pytest.mark.slow),
    ],
)
def test_who_reads_nothing_at_all_changes_no_exit_code(runs: Path, arguments: str, code: Exit) -> None:
    """In words, too, which rich prints."""
    command = f"{sys.executable} -m pplmon {arguments} | sleep 0; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=runs, env=fresh(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize(
    ("to", "json_too"),
    [
        ("> /dev/full", ""),
        (">&-", " --json"),
        pytest.param("> /dev/full", " --json", marks=pytest.mark.slow),
        pytest.param(">&-", "", marks=pytest.mark.slow),
    ],
)
def test_an_answer_that_cannot_be_written_is_not_taken_for_a_finding(runs: Path, to: str, json_too: str) -> None:
    """On a full disk, or where standard output is closed."""
    command = f"{sys.executable} -m pplmon report a{json_too} {to}"
    done = subprocess.run(["bash", "-c", command], cwd=runs, env=fresh(), capture_output=True, text=True, check=False)
    assert done.returncode == Exit.FAILED, done.stderr
    assert ("No space left on device" if "full" in to else "pplmon: standard output is closed\n") in done.stderr


@pytest.mark.parametrize("code", [0, 1])
def test_a_function_that_ends_the_process_is_an_error(
    code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its exit code would say that the doctor was done, and what it found."""
    (tmp_path / "ends.py").write_text(f"import sys\ndef batches():\n    sys.exit({code})\n")
    assert cli.main(["doctor", f"{tmp_path / 'ends.py'}:batches", "--json"]) == Exit.FAILED
    assert strict(capsys.readouterr().out) == {"error": f"what was to be run ended the process by sys.exit({code})"}


def test_the_page_has_every_command_and_every_code() -> None:
    """So a new one is not forgotten."""
    with pytest.raises(cli.UsageError, match="invalid choice") as wrong:
        cli.parse(["no-such-command"])
    names = re.findall(r"'?([a-z]+)'?[,)]", str(wrong.value).split("choose from")[1])
    assert sorted(names) == sorted(command.split()[0] for command in COMMANDS)
    assert re.findall(r"^### `pplmon ([a-z ]+)`$", PAGE, re.MULTILINE) == list(COMMANDS)
    assert [int(code) for code in re.findall(r"^\| `(\d)` \|", PAGE, re.MULTILINE)] == list(Exit)
