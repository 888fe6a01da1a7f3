"""States and journals that were written once are read with the same numbers by this version and every later one.

``tests.golden_run`` tells of what they are.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pplmon
from pplmon import Totals, replay
from pplmon.report import layout
from pplmon.sinks import read_journal

pytest.importorskip("pytorch_lightning")
from tests import golden_run as golden

HERE = Path(__file__).with_name("golden")
NUMBERS = json.loads((HERE / "numbers.json").read_text())
MONITOR, TOTALS = (json.loads((HERE / f"{name}.json").read_text()) for name in ("monitor", "totals"))
CHECKPOINT = torch.load(HERE / "run.ckpt", weights_only=True)
Change = Callable[[dict[str, Any]], None]  # of a saved state, where it lies


def read_monitor(where: Path, change: Change) -> dict[str, Any]:
    """The last report of a monitor that goes on from the saved state."""
    state = copy.deepcopy(MONITOR)
    change(state)
    for part in ("window", "epoch", "worst", "unread"):
        change(state[part])
    resumed = golden.monitor()
    resumed.load_state_dict(state)
    last = resumed.close()
    return {} if last is None else golden.seen(last)


def read_totals(where: Path, change: Change) -> dict[str, Any]:
    """The report of saved totals."""
    state = copy.deepcopy(TOTALS)
    change(state)
    totals = Totals.from_state_dict(state, golden.tally().extras)
    return {} if totals.empty else golden.seen(totals.report())


def read_tally(where: Path, change: Change) -> dict[str, Any]:
    """The report of a tally within a module, after the rest of the run."""
    state = copy.deepcopy(CHECKPOINT["state_dict"])
    _change_tally(state, change)
    module = golden.Watched()
    module.load_state_dict(state, strict=True)
    before = module.tally.totals()
    for step in range(golden.STEPS, 2 * golden.STEPS):
        module.tally.update(golden.stats(step), **golden.data(), step=step)
    return {} if before.empty else golden.seen(module.tally.report())


def read_callback(where: Path, change: Change) -> dict[str, Any]:
    """The report of the window that the checkpoint cut, of a trainer that goes on from it."""
    saved = copy.deepcopy(CHECKPOINT)
    (state,) = (value for key, value in saved["callbacks"].items() if key.startswith("PerplexityMonitor"))
    change(state["monitor"])
    for part in ("window", "epoch", "worst", "unread"):
        change(state["monitor"][part])
    torch.save(saved, where / "changed.ckpt")
    _, rows = golden.fit(where, ckpt_path=where / "changed.ckpt")
    report = golden.window(rows)
    return report if report["numbers"]["tokens"] == NUMBERS["callback"]["numbers"]["tokens"] else {}


def _change_tally(state: dict[str, Any], change: Change) -> None:
    """Let a tally's tensors be changed as plain integers by name."""
    names = json.loads(bytes(state["tally.names"].tolist()))
    plain = {"version": names["version"], "extras": {}}
    for kind in ("sums", "maxima"):
        plain[kind] = dict(zip(names[kind], state[f"tally.{kind}"].tolist()))
    change(plain)
    for kind in ("sums", "maxima"):
        names[kind], state[f"tally.{kind}"] = [*plain[kind]], torch.tensor([*plain[kind].values()])
    names["version"] = plain.get("version")
    state["tally.names"] = torch.tensor(list(json.dumps(names).encode()), dtype=torch.uint8)


READERS = {"monitor": read_monitor, "totals": read_totals, "tally": read_tally, "callback": read_callback}


def unchanged(state: dict[str, Any]) -> None:
    """As it was saved."""


def assert_as_saved(found: Any, name: str) -> None:
    """Integers are the same; floats but for the last bits of the machine's exp and log."""
    _assert_alike(found, NUMBERS[name], name)


def _assert_alike(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, dict):
        assert found.keys() >= expected.keys(), where  # a later version may have more
        for name, value in expected.items():
            _assert_alike(found[name], value, f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, value in enumerate(expected):
            _assert_alike(found[index], value, f"{where}.{index}")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=1e-9) or repr(found) == repr(expected), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("name", READERS)
def test_a_state_reads_as_it_was_saved(name: str, tmp_path: Path) -> None:
    """The same numbers and the same worst tokens, of all of it and of what comes after it."""
    assert_as_saved(READERS[name](tmp_path, unchanged), name)


@pytest.fixture
def _in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sums, and two maxima, stand in each other's place."""
    for kind, one, two in (("SUMS", "correct", "overconfident_errors"), ("MAXIMA", "vocab_size", "token_loss_bits")):
        swap = {one: two, two: one}
        monkeypatch.setattr(layout, kind, tuple(swap.get(name, name) for name in getattr(layout, kind)))


@pytest.mark.usefixtures("_in_another_order")
@pytest.mark.parametrize("name", READERS)
def test_cells_in_another_order_read_the_same(name: str, tmp_path: Path) -> None:
    """A state knows its integers by name."""
    assert_as_saved(READERS[name](tmp_path, unchanged), name)


