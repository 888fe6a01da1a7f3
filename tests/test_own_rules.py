"""A rule, an extra or a reader of a user's own is judged, saved, journalled and replayed as those of pplmon's own are."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import pplmon
from pplmon import Monitor, TokenStats, cli, replay
from pplmon.alerts import options, rule_classes
from pplmon.replay import Series
from pplmon.replay.read.reader import Cells, LogReader, Reader
from pplmon.replay.read.series import Given, Row, Segment
from pplmon.replay.rules import parse_rule
from pplmon.sinks import Journal, read_journal
from tests.launch import run_script
from tests.own_rules import Doubled, Hesitation, loud

ROOT = Path(__file__).parent.parent
OWN = ROOT / "tests/own_rules.py"


def stats(loss: float, sure: float) -> TokenStats:
    """Two tokens of a loss, and how sure the model is of its argmax."""
    targets = torch.zeros(1, 2, dtype=torch.int64)
    return TokenStats.from_losses(torch.full((1, 2), loss), targets, top_probability=torch.tensor([[sure, 0.9]]))


def live(directory: Path, steps: range, state: Mapping[str, Any] | None = None, least: float = 0.5) -> Monitor:
    """Train some steps with rules and an extra of a user's own; the loss rises at step 15, the doubts at step 12."""
    rules = [Doubled("cross_entropy", factor=3.0), loud, pplmon.Above("hesitation_rate", 0.25, for_steps=4)]
    tally = pplmon.TokenTally(extras=[Hesitation(least)])
    monitor = Monitor(every_n_steps=5, sinks=[Journal(directory)], alerts=rules, tally=tally)
    if state is not None:
        monitor.load_state_dict(state)
    for step in steps:
        monitor.observe(stats(7.0 if step == 15 else 2.0 - step / 100, 0.1 if step >= 12 else 0.8))
        monitor.step()
    return monitor


def pplmon_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that has never seen the classes above."""
    return run_script("pplmon.cli", *arguments, cwd=Path("/"))


def alerts_of(done: subprocess.CompletedProcess[str]) -> list[tuple[str, int]]:
    """Rule and step of each alert that ``--json`` tells of."""
    assert done.returncode == 0, done.stderr
    return [(alert["name"], alert["step"]) for alert in json.loads(done.stdout)["alerts"]]


LIVE = [("Doubled", 15), ("loud", 15), ("Above", 15)]


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journal of a run that was stopped and resumed, in the middle of what the rules count."""
    directory = tmp_path_factory.mktemp("run")
    monitor = live(directory, range(14))
    state = json.loads(json.dumps(monitor.state_dict()))
    monitor.close()
    live(directory, range(14, 20), state).close()
    return directory


def test_what_the_run_raised(journal: Path) -> None:
    """The rules fire live, over the resume; the extra's numbers are in the judged and the reported rows."""
    rows = read_journal(journal)
    assert [(row["rule"], row["step"]) for row in rows if row["kind"] == "alert"] == LIVE
    judged = {row["step"]: row["numbers"]["hesitation_rate"] for row in rows if row["kind"] == "judged"}
    assert judged[11] == 0.0 and judged[12] == 0.5
    windows = {row["step"]: row["numbers"] for row in rows if row["kind"] == "report"}
    assert (windows[14]["hesitation_rate"], windows[14]["hesitation/all/tokens"]) == (
        0.3,
        3,
    )  # 10 tokens, over the resume


def test_a_fresh_process_replays_it(journal: Path) -> None:
    """It knows the extra's numbers from the journal, and the rule's class from the file that it is given."""
    done = pplmon_command("replay", journal, "--rules", OWN, "--rule", "live", "--json")
    assert alerts_of(done) == [LIVE[0], LIVE[2]]
    (note,) = json.loads(done.stdout)["notes"]
    assert "loud" in note and "--rule FILE.py:NAME" in note
    done = pplmon_command(
        "replay", journal, "--rules", OWN, "--rule", "Doubled('max_token_loss', 3)", "--rule", f"{OWN}:loud", "--json"
    )
    assert alerts_of(done) == [("Doubled", 15), ("loud", 15)]


@pytest.mark.slow
def test_a_fresh_process_without_the_file(journal: Path) -> None:
    """What is declared is in the journal: a rule on it is judged. A class that is not known is named, with what to do."""
    done = pplmon_command("replay", journal, "--json")
    assert alerts_of(done) == [LIVE[2]]
    notes = json.loads(done.stdout)["notes"]
    assert "The run also had the rule Doubled('cross_entropy', factor=3), which is not known here" in notes[0]
    assert "--rules FILE.py" in notes[0]
    done = pplmon_command("replay", journal, "--rule", "Above('hesitation_rate', 1)")
    assert done.returncode == 2 and "can never fire: hesitation_rate lies between 0 and 1" in done.stderr
    done = pplmon_command("replay", journal, "--rule", "Doubled('cross_entropy')")
    assert done.returncode == 2 and "unknown rule 'Doubled'" in done.stderr


