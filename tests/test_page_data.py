"""The parts of the page: columns, the few rows that a picture needs, arrays, histograms, and each token's own text."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pplmon
from pplmon.page.charts import drawings, payload
from pplmon.page.distribution import COLUMNS, distribution
from pplmon.page.encode import doubles, floats, script_json
from pplmon.page.runs import MOST_RUNS, find, names, read_runs
from pplmon.page.table import Table, tokens_at
from pplmon.replay.read.series import ReplayError
from pplmon.report.histogram import Histogram, eighth_edge
from pplmon.report.texts import Texts
from pplmon.report.worst import PIECE, WorstToken
from tests.page_runs import write_run

LOSSES = st.floats(0, 2000, width=32)


@given(st.lists(LOSSES, min_size=1, max_size=200))
def test_a_report_s_histogram_in_eighths_is_numpy_s(losses: list[float]) -> None:
    """Every token is in the bucket of its loss, and none is lost."""
    tally = pplmon.TokenTally()
    nll = torch.tensor(losses)
    tally.update(pplmon.TokenStats.from_losses(nll, torch.zeros(len(losses), dtype=torch.long)))
    first, counts = tally.report().histogram.eighths()
    edges = [eighth_edge(first + i) for i in range(len(counts) + 1)]
    # What is below 2^-20 is in the first bucket, and what is at 2^10 or above in the last.
    clipped = np.clip(nll.numpy().astype(np.float64), 2**-20 * (1 - 1e-3), 2**10)
    expected, _ = np.histogram(clipped, bins=[*edges[:-1], math.inf])
    assert counts == expected.tolist()
    assert sum(counts) == len(losses) and counts[0] and counts[-1]


def test_an_empty_histogram_leaves_no_trace_in_the_journal(tmp_path: Path) -> None:
    """A report of a user's own has none, and readers do without."""
    journal = pplmon.sinks.Journal(tmp_path)
    journal.report(pplmon.Report(3, numbers={"cross_entropy": 2.0}), {})
    journal.close()
    (row,) = pplmon.sinks.read_journal(tmp_path)
    assert "histogram" not in row
    assert Histogram().eighths() == (0, [])
    assert distribution([row]) is None


def test_each_token_of_a_context_has_its_own_text() -> None:
    """None stands where there is no token; a piece is bounded, the text is not."""
    token = WorstToken(1.0, target=2, context_ids=(None, 1, 2, 3, None))
    told = token.decoded(Texts(lambda ids: "".join("ab" * PIECE if i == 3 else f" {i}" for i in ids)))
    assert told.context_pieces == (None, " 1", " 2", ("ab" * PIECE)[:PIECE], None)
    assert told.context_text == " 1 2" + "ab" * PIECE
    assert token.context_pieces is None


NUMBERS = st.one_of(st.just(math.nan), st.floats(-100, 100))