@pytest.mark.parametrize("name", READERS)
def test_a_state_without_a_name_that_was_added_later_reads_the_same(name: str, tmp_path: Path) -> None:
    """The integers that it lacks read as nothing counted: these are 0 and −1 in the saved run."""

    def lacking(state: dict[str, Any]) -> None:
        if "sums" in state:
            assert (state["sums"].pop("duplicate_sequences"), state["maxima"].pop("invalid_target_example")) == (0, -1)

    assert_as_saved(READERS[name](tmp_path, lacking), name)


@pytest.mark.parametrize("name", READERS)
def test_names_that_are_no_more_are_told_once(name: str, tmp_path: Path) -> None:
    """One warning names them, however many parts of the state have them; the rest is read."""

    def more(state: dict[str, Any]) -> None:
        if "sums" in state:
            state["sums"] = {"of_old": 5, **state["sums"]}
            state["maxima"]["also_old"] = 7

    with pytest.warns(RuntimeWarning, match="pplmon: the checkpoint holds") as told:
        found = READERS[name](tmp_path, more)
    (warning,) = (str(one.message) for one in told if "pplmon: " in str(one.message))
    assert "holds what this run does not count: of_old, also_old. That is left out" in warning
    assert_as_saved(found, name)


@pytest.mark.parametrize("version", [None, 1, 99])
@pytest.mark.parametrize("name", READERS)
def test_a_state_of_another_version_begins_anew(name: str, version: int | None, tmp_path: Path) -> None:
    """With one warning that says so; those of 0.1 bear version 1, or none."""
    with pytest.warns(RuntimeWarning, match="pplmon: the checkpoint's state has version") as told:
        found = READERS[name](tmp_path, lambda state: state.update(version=version))
    (warning,) = (str(one.message) for one in told if "pplmon: " in str(one.message))
    assert f"has version {version!r}, not 2; monitoring begins anew" in warning
    assert found == {}


def test_a_tally_of_version_01_begins_anew() -> None:
    """Its state dict names nothing, and may have other shapes; what was counted before it is gone, too."""
    state = {name: tensor for name, tensor in CHECKPOINT["state_dict"].items() if name not in ("tally.names", "weight")}
    state = {name.removeprefix("tally."): tensor for name, tensor in state.items()}
    tally = golden.tally()
    tally.update(golden.stats(0))
    with pytest.warns(RuntimeWarning, match="version None, not 2; monitoring begins anew"):
        tally.load_state_dict({**state, "sums": state["sums"][:-2]}, strict=True)
    assert tally.totals() == golden.tally().totals()


def test_an_extra_that_a_run_lacks_is_told_and_one_that_is_new_begins() -> None:
    """By its name; numbers of other extras are not taken for its own."""
    lacking = pplmon.Monitor(alerts=[])
    with pytest.warns(RuntimeWarning, match=r"does not count: Entropy\(\)\. That is left out"):
        lacking.load_state_dict(MONITOR)
    report = lacking.close()
    assert report is not None and report.tokens == NUMBERS["monitor"]["numbers"]["tokens"]
    new = pplmon.Monitor(alerts=[], tally=golden.tally())
    new.load_state_dict(pplmon.Monitor(alerts=[]).state_dict())
    new.observe(golden.stats(0))
    last = new.close()
    assert last is not None and last.numbers["mean_entropy"] is not None


def test_the_journal_reads_as_it_was_written() -> None:
    """Every row, for those who read it and for a replay."""
    rows = read_journal(HERE)
    kinds = [row["kind"] for row in rows]
    assert {kind: kinds.count(kind) for kind in kinds} == {"run": 1, "judged": 12, "report": 4, "alert": 9, "worst": 1}
    reports = {(row["stage"], row["step"]): row for row in rows if row["kind"] == "report"}
    assert [*reports] == [("train", 3), ("val", 6), ("train", 7), ("train", 10)]
    assert_as_saved({name: reports["train", 10][name] for name in ("numbers", "worst", "worst_sequences")}, "monitor")
    series = replay.read(HERE / "pplmon.jsonl")
    judged = [row for segment in series.segments for row in segment.rows]
    assert [row.step for row in judged if row.stage == "train"] == [*range(11)]
    assert sum(row.numbers["tokens"] for row in judged if row.stage == "train") == 718 + 718 + 448
    assert [alert["rule"] for alert in series.live] == [row["rule"] for row in rows if row["kind"] == "alert"]


def test_the_run_is_what_was_saved(tmp_path: Path) -> None:
    """Made anew, the run has the numbers of the files: what this version writes, it reads."""
    golden.main(tmp_path / "made", tmp_path / "scratch")
    made = json.loads((tmp_path / "made/numbers.json").read_text())
    for name in NUMBERS:
        assert_as_saved(made[name], name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = golden.monitor()
        resumed.load_state_dict(json.loads((tmp_path / "made/monitor.json").read_text()))
        last = resumed.close()
    assert last is not None
    assert_as_saved(golden.seen(last), "monitor")