def test_read_journal_makes_the_numbers_known(journal: Path, tmp_path: Path) -> None:
    """So that a rule on them can be made of what it read."""
    code = (
        "import sys, pplmon\n"
        "rows = pplmon.sinks.read_journal(sys.argv[1])\n"
        "rule = pplmon.Above('hesitation_rate', 0.4)\n"
        "reports = (pplmon.Report(r['step'], numbers=r['numbers']) for r in rows if r['kind'] == 'judged')\n"
        "print(*(alert.step for alert in map(rule, reports) if alert))\n"
    )
    (tmp_path / "code.py").write_text(code)
    done = run_script(str(tmp_path / "code.py"), journal)
    assert done.stdout == "12\n"


def test_its_threshold_can_be_searched(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class that says by what it is tuned gets a suggestion, as ours do."""
    wanted = ("--rules", str(OWN), "--rule", "Doubled('cross_entropy')", "--wanted-rate", "1")
    assert cli.main(["replay", str(journal), *wanted]) == 0
    assert "suggested for Doubled('cross_entropy'): Doubled('cross_entropy', factor=3.7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--rules", "nothing.py"), "--rules nothing.py: there is no file nothing.py"),
        (("--rule", f"{OWN}:Doubled"), f'Doubled is a class; say what it is made with: --rules {OWN} --rule "Doubled('),
        (
            ("--rules", str(OWN), "--rule", "Doubled('cross_entropy', factors=3)"),
            "Its arguments are Doubled(metric, factor=2.0",
        ),
        (
            ("--rules", str(OWN), "--rule", "Doubled"),
            "lacks its arguments: write Doubled(metric, factor=2.0, stage='train')",
        ),
        (("--rules", str(OWN), "--rule", "Doubld('tokens')"), "did you mean Doubled?"),
    ],
)
def test_mistakes_are_told(
    journal: Path, arguments: tuple[str, ...], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, with what to write."""
    assert cli.main(["replay", str(journal), *arguments]) == 2
    said = capsys.readouterr().err
    assert error in said and said.count("\n") == 1


def test_a_rule_reads_back_though_it_keeps_its_arguments_elsewhere() -> None:
    """By what it was made with, whatever it makes of that; a copy and a pickle, too."""
    rule = pickle.loads(pickle.dumps(Doubled("cross_entropy", factor=3.0)))
    assert repr(rule) == "Doubled('cross_entropy', factor=3)" and options(rule)["factor"] == 3.0
    assert repr(Doubled("cross_entropy")) == repr(Doubled("cross_entropy", 2.0)) == "Doubled('cross_entropy')"
    again = parse_rule(repr(rule))
    assert type(again).__name__ == "Doubled" and vars(again)["_times"] == 3.0 and "Doubled" in rule_classes()

    class Kept(pplmon.MetricRule):
        def __init__(self, metric: str, *stages: str, window: int = 4) -> None:
            super().__init__(metric, *stages)
            self.window = [0.0] * window  # an attribute of the name that is another thing

    for kept in (Kept("tokens", "val", window=3), copy.deepcopy(Kept("tokens", "val", window=3))):
        assert repr(kept) == "Kept('tokens', 'val', window=3)"
    with pytest.raises(TypeError, match="unexpected keyword argument 'windows'"):
        Kept("tokens", windows=3)  # type: ignore[call-arg]


def test_a_checkpoint_knows_an_extra_by_its_call(tmp_path: Path) -> None:
    """Loaded into a run with other settings of it, its numbers begin anew, and that is told."""
    monitor = live(tmp_path / "a", range(13))
    with pytest.warns(RuntimeWarning, match=r"does not count: Hesitation\(\)\. That is left out"):
        resumed = live(tmp_path / "b", range(13, 14), monitor.state_dict(), least=0.2)
    resumed.close()


def test_a_reader_of_ones_own(tmp_path: Path) -> None:
    """A class is enough: it is asked for files and for directories, and what it cannot read is told."""

    class Dots(LogReader):
        kind, pattern, expects = "dots", "run.dots", ".dots"

        def table(self, path: Path, step: str | None) -> tuple[list[str], Cells]:
            losses = path.read_text().split()
            if not losses:
                raise ValueError(f"{path} is empty")
            return ["loss"], ((at, {"loss": loss}) for at, loss in enumerate(losses))

    class Whole(Reader):
        kind, pattern, expects, order = "whole", "run.whole", ".whole", 5

        def read(self, path: Path, mapped: Mapping[str, Any], step: str | None) -> Series:
            return Series(path, self.kind, [Segment([Row(0, "val", Given(cross_entropy=math.pi))])])

    (tmp_path / "run.dots").write_text("1.0 2.0 9.0")
    series = replay.read(tmp_path)
    assert series.kind == "dots" and "'loss' is taken for train/cross_entropy" in series.notes[0]
    result = replay.run(series, replay.Rules(["Above('cross_entropy', 5)"], series))
    assert [fired.alert.step for fired in result.fired] == [2]
    (tmp_path / "run.dots").write_text("")
    with pytest.raises(replay.ReplayError, match=r"run\.dots is empty"):
        replay.read(tmp_path / "run.dots")
    (tmp_path / "run.whole").write_text("")
    assert replay.read(tmp_path).numbers() == {("val", "cross_entropy")}  # of two in a directory the more exact
    (tmp_path / "odd").write_text("")
    with pytest.raises(replay.ReplayError, match=r"expected \.whole, \.jsonl.*, \.dots or "):
        replay.read(tmp_path / "odd")
