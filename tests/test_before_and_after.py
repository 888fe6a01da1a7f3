"""Two commits are compared by what is counted and by the callback's speed: the tools, and that they notice a change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import callback, counts, turns

ROOT = Path(__file__).parent.parent


def test_counted_steps_repeat_and_do_not_wait() -> None:
    """The figures of two runs are equal; a read-out takes more operators than a step that only counts, and none waits."""
    first = counts.steps()
    assert counts.differences(first, counts.steps()) == []
    assert [first[f"step, {name}, syncs"] for name in ("counted", "judged", "logged")] == [0, 0, 0]
    assert 0 < first["step, counted, launches"] < first["step, judged, launches"]


def test_updates_are_counted_in_each_way_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four costs for each; the kernel that needs a GPU has none."""
    monkeypatch.setattr(counts, "SHAPES", counts.SHAPES[:1])
    found = counts.updates()
    names = {name.removeprefix("update, ").split(", 64 ×")[0] for name in found}
    assert {"pplmon eager", "pplmon TokenTally.update"} <= names and not any("triton" in name for name in names)
    assert len(found) == 4 * len(names)
    assert all(value == 0 for name, value in found.items() if name.endswith("syncs"))


@pytest.mark.ranks
def test_read_outs_are_counted_by_ranks() -> None:
    """Two collectives of a constant size."""
    found = counts.read_outs([2])
    assert found["read-out, ranks: 2, collectives"] == 2 and 0 < found["read-out, ranks: 2, bytes"] < 20 * 1024


def test_a_figure_that_changed_is_printed_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So is one that went, or is new."""
    file = tmp_path / "counts.json"
    monkeypatch.setattr(counts, "count", lambda ranks: {"a": 3, "b": 4.5})
    assert counts.main(["--out", str(file)]) == counts.main(["--compare", str(file)]) == 0
    monkeypatch.setattr(counts, "count", lambda ranks: {"a": 4, "c": 1})
    assert counts.main(["--compare", str(file)]) == 1
    said = capsys.readouterr().out
    assert "a: 3 → 4\nb: 4.5 → None\nc: None → 1\n3 of 2 figures differ" in said


@pytest.mark.slow
def test_a_turn_runs_the_other_checkout_s_package(tmp_path: Path) -> None:
    """Under this one's benchmark; a folder without a package is refused, and one that fails is told with its traceback."""
    other = (tmp_path / "other").resolve()
    (other / "pplmon").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"other has no pplmon/__init__.py: give the root of a checkout"):
        turns.compare(tmp_path / "other", 1, 1)
    (other / "pplmon/__init__.py").write_text("raise RuntimeError('that of the other checkout')\n")
    with pytest.raises(RuntimeError, match=r"failed with the pplmon of .*other:\n(.|\n)*that of the other checkout"):
        turns.turn(other, 1)
    (other / "pplmon/__init__.py").unlink()
    (other / "pplmon").rmdir()
    (other / "pplmon").symlink_to(ROOT / "pplmon")
    taken = turns.turn(other, 1)
    assert set(taken) == {turns.EMPTY, turns.OURS} and min(taken.values()) > 0


def test_turns_alternate_and_give_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours adds a tenth more in every round, so the ratio is +10 % without noise; the whole step's is smaller."""
    (tmp_path / "pplmon").mkdir()
    (tmp_path / "pplmon/__init__.py").touch()
    seen: list[Path] = []

    def turn(checkout: Path, steps: int) -> dict[str, float]:
        seen.append(checkout)
        slow = 1 + (len(seen) - 1) // 2  # the machine is slower in each round than in the last
        added = 1.1e-3 if checkout == turns.ROOT else 1e-3
        return {turns.EMPTY: 1e-3 * slow, turns.OURS: (1e-3 + added) * slow}

    monkeypatch.setattr(turns, "turn", turn)
    out = tmp_path / "out.json"
    callback.main(["--against", str(tmp_path), "--rounds", "4", "--out", str(out)])
    here, there = turns.ROOT, tmp_path.resolve()
    assert seen == [there, here, here, there, there, here, here, there]
    found = json.loads(out.read_text())["µs"]
    assert found["ratio of what is added"] == {name: pytest.approx(10) for name in ("percent", "low", "high")}
    assert found["ratio of the whole step"]["percent"] == pytest.approx(5)
    assert found["added"]["here"] == pytest.approx(1.1 * found["added"]["there"])