@given(
    st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=300),
    st.integers(1, 20),
    st.sets(st.integers(0, 299), max_size=3),
)
def test_thinning_keeps_the_extremes_of_every_bin_and_only_true_rows(
    values: list[tuple[float, float]], bins: int, wanted: set[int]
) -> None:
    """Of every column, in every bin; beside them the first and the last row, and those that are asked for."""
    rows = {step: {"a": a, "b": b} for step, (a, b) in enumerate(values)}
    table = Table.of(rows, ("a", "b", "c"))
    thin = table.thinned(wanted, bins)
    assert thin.rows == len(values)
    assert {0, len(values) - 1} | (wanted & rows.keys()) <= set(thin.steps)
    for name, column in table.columns.items():
        left = dict(thin.points(name))
        assert left.items() <= dict(table.points(name)).items()
        for b in range(bins):
            part = [v for v in column[b * len(values) // bins : (b + 1) * len(values) // bins] if not math.isnan(v)]
            assert not part or {min(part), max(part)} <= set(left.values())
    assert len(thin.steps) <= max(2 * bins, 4 * bins + 2 + len(wanted))


def test_tokens_of_a_step_are_those_trained_on_so_far() -> None:
    """Also of a step between two read-outs, and before the first."""
    train = Table.of({4: {"tokens_seen": 40}, 9: {"tokens_seen": 90}}, ["tokens_seen"])
    assert tokens_at(train, [0, 4, 8, 9, 20]) == [0, 40, 40, 90, 90]
    assert tokens_at(Table.of({4: {}}, ["tokens_seen"]), [4]) == []


def test_arrays_come_back() -> None:
    """Little-endian, as JavaScript reads them; what is infinite in float32 is so."""
    given_numbers = [0.1, -3.0, math.inf, 2.0**60, 1e300]
    assert np.frombuffer(base64.b64decode(doubles(given_numbers)), "<f8").tolist() == given_numbers
    back = np.frombuffer(base64.b64decode(floats(given_numbers)), "<f4")
    assert back.tolist() == [float(np.float32(0.1)), -3.0, math.inf, 2.0**60, math.inf]


def test_json_cannot_end_its_script() -> None:
    """Neither markup nor a comment is in it, and it reads as what was given."""
    hostile = {"</script><!--": ["<script>", "&amp;", "\u2028", "\ud800"]}
    text = script_json(hostile)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == hostile


def test_many_windows_are_added_up_to_few_columns() -> None:
    """Each column holds the tokens of all its windows, and the columns cover all steps."""
    windows = [{"step": 10 * i + 9, "histogram": {"first": 1000 + i % 3, "counts": [1, i % 5]}} for i in range(1000)]
    drawn = distribution(windows)
    assert drawn is not None
    assert len(drawn.shares) == len(drawn.ends) == COLUMNS
    assert all(sum(column) == pytest.approx(1) for column in drawn.shares)
    assert drawn.starts[1:] == [end + 1 for end in drawn.ends[:-1]]
    assert drawn.starts[0] <= 9 and drawn.ends[-1] == 9999
    group = windows[:2]  # the first column's
    counts = [0] * 4
    for window in group:
        for place, count in enumerate(window["histogram"]["counts"], window["histogram"]["first"] - 1000):
            counts[place] += count
    assert drawn.first == 1000
    assert drawn.shares[0] == pytest.approx([count / sum(counts) for count in counts])


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Every read-out at its step, beside it what only windows know; validation, settings, alerts, the end."""
    (run,) = read_runs([write_run(tmp_path)])
    rows = pplmon.sinks.read_journal(tmp_path)
    judged = {row["step"]: row["numbers"] for row in rows if row["kind"] == "judged" and row["stage"] == "train"}
    windows = {row["step"]: row["numbers"] for row in rows if row["kind"] == "report" and row["stage"] == "train"}
    train = run.tables["train"]
    assert dict(train.points("max_sequence_loss")) == {
        step: numbers["max_sequence_loss"] for step, numbers in judged.items()
    }
    assert dict(train.points("token_loss_p50")) == {
        step: numbers["token_loss_p50"] for step, numbers in windows.items()
    }
    assert [step for step, _ in run.tables["val"].points("perplexity")] == [49, 99]
    assert run.steps == 100 and run.worst is not None
    assert [alert.step for alert in run.alerts] == [70]
    assert run.alerts[0].worst[0].context_pieces[3] == " PLANTED"  # type: ignore[index]
    assert run.settings["every_n_steps"] == 10


def test_a_resumed_run_is_not_over(tmp_path: Path) -> None:
    """Its end of before is the middle now."""
    write_run(tmp_path)
    write_run(tmp_path, close=False)
    (run,) = read_runs(find([tmp_path]))
    assert run.worst is None


def test_a_journal_without_rows_is_a_run_without_numbers(tmp_path: Path) -> None:
    """A run that has just begun is followed from there."""
    (tmp_path / "pplmon.jsonl").touch()
    page = pplmon.page(tmp_path)
    assert [run.steps for run in page.runs] == [0]
    assert "No numbers yet." in page.html


def test_two_monitors_in_one_file_are_two_runs(tmp_path: Path) -> None:
    """Their prefixes tell them apart."""
    write_run(tmp_path, steps=20, spike=None, prefix="student/")
    write_run(tmp_path, steps=20, spike=None, prefix="teacher/", level=3.0)
    first, second = read_runs(find([tmp_path]))
    assert first.name.endswith(" student/") and second.name.endswith(" teacher/")
    assert first.tables["train"].columns["cross_entropy"] != second.tables["train"].columns["cross_entropy"]


def test_runs_are_found_at_any_depth_and_named_by_what_differs(tmp_path: Path) -> None:
    """A directory that holds a journal is that run; one that holds runs is all of them, in order."""
    for name in ("b/version_0", "a/version_0"):
        write_run(tmp_path / name, steps=3, spike=None)
    found = find([tmp_path])
    assert names(found) == ["a/version_0", "b/version_0"]
    assert find([tmp_path / "b"]) == find([tmp_path / "b/version_0/pplmon.jsonl"]) == found[1:]
    assert names(found[1:]) == ["b/version_0"]


def test_what_is_no_journal_is_said(tmp_path: Path) -> None:
    """Nothing there, another kind of log, or more runs than one page can show."""
    with pytest.raises(ReplayError, match="does not exist"):
        find([tmp_path / "none"])
    (tmp_path / "metrics.csv").write_text("step,loss\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.csv is no journal: a page is made from pplmon\.jsonl"):
        find([tmp_path])
    for place in range(MOST_RUNS + 1):
        (tmp_path / f"runs/{place}").mkdir(parents=True)
        (tmp_path / f"runs/{place}/pplmon.jsonl").touch()
    with pytest.raises(ValueError, match="17 runs are too many for one page: name at most 16"):
        find([tmp_path / "runs"])


def test_a_number_of_one_s_own_has_a_chart(tmp_path: Path) -> None:
    """One that an extra measured, or that the user logged, is drawn like ours."""
    journal = pplmon.sinks.Journal(tmp_path)
    for step in range(3):
        journal.report(pplmon.Report(step, numbers={"cross_entropy": 2.0, "optim/<grad>": step / 2}), {})
    journal.close()
    runs = read_runs(find([tmp_path]))
    own = [figure for figure in drawings(runs) if figure.key.startswith("own")]
    assert [(figure.title, figure.lines[0].label) for figure in own] == [("optim/<grad>", "optim/<grad>")]
    column = payload(runs, own, [[]])["runs"][0]["tables"]["train"]["columns"]["optim/<grad>"]
    assert np.frombuffer(base64.b64decode(column), "<f4").tolist() == [0.0, 0.5, 1.0]


def test_non_finite_tokens_are_drawn_where_there_are_any(tmp_path: Path) -> None:
    """A chart of zeros would only take room."""
    for directory, count in ((tmp_path / "a", 0), (tmp_path / "b", 2)):
        journal = pplmon.sinks.Journal(directory)
        journal.report(pplmon.Report(0, numbers={"nonfinite_tokens": count, "cross_entropy": 1.0}), {})
        journal.close()
        keys = [figure.key for figure in drawings(read_runs(find([directory])))]
        assert ("nonfinite" in keys) == (count > 0)
