"""The journal: strict JSON lines that survive kills, and the reader that knows resumed runs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pplmon.alerts import Alert
from pplmon.report.report import Report
from pplmon.report.worst import WorstSequence, WorstToken
from pplmon.sinks import Journal, read_journal


def strict(path: Path) -> list[dict[str, Any]]:
    """Parse every line, refusing the NaN and Infinity that Python's JSON would pass."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not strict JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def a_report(step: int = 3, stage: str = "train", cross_entropy: float = 2.0) -> Report:
    """A report with a non-finite token, unknown numbers and a neighbour outside."""
    return Report(
        step,
        stage,
        {"cross_entropy": cross_entropy, "perplexity": math.inf, "bits_per_byte": None, "tokens": 12, "sequences": 2},
        worst=(
            WorstToken(
                loss=math.nan, context_ids=(None, 5, 6), context_losses=(None, math.inf, 0.5), target_text="NaN"
            ),
        ),
        worst_sequences=(WorstSequence(loss=4.0, tokens=6, document_id=9),),
    )


def test_nothing_is_made_before_the_first_write(tmp_path: Path) -> None:
    """Constructing a sink on a rank that never writes leaves no trace; the directory comes with the first line."""
    journal = Journal(tmp_path / "a" / "b")
    journal.close()
    assert list(tmp_path.iterdir()) == []
    journal.start({"version": "1"})
    assert journal.path == tmp_path / "a" / "b" / "pplmon.jsonl"
    assert strict(journal.path) == [{"kind": "run", "version": "1"}]


def test_every_kind_is_one_strict_line(tmp_path: Path) -> None:
    """Run, judged, report and alert, with NaN and ±inf as strings however deep, and unknown things left out."""
    journal = Journal(tmp_path)
    journal.start({"rules": ["NonFinite()"], "limit": -math.inf, "kind": "mine", "where": tmp_path})
    journal.judged(a_report())
    journal.report(a_report(), {})
    journal.alert(Alert("NonFinite", "NaN", "nonfinite_tokens", 3, value=math.nan, worst=a_report().worst))
    journal.close()
    run, judged, report, alert = strict(journal.path)
    assert run == {"kind": "run", "rules": ["NonFinite()"], "limit": "-Infinity", "where": str(tmp_path)}
    core = {"cross_entropy": 2.0, "perplexity": "Infinity", "tokens": 12}
    assert judged == {"kind": "judged", "step": 3, "stage": "train", "numbers": core}
    assert report["numbers"] == {**core, "sequences": 2}
    assert report["worst"][0]["loss"] == "NaN" and report["worst"][0]["context_losses"] == [None, "Infinity", 0.5]
    assert "sample_id" not in report["worst"][0]
    assert report["worst_sequences"][0]["document_id"] == 9 and "sample_id" not in report["worst_sequences"][0]
    assert alert["value"] == "NaN" and alert["severity"] == "warning" and "threshold" not in alert
    assert alert["worst"] == report["worst"]


def test_series_chooses_what_is_judged(tmp_path: Path) -> None:
    """A judged row holds the named numbers only, an extra's too; one that a report lacks is left out."""
    journal = Journal(tmp_path, series=["tokens", "group/a", "group/b"])
    journal.judged(Report(1, numbers={"tokens": 4, "cross_entropy": 1.0, "group/a": 0.5}))
    journal.close()
    assert strict(journal.path)[0]["numbers"] == {"tokens": 4, "group/a": 0.5}


def test_reports_are_flushed_and_alerts_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged rows wait for a report; an alert is fsynced after its line is in the file."""
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(len(strict(tmp_path / "pplmon.jsonl"))))
    journal = Journal(tmp_path)
    journal.start({})
    journal.judged(a_report())
    assert len(strict(journal.path)) == 1
    journal.report(a_report(), {})
    assert len(strict(journal.path)) == 3 and seen == []
    journal.alert(Alert("Spike", "up"))
    assert seen == [4]
    journal.close()


def test_judged_rows_that_wait_are_written_in_their_order(tmp_path: Path) -> None:
    """Before what comes after them, and with the series of their own run."""
    journal = Journal(tmp_path)
    journal.start({})
    for step in range(20):
        journal.judged(Report(step, numbers={"cross_entropy": 1.0, "sequences": 2}))
    journal.start({"watched": ["sequences"]})
    journal.judged(Report(20, numbers={"sequences": 2}))
    journal.close()
    rows = strict(journal.path)
    assert [row.get("step") for row in rows] == [None, *range(20), None, 20]
    assert [row["numbers"] for row in rows[20:] if "numbers" in row] == [{"cross_entropy": 1.0}, {"sequences": 2}]


WAITING = """
import os, sys
from pplmon.report.report import Report
from pplmon.sinks.journal import Journal

