"""The benchmarks of speed run, count what is known, and write what they print; docs/performance.md keeps its parts."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from benchmarks import callback, decoder, measure, meter, step, ways
from pplmon.report.numbers import CORE

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One tiny run of all that needs no compiler."""
    out = tmp_path_factory.mktemp("measure") / "result.json"
    threads = torch.get_num_threads()
    shape = ["--tokens", "64", "--vocab", "4099", "--dtype", "float32", "bfloat16", "--rounds", "3"]
    measure.main([*shape, "--device", "cpu", "--threads", "1", "--ways", "eager", "tally", "accuracy", "F.cross_entropy +", "Liger",
                  "--out", str(out)])  # fmt: skip
    torch.set_num_threads(threads)
    return json.loads(out.read_text())


def test_a_row_for_each_way_and_shape(measured: dict) -> None:
    """The floor first; the machine, the settings, and why a way is not there, beside the numbers."""
    rows = measured["results"]
    names = ["floor: one read", "pplmon eager", "pplmon eager, entropy", "pplmon TokenTally.update", ways.PEER,
             "F.cross_entropy + argmax"]  # fmt: skip
    assert [row["way"] for row in rows] == 2 * names
    assert measured["not_run"] == {"Liger cross-entropy": "needs a CUDA device"}
    assert measured["machine"]["torch"] == version("torch")
    assert measured["settings"]["tokens"] == [64]
    for row in rows[1:6]:
        assert len(row["all_ms"]) == 3 and row["min_ms"] <= row["median_ms"]
        assert row["over_floor"] == measure.paired(row["all_ms"], rows[0]["all_ms"])
    by_name = {row["way"]: row for row in rows[:6]}
    peer = by_name[ways.PEER]
    assert peer["faster_than_torchmetrics"] == 1
    ours = by_name["pplmon eager"]
    assert ours["faster_than_torchmetrics"] == measure.paired(peer["all_ms"], ours["all_ms"])
    assert measure.paired([2.0, 9.0, 40.0], [1.0, 3.0, 10.0]) == 3.0


def test_what_is_known_of_the_ways_is_counted(measured: dict) -> None:
    """torchmetrics waits three times and makes the logits anew once; we never wait; bf16 arithmetic is off and ours is not."""
    narrow, wide = measured["results"][6:], measured["results"][:6]
    for rows in (wide, narrow):
        for row in rows[1:4]:
            assert row["syncs"] == 0 and row["launches"] > 5 and row["mean_loss_off"] < 1e-5
        peer = rows[4]
        assert peer["syncs"] == 3 and 1.0 <= peer["peak_over_logits"] < 1.2
        assert rows[5]["syncs"] == 0 and rows[5]["launches"] >= 3
    assert narrow[4]["mean_loss_off"] > 1e-4


