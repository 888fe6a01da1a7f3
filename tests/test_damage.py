"""Readers never crash: whatever a disk, an editor or an attacker did to a file, it is read, or refused in one line."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pplmon
from pplmon import replay
from pplmon.cli import main
from pplmon.sinks import read_journal
from tests.page_runs import write_run
from tests.test_replay_formats import FORMATS

ODD: list[Any] = [
    None,
    True,
    -1,
    2**70,
    10**400,
    1e308,
    "",
    "x",
    "NaN",
    "Infinity",
    [],
    [[]],
    [1, "a", None],
    {},
    {"a": {}},
]


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return rows of every kind, with a resumed process, its memory, worst tokens and histograms."""
    path = write_run(tmp_path_factory.mktemp("run"), 60, 50, more_alerts=[pplmon.Spike("cross_entropy")])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    memory = {"rules": [["Spike('cross_entropy')", pplmon.Spike("cross_entropy").state_dict()]], "first": False}
    resumed = {**rows[0], "resumed_at": 30, "memory": memory}
    kept = [row for row in rows if row["kind"] != "judged" or row["step"] % 5 == 0]
    assert {row["kind"] for row in kept} == {"run", "judged", "report", "alert", "worst"}
    return [*kept, resumed, {"kind": "judged", "step": 31, "stage": "train", "numbers": {"cross_entropy": 2.0}}]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a JSON value."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, (*at, key))


def replaced(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """Return a JSON value with one value in it replaced, or taken out where the new one is ``...``."""
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if new is ... and len(at) == 1:
        del copy[at[0]]
    else:
        copy[at[0]] = replaced(copy[at[0]], at[1:], new)
    return copy


@st.composite
def damage_to_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """Cut, overwrite, repeat or insert bytes."""
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, max(0, len(whole) - 1))), draw(st.integers(0, 300))
        new = draw(
            st.one_of(st.binary(max_size=40), st.sampled_from([b"\0" * 64, b'"', b"\n", b"[" * 5000, b"\xff\xfe"]))
        )
        whole = draw(
            st.sampled_from([whole[:at], whole[:at] + new + whole[at + length :], whole[:at] + new + whole[at:]])
        )
    return whole


def read_everywhere(path: Path, page: bool) -> None:
    """Read a file by the command, and a journal by ``read_journal`` and the page, too; only one-line errors may come."""
    commands = [["replay", str(path), "--json"]]
    if page:
        commands += [
            ["replay", str(path), "--rule", "default"],
            ["report", str(path), "-o", str(path.parent / "a.html")],
        ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="pplmon: .* is damaged")
        for command in commands:
            out, error = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
                code = main(command)
            assert (code, error.getvalue()) == (0, "") or (code == 2 and error.getvalue().count("\n") == 1)
            assert "\x1b" not in out.getvalue() + error.getvalue()
        if page:
            read_journal(path)


SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@given(data=st.data())
@SETTINGS
def test_a_journal_with_damaged_rows(data: st.DataObject, journal: list[dict[str, Any]], tmp_path: Path) -> None:
    """Any values of any rows are replaced by others, or missing."""
    rows = list(journal)
    for _ in range(data.draw(st.integers(1, 5))):
        number = data.draw(st.integers(0, len(rows) - 1))
        at = data.draw(st.sampled_from(sorted(places(rows[number]), key=lambda p: (len(p), repr(p)))[1:] or [()]))
        rows[number] = replaced(rows[number], at, data.draw(st.sampled_from([..., *ODD]))) if at else rows[number]
    (tmp_path / "pplmon.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    read_everywhere(tmp_path / "pplmon.jsonl", page=True)


@given(data=st.data())
@SETTINGS
def test_a_journal_with_damaged_bytes(data: st.DataObject, journal: list[dict[str, Any]], tmp_path: Path) -> None:
    """Bytes are cut, overwritten, repeated or inserted, deep nesting and NULs among them."""
    whole = "\n".join(json.dumps(row) for row in journal).encode()
    (tmp_path / "pplmon.jsonl").write_bytes(data.draw(damage_to_bytes(whole)))
    read_everywhere(tmp_path / "pplmon.jsonl", page=True)


@given(data=st.data())
@SETTINGS
def test_other_logs_with_damaged_bytes(data: st.DataObject, tmp_path: Path) -> None:
    """The same for every other format that is text."""
    name = data.draw(st.sampled_from(sorted(FORMATS)))
    (tmp_path / name).write_bytes(data.draw(damage_to_bytes(FORMATS[name][0].encode())))
    read_everywhere(tmp_path / name, page=False)


def wandb_file(rows: list[dict[str, Any]]) -> bytes:
    """Return a run of W&B's as its file: blocks of 32 KiB with checksums around records."""
    from wandb.proto import wandb_internal_pb2

    pb: Any = wandb_internal_pb2
    whole = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
    for row in rows:
        record = pb.Record()
        for name, value in row.items():
            record.history.item.add(key=name, value_json=json.dumps(value))
        data = record.SerializeToString()
        left = 32 * 1024 - len(whole) % (32 * 1024)
        if left < 7:
            whole, left = whole + b"\0" * left, 32 * 1024
        first, rest = data[: left - 7], data[left - 7 :]
        for kind, part in ((1, data),) if not rest else ((2, first), (4, rest)):
            whole += struct.pack("<IHB", zlib.crc32(bytes([kind]) + part), len(part), kind) + part
    return whole


WANDB = wandb_file([{"_step": n, "train/loss": 3.0 + n % 7 / 10, "text": "x" * 40} for n in range(1500)])


def test_a_damaged_record_of_wandb_is_left_out(tmp_path: Path) -> None:
    """A record whose checksum is wrong costs the rest of its block, which is told; what lies behind is read."""
    path = tmp_path / "run-a.wandb"
    path.write_bytes(WANDB)
    assert [row.step for row in replay.read(path).rows()] == list(range(1500)) and len(WANDB) > 3 * 32 * 1024
    at = WANDB.index(b"train/loss", 40_000)
    path.write_bytes(WANDB[:at] + b"TRAIN" + WANDB[at + 5 :])
    series = replay.read(path)
    assert any(
        "Left out 1 ×: a block of W&B's file whose checksum is wrong (the first: at byte" in n for n in series.notes
    )
    steps = [row.step for row in series.rows()]
    assert steps[0] == 0 and steps[-1] == 1499 and 1000 < len(steps) < 1500


@given(data=st.data())
@SETTINGS
def test_a_run_of_wandb_with_damaged_bytes(data: st.DataObject, tmp_path: Path) -> None:
    """The framing, the checksums and the records are damaged."""
    (tmp_path / "run-a.wandb").write_bytes(data.draw(damage_to_bytes(WANDB)))
    read_everywhere(tmp_path / "run-a.wandb", page=False)


def test_what_is_damaged_is_counted(tmp_path: Path) -> None:
    """``read_journal`` warns once and the replay notes it: rows by what they lack, numbers that are none, lines that are no JSON."""
    good = {"kind": "judged", "step": 1, "stage": "train", "numbers": {"cross_entropy": 2.0}}
    bad: list[Any] = [
        {**good, "step": "x"},
        {**good, "stage": []},
        {**good, "numbers": None},
        {"kind": [1]},
        {"kind": "alert", "step": 1, "worst": None},
        {**good, "kind": "report", "worst": "abc"},
        {**good, "step": 2, "numbers": {"cross_entropy": [1], "perplexity": "Infinity"}},
    ]
    lines = [json.dumps(good), *map(json.dumps, bad), "[" * 200_000, '{"kind": "judged", "st']
    path = tmp_path / "pplmon.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match=r"pplmon: .*pplmon.jsonl is damaged\. Left out 1 ×: a row whose step"):
        rows = read_journal(path)
    assert [(row["step"], row["numbers"]) for row in rows] == [
        (1, {"cross_entropy": 2.0}),
        (2, {"perplexity": float("inf")}),
    ]
    notes = "\n".join(replay.read(path).notes)
    for what in (
        "1 ×: a row whose step is no whole number",
        "1 ×: a row whose stage is no text",
        "1 ×: a row whose numbers are no object",
        "1 ×: a row whose kind is no text",
        "1 ×: an alert that lacks a rule or a text",
        "1 ×: a row whose worst are no list",
        "1 ×: a number that is none (the first: cross_entropy)",
        "2 ×: a line that is no JSON object",
    ):
        assert f"Left out {what}" in notes


def test_a_torn_last_line_is_no_damage(tmp_path: Path) -> None:
    """A kill leaves one, and no warning comes."""
    (tmp_path / "pplmon.jsonl").write_text(
        '{"kind": "judged", "step": 1, "stage": "train", "numbers": {}}\n{"kind": "ju'
    )
    assert len(read_journal(tmp_path)) == 1


def test_a_memory_that_cannot_be_read(tmp_path: Path) -> None:
    """The rules of a resumed process begin anew, and a note says why."""
    rows: list[dict[str, Any]] = [{"kind": "run", "alerts": ["Spike('cross_entropy')"]}]
    rows += [{"kind": "judged", "step": n, "stage": "train", "numbers": {"cross_entropy": 2.0}} for n in range(9)]
    for memory in ({"Spike": 1}, {"rules": [["Spike('cross_entropy')", {"past": "zzz"}]]}, {"rules": 5}):
        rows[0].update(resumed_at=3, memory=memory)
        (tmp_path / "pplmon.jsonl").write_text("\n".join(map(json.dumps, rows)))
        series = replay.read(tmp_path)
        notes = replay.run(series, replay.Rules(["live"], series)).notes
        assert any("goes on at step 3; what its rules remembered cannot be read" in note for note in notes)


def test_csv_lines_are_read_one_by_one(tmp_path: Path) -> None:
    """A quote without its end, and a field beyond the limit of Python's reader, cost one row each."""
    lines = ["step,loss,x", '0,"2.0', "1,3.0,a", f"2,4.0,{'z' * 200_000}", "3,5.0,b"]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    series = replay.read(tmp_path / "a.csv")
    assert [row.step for row in series.rows()] == [0, 1, 3]
    assert any("Left out 1 ×: a line that is no CSV" in note for note in series.notes)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["replay", ""], "a run's directory or file is wanted; got ''"),
        (["report", ""], "a run's directory or file is wanted; got ''"),
        (["replay", "a\0b"], r"a run's directory or file is wanted; got 'a\x00b'"),
        (["replay", "x" * 5000], "File name too long"),
        (["replay", "good.csv", "--rule", "Above('cross_entropy',1,stage=[])"], "the stage of a rule is a str"),
        (["replay", "good.csv", "--rule", f"Above('cross_entropy',1{'0' * 400})"], "a number of at most 1.8e308"),
        (["replay", "good.csv", "--rule", f"Above('cross_entropy',{'9' * 5000})"], "--rule wants a rule"),
        (["replay", "good.csv", "--rule", "Spike('cross_entropy',limit=None)"], "limit must be a number, got NoneType"),
        (["replay", "good.csv", "--rule", "Spike('cross_entropy',hard='8')"], "hard must be a number, got str: '8'"),
        (
            ["replay", "good.csv", "--rule", "Above('cross_entropy',1,hysteresis=[])"],
            "hysteresis must be a number, got list",
        ),
        (["replay", "good.csv", "--incident", "9" * 5000], "--incident wants steps of at most 18 digits"),
        (["replay", "escape.csv"], r"its columns are \x1b]0;pwn\x07a, b"),
        (["replay", "packed.csv.gz"], "packed.csv.gz is damaged"),
        (["replay", "state.json"], "state.json is no JSON"),
        (["replay", "list.json"], "list.json has no list 'log_history'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_errors_are_one_line(
    arguments: list[str],
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit status 2 and one line, with escapes visible and long texts cut."""
    monkeypatch.chdir(tmp_path)
    Path("good.csv").write_text("step,cross_entropy\n1,2.0\n")
    Path("escape.csv").write_text("step,\x1b]0;pwn\x07a,b\n1,2,3\n")
    Path("packed.csv.gz").write_bytes(b"\x1f\x8b" + b"\0" * 30)
    Path("state.json").write_text("[" * 100_000)
    Path("list.json").write_text('{"log_history": 5}')
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert error in told and told.count("\n") == 1 and len(told) < 2500 and "\x1b" not in told