def journal(name):
    opened = Journal(name)
    for step in range(3):
        opened.judged(Report(step, numbers={"cross_entropy": 1.0}))
    return opened

journal("given up")
forks, ends = journal("forks"), journal("ends")
if not os.fork():
    sys.exit()
os.wait()
assert len(forks.path.read_text().splitlines()) == 3
ends.judged(Report(3, numbers={"cross_entropy": 1.0}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked on POSIX only")
def test_judged_rows_that_wait_outlive_who_wrote_them(tmp_path: Path) -> None:
    """They are written once, where nobody closes the journal: when it is given up, before a fork, as the process ends."""
    subprocess.run([sys.executable, "-c", WAITING], cwd=tmp_path, check=True)
    for name, steps in (("given up", 3), ("forks", 3), ("ends", 4)):
        assert [row["step"] for row in strict(tmp_path / name / "pplmon.jsonl")] == list(range(steps))


def test_a_torn_line_does_not_take_the_next_with_it(tmp_path: Path) -> None:
    """After a kill in the middle of a line, later lines stay readable, and the reader passes over the torn one."""
    journal = Journal(tmp_path)
    journal.report(a_report(1), {})
    journal.close()
    with open(journal.path, "a") as file:
        file.write('{"kind": "judged", "step": 2, "num')
    resumed = Journal(tmp_path)
    resumed.report(a_report(2), {})
    resumed.close()
    with open(journal.path, "a") as file:
        file.write('{"kind": "ru')
    assert [(row["kind"], row["step"]) for row in read_journal(journal.path)] == [("report", 1), ("report", 2)]
    assert len(journal.path.read_text().splitlines()) == 4


def test_a_whole_file_gets_no_empty_line(tmp_path: Path) -> None:
    """Reopening a journal that ends well adds nothing of its own."""
    journal = Journal(tmp_path)
    for _ in range(2):
        journal.start({})
        journal.close()
    assert journal.path.read_text() == '{"kind": "run"}\n' * 2


def test_the_last_of_a_repeated_row_is_kept_where_it_stands(tmp_path: Path) -> None:
    """A resumed run repeats steps: the later line wins; other stages, kinds and rules at that step are not touched."""
    journal = Journal(tmp_path)
    journal.start({"attempt": 1})
    for step, loss in ((1, 1.0), (2, 2.0)):
        journal.judged(a_report(step, cross_entropy=loss))
        journal.report(a_report(step, cross_entropy=loss), {})
    journal.report(a_report(2, "val", 7.0), {})
    journal.alert(Alert("Spike", "first", "cross_entropy", 2, threshold=1.5))
    journal.alert(Alert("Spike", "other metric", "max_sequence_loss", 2, threshold=1.5))
    journal.start({"attempt": 2})
    journal.report(a_report(2, cross_entropy=2.5), {})
    journal.alert(Alert("Spike", "again", "cross_entropy", 2, threshold=1.5))
    journal.close()
    rows = read_journal(tmp_path)  # the directory will do
    assert [row["attempt"] for row in rows if row["kind"] == "run"] == [1, 2]
    reports = [(r["step"], r["stage"], r["numbers"]["cross_entropy"]) for r in rows if r["kind"] == "report"]
    assert reports == [(1, "train", 1.0), (2, "val", 7.0), (2, "train", 2.5)]
    assert [row["step"] for row in rows if row["kind"] == "judged"] == [1, 2]
    assert [row["text"] for row in rows if row["kind"] == "alert"] == ["other metric", "again"]


def test_non_finite_numbers_come_back_as_floats(tmp_path: Path) -> None:
    """The reader turns numbers back, and leaves a token whose text is "NaN" alone."""
    journal = Journal(tmp_path)
    journal.report(a_report(), {})
    journal.alert(Alert("r", "t", value=math.inf, threshold=-math.inf, worst=a_report().worst))
    journal.close()
    report, alert = read_journal(journal.path)
    assert report["numbers"]["perplexity"] == math.inf
    assert (alert["value"], alert["threshold"]) == (math.inf, -math.inf)
    for row in (report, alert):
        token = row["worst"][0]
        assert math.isnan(token["loss"]) and token["context_losses"] == [None, math.inf, 0.5]
        assert token["target_text"] == "NaN" and token["context_ids"] == [None, 5, 6]


def test_hostile_text_stays_on_its_line(tmp_path: Path) -> None:
    """Newlines, a lone surrogate and a line separator in decoded text come back as they were."""
    text = "a\nb\u2028c\ud800\x00"
    journal = Journal(tmp_path)
    journal.report(Report(0, worst=(WorstToken(loss=1.0, context_text=text),)), {})
    journal.close()
    assert journal.path.read_bytes().count(b"\n") == 1
    assert read_journal(journal.path)[0]["worst"][0]["context_text"] == text


def test_an_alert_with_a_tensor_is_written(tmp_path: Path) -> None:
    """A rule of the user's own may put a tensor or a numpy number into its alert."""
    import torch

    journal = Journal(tmp_path)
    journal.alert(Alert("mine", "look", value=torch.tensor(math.nan), threshold=torch.tensor(3)))  # type: ignore[arg-type]
    journal.close()
    assert (strict(journal.path)[0]["value"], strict(journal.path)[0]["threshold"]) == ("NaN", 3)


def losses(rows: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """The windows of rows."""
    return [(row["step"], row["numbers"]["cross_entropy"]) for row in rows if row["kind"] == "report"]


def test_two_runs_in_one_journal_are_never_read_as_one(tmp_path: Path) -> None:
    """The longer first one gives no step to the second; each can be had by its name, and a wrong name is told."""
    for name, steps, loss in (("aa", range(4), 1.0), ("bb", range(2), 2.0)):
        journal = Journal(tmp_path)
        journal.start({"run": name, "resumed_at": None})
        for step in steps:
            journal.report(a_report(step, cross_entropy=loss), {})
        journal.close()
    assert losses(read_journal(tmp_path)) == losses(read_journal(tmp_path, run="bb")) == [(0, 2.0), (1, 2.0)]
    assert losses(read_journal(tmp_path, run="aa")) == [(step, 1.0) for step in range(4)]
    with pytest.raises(ValueError, match="the journal has no run 'cc'; it has 'aa', 'bb', the last one last"):
        read_journal(tmp_path, run="cc")


def test_a_resumed_run_goes_on_in_its_journal_and_in_no_others(tmp_path: Path) -> None:
    """A run that was resumed from another run's checkpoint is another run; its own goes on over the one between."""
    journal = Journal(tmp_path)
    for name, resumed_at, step, loss in (
        ("aa", None, 1, 1.0),
        ("bb", None, 1, 2.0),
        ("aa", 2, 2, 1.5),
        ("cc", 5, 5, 3.0),
    ):
        journal.start({"run": name, "resumed_at": resumed_at})
        journal.report(a_report(step, cross_entropy=loss), {})
    journal.close()
    assert losses(read_journal(tmp_path)) == [(5, 3.0)]
    assert losses(read_journal(tmp_path, run="aa")) == [(1, 1.0), (2, 1.5)]


def test_runs_that_an_older_version_wrote_have_numbers(tmp_path: Path) -> None:
    """Without names each fresh start is a run, and a resume goes on with the last."""
    journal = Journal(tmp_path)
    for resumed_at, step in ((None, 1), (2, 2), (None, 0)):
        journal.start({"resumed_at": resumed_at})
        journal.report(a_report(step), {})
    journal.close()
    assert losses(read_journal(tmp_path)) == [(0, 2.0)]
    assert losses(read_journal(tmp_path, run="run 1")) == [(1, 2.0), (2, 2.0)]


def test_each_of_two_monitors_in_a_journal_has_its_last_run(tmp_path: Path) -> None:
    """They are told apart by their prefixes, and begin by themselves."""
    for loss in (1.0, 2.0):
        for prefix in ("", "b/"):
            journal = Journal(tmp_path, prefix=prefix)
            journal.start({"resumed_at": None, "run": f"{prefix}{loss}"})
            journal.report(a_report(3, cross_entropy=loss), {})
            journal.close()
    rows = [row for row in read_journal(tmp_path) if row["kind"] == "report"]
    assert [(row.get("prefix", ""), row["numbers"]["cross_entropy"]) for row in rows] == [("", 2.0), ("b/", 2.0)]