def test_the_table_is_that_of_the_page(measured: dict) -> None:
    """--markdown prints the header that docs/performance.md has, and a line for each row."""
    lines = measure.markdown(measured["results"]).splitlines()
    assert len(lines) == 2 + len(measured["results"])
    assert lines[0] in (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert all(line.count("|") == lines[0].count("|") for line in lines)


COUNTED: list[tuple[str, Callable[[torch.Tensor], object], dict[str, float]]] = [
    ("a copy", lambda x: x.neg(), {"peak_bytes": 4000, "allocations": 1, "launches": 1, "syncs": 0}),
    (
        "two copies, one kept",
        lambda x: x.neg().exp(),
        {"peak_bytes": 8000, "allocations": 2, "launches": 2, "syncs": 0},
    ),
    ("a view", lambda x: x[3:].view(1, -1), {"peak_bytes": 0, "allocations": 0, "launches": 0, "syncs": 0}),
    ("a read by the host", lambda x: x[0].item(), {"peak_bytes": 0, "launches": 0, "syncs": 1}),
]


@pytest.mark.parametrize(("name", "call", "want"), COUNTED, ids=[case[0] for case in COUNTED])
def test_costs(name: str, call: Callable[[torch.Tensor], object], want: dict[str, float]) -> None:
    x = torch.randn(1000)
    call(x)
    assert want.items() <= meter.costs(lambda: call(x), CPU).items()


def test_a_mask_is_a_wait() -> None:
    x = torch.randn(1000)
    assert meter.costs(lambda: x[x > 0], CPU)["syncs"] == 1


def test_turns_are_taken() -> None:
    """Every run once in each round, and not always after the same one."""
    seen: list[str] = []
    runs = {name: lambda name=name: seen.append(name) for name in "abc"}
    times = meter.interleaved(runs, meter.Timer(CPU), rounds=3)
    assert [len(taken) for taken in times.values()] == [3] * 3
    assert "".join(seen[3 * meter.WARM_UP :]) == "abc" + "bca" + "cab"


def test_a_step_is_compared(tmp_path: Path) -> None:
    """A tiny model; its ratios and their intervals are written, and all blocks, so that they can be had again."""
    threads = torch.get_num_threads()
    shape = ["--size", "1m", "--vocab", "64", "--batch", "1", "--length", "8", "--pairs", "3", "--block", "1"]
    step.main([*shape, "--device", "cpu", "--dtype", "float32", "--threads", "1", "--out", str(tmp_path / "r.json")])
    torch.set_num_threads(threads)
    result = json.loads((tmp_path / "r.json").read_text())["results"]
    assert result["parameters"] == decoder.parameters(
        decoder.build(decoder.SIZES["1m"]._replace(vocab=64), CPU, torch.float32, False)
    )
    assert len(result["blocks_s"]) == 3 and 0 < result["monitor_host_ms"] < 1000
    for name in ("overhead", "noise"):
        assert result[name]["low"] <= result[name]["percent"] <= result[name]["high"]


def test_the_monitor_is_shown_every_step_of_its_blocks_and_no_other() -> None:
    options = argparse.Namespace(
        device="cpu", size="1m", vocab=64, dtype="float32", checkpoint=True, batch=1, length=8, kernel=None
    )
    training = step.Training(options)
    training.block(2, monitored=False)
    training.block(3, monitored=True)
    assert training.taken == 5 and training.monitor.close().tokens_seen == 3 * 8


def test_an_interval_holds_what_was_put_in() -> None:
    """1 % of overhead under 0.5 % of noise is found, and none is not."""
    noise = torch.randn(40, generator=torch.Generator().manual_seed(1)).mul(0.005).tolist()
    without, one = step.interval(noise), step.interval([0.01 + x for x in noise])
    assert without["low"] < 0 < without["high"] < 0.5
    assert 0.5 < one["low"] < 1.0 < one["high"] < 1.5
    assert step.interval([0.02] * 5) == {name: pytest.approx(2.02, abs=0.001) for name in ("percent", "low", "high")}


def test_sizes_are_what_they_are_called() -> None:
    """Within a tenth, blocks and one matrix of words together."""
    for name, shape in decoder.SIZES.items():
        said = float(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]]
        assert 12 * shape.width**2 * shape.layers + shape.width * shape.vocab == pytest.approx(said, rel=0.1)
        assert shape.width % shape.heads == 0


def test_the_page_says_what_is_not_measured() -> None:
    """Every GPU target stands there with its number, and the parts that belong to it have their place."""
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    for target in ("≤ 1.15 ×", "≤ 1.2 ×", "≤ 1.1 ×", "≤ 1.5 ×", "≥ 4 ×", "64 B per token", "≤ 0.5 %", "≤ 0.1 %"):
        assert target in page, target
    assert "one NVIDIA H200" in page and re.search(r"NCCL are \*not yet measured\*", page)
    for part in ("The Triton kernel", "Accumulating", "A vocabulary that is split over ranks", "The callback"):
        assert re.search(rf"^## {part}", page, re.MULTILINE), part


def test_the_callback_is_timed_beside_empty_and_glue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every variant has its row, and the file holds what the table shows."""
    out = tmp_path / "callback.json"
    callback.main(["--steps", "40", "--rounds", "1", "--out", str(out)])
    added = {name: row["median"] for name, row in json.loads(out.read_text())["µs"].items()}
    assert list(added) == list(callback.VARIANTS)
    shown = capsys.readouterr().out
    assert "PerplexityMonitor less measuring" in shown and f"{added['an empty callback']:,.0f}" in shown


def test_the_glue_logs_the_numbers_of_the_callback() -> None:
    """The comparison is of the same ten numbers, under the same keys."""
    trainer, _ = callback.trained("torchmetrics and self.log, the same ten", 3)
    assert {key for key in trainer.callback_metrics if "/" in key} == {f"train/{name}" for name in CORE}
