"""Fixed runs give the same bits as before the rooms were moved: numbers, worst tokens, journal, alerts, replays and log keys."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests import golden_runs
from tests.golden.facts import INEXACT, differences, exact, portable, text

FILE = Path(__file__).parent / "golden/runs.json"
BEFORE = json.loads(FILE.read_text(encoding="utf-8"))["everywhere"]


@pytest.fixture(scope="module")
def facts() -> Any:
    """What the runs give now."""
    return golden_runs.everywhere()


def test_fixed_runs_give_the_same_bits(facts: Any) -> None:
    """Nothing that was there is gone or changed; a number or a field may be new."""
    found = [line for line in differences(BEFORE, portable(facts)) if not line.startswith("new: ")]
    assert not found, "\n".join(found[:20])


def test_the_runs_reach_what_they_are_to_hold(facts: Any) -> None:
    """Odd tokens are counted, rules fire before and after the resume, and the replay finds the journal's own alerts."""
    numbers = facts["tally"]["odd"]["report"]["numbers"]
    assert (numbers["nonfinite_tokens"], numbers["capped_tokens"], numbers["invalid_targets"]) == (7, 2, 2)
    fired = {row["rule"] for row in facts["monitor"]["journal"] if row["kind"] == "alert"}
    assert fired == {"Above", "Below", "InvalidTargets", "NonFinite", "Spike"}
    steps = [row["step"] for row in facts["monitor"]["journal"] if row["kind"] == "judged" and row["stage"] == "train"]
    assert steps == [*range(53), *range(50, 100)]
    assert facts["replay"]["as it was"]["differs_from_journal"] == [0, 0]
    assert {rule["name"] for rule in facts["replay"]["scored"]["alerts"]} >= {"Spike"}


def test_a_change_of_one_bit_is_seen() -> None:
    """In a number, a loss, a row's order, a type, a sign of 0; and what is gone or new is told apart."""
    before = {"a": [1, 0.1, {"b": None, "c": "NaN"}], "d": 0.0}
    changes: list[tuple[Any, str]] = [
        ({**before, "a": [1, math.nextafter(0.1, 1), before["a"][2]]}, "changed: /a/1: 0.1 is now 0.10000000000000002"),
        ({**before, "a": before["a"][::-1]}, "changed: /a/0: 1 is now {'b': None, 'c': 'NaN'}"),
        ({**before, "a": before["a"][:2]}, "changed: /a: [1, 0.1, {'b': None, 'c': 'NaN'}] is now [1, 0.1]"),
        ({**before, "d": -0.0}, "changed: /d: 0.0 is now -0.0"),
        ({**before, "d": 0}, "changed: /d: 0.0 is now 0"),
        ({"a": before["a"]}, "gone: /d"),
        ({**before, "e": 3}, "new: /e: 3"),
    ]
    assert not list(differences(before, copy.deepcopy(before)))
    for after, line in changes:
        assert next(differences(before, after)) == line


def test_what_exp_and_log_give_is_held_to_six_digits() -> None:
    """By its name in a report, a log key or an alert; everything else to the last bit."""
    near = {"numbers": {"perplexity": 9.00000001, "cross_entropy": 9.00000001}, "a/val/perplexity": 9.00000001}
    alert = {"metric": "perplexity", "value": 9.00000001, "step": 3, "text": "0x9"}
    assert portable(near) == {"numbers": {"perplexity": 9.0, "cross_entropy": 9.00000001}, "a/val/perplexity": 9.0}
    assert portable(alert) == {**alert, "value": 9.0}
    assert set(BEFORE["tally"]["rows"]["report"]["numbers"]) > INEXACT


def test_facts_are_strict_json_that_reads_back() -> None:
    """With a line for each item of the upper levels."""
    value = exact({"a": (math.nan, math.inf, 1 / 3), "b": {"c": []}})
    written = text(value)
    assert json.loads(written) == value == {"a": ["nan", "inf", 1 / 3], "b": {"c": []}}
    assert written.count("\n") == 9


def test_a_file_of_this_machine_is_compared_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command writes and compares; one bit of a run with logits fails it here, and is not looked at elsewhere."""
    monkeypatch.setattr(golden_runs, "everywhere", lambda: {"perplexity": 2.0000000001})
    monkeypatch.setattr(golden_runs, "here", lambda: {"loss": 0.1})
    whole, part = tmp_path / "whole.json", tmp_path / "part.json"
    assert golden_runs.main(["--write", str(whole)]) == golden_runs.main(["--write", str(part), "--portable"]) == 0
    assert json.loads(part.read_text()) == {"everywhere": {"perplexity": 2.0}}
    assert golden_runs.main(["--compare", str(whole)]) == golden_runs.main(["--compare", str(part)]) == 0
    monkeypatch.setattr(golden_runs, "here", lambda: {"loss": math.nextafter(0.1, 1)})
    assert golden_runs.main(["--compare", str(whole)]) == 1
    assert "changed: /here/loss: 0.1 is now" in capsys.readouterr().out
    monkeypatch.setattr(golden_runs, "machine", lambda: {"processor": "another"})
    assert golden_runs.main(["--compare", str(whole)]) == 0


def test_runs_with_logits_agree_among_themselves() -> None:
    """What is compared on one machine only: each source of logits gives the same numbers, and a resumed run goes on."""
    from tests.golden import logits

    found = exact(logits.runs())
    sources, trainer = found["sources"], found["trainer"]
    assert sources["observe"] == sources["returned"] == sources["named"]
    windows = [row["numbers"]["tokens"] for name in ("first", "second") for row in trainer[name]["journal"]
               if row["kind"] == "report" and row["stage"] == "train"]  # fmt: skip
    assert len(windows) == 4 and windows[:2] == windows[2:]
    assert trainer["after fit"]["train/tokens_seen"] == sum(windows)
    assert found["columns"]["torch.float32"]["targets"] == found["columns"]["torch.float64"]["targets"]
