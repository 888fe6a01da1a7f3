"""``make gpu`` without a GPU: its parts run, tiny, on a CPU; what fails, hangs or is missing costs only itself; targets are judged right."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, meter
from benchmarks.measure import paired
from benchmarks.on_gpu import part as worker
from benchmarks.on_gpu import show
from benchmarks.on_gpu.kept import Kept
from benchmarks.on_gpu.plan import INTERPRETED, NO_DEVICE, PARTS, Part
from tests.interpreter import run

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


# The parts, tiny. Nothing may be wrong in them that a CPU can show: time on a GPU is dear.


def dry(name: str, file: str) -> dict[str, Any]:
    """Run a part as its own process would in a dry run, and return what it kept."""
    kept = Kept(Path(file), 100.0)
    worker.run(name, kept, CPU)
    assert json.loads(Path(file).read_text()) == json.loads(json.dumps(kept.content, default=str))
    return kept.content


def checked(name: str, tmp_path: Path) -> dict[str, Any]:
    """Run a part where Triton does in a dry run what it does, and let it fail on nothing."""
    file = str(tmp_path / "part.json")
    content = run(dry, name, file) if name in INTERPRETED else dry(name, file)
    assert content["errors"] == [] and content["found"]["warnings"] == []
    return content["found"]


@pytest.mark.slow
def test_exactness(tmp_path: Path) -> None:
    """Every kernel and dtype is within the bound, in every layout, and the kernels that count find what arrays find."""
    pytest.importorskip("triton", reason="there is no Triton for this platform")
    found = checked("exactness", tmp_path)
    assert {(row["kernel"], row["dtype"]) for row in found["tokens"]} == {
        (kernel, dtype) for kernel in ("triton", "eager") for dtype in ("bfloat16", "float16", "float32")
    }
    assert all(row["nll"] <= 2e-6 and row["wrong_ids"] == 0 for row in found["tokens"])
    assert len(found["counting"]) == 4 and not any(found["counting"].values())


def test_an_error_would_be_seen() -> None:
    """One loss that is off by more than the bound, one wrong argmax, one NaN."""
    from benchmarks.on_gpu import exactness
    from pplmon import token_stats

    logits, targets = torch.randn(9, 50), torch.arange(9)
    stats = token_stats(logits, targets)
    assert exactness.errors(stats, logits, targets)["nll"] < 2e-6
    stats.nll[3] += 1e-4
    stats.predicted[5] += 1
    found = exactness.errors(stats, logits, targets)
    assert found["nll"] > 1e-5 and found["wrong_ids"] == 1
    stats.nll[4] = torch.nan
    assert exactness.errors(stats, logits, targets)["nll"] == float("inf")


def test_launches(tmp_path: Path) -> None:
    """Every kind of update is counted; a replay counts what an update counts; a read-out is right."""
    found = checked("launches", tmp_path)
    assert len(found["calls"]) == 10
    assert all(row["syncs"] == 0 and row["refused"] is None for row in found["calls"].values())
    assert found["graph"] == {"replays_count_what_updates_count": True}
    assert found["beside_the_step"]["right"]


def test_nccl(tmp_path: Path) -> None:
    """With gloo in its place: two collectives, and two ranks are one."""
    found = checked("nccl", tmp_path)
    assert found["nccl"]["collectives"] == 2 and found["nccl"]["right"]
    assert len(found["two_ranks_are_one"]) == 2 and all(all(rank.values()) for rank in found["two_ranks_are_one"])


def test_instructions(tmp_path: Path) -> None:
    """The loop reads 16 bytes at once, by whatever Triton is here."""
    pytest.importorskip("triton", reason="there is no Triton for this platform")
    assert [row["bytes_per_load"] for row in checked("instructions", tmp_path)["rows"]] == [16, 16]


def test_speed(tmp_path: Path) -> None:
    """Every way that a CPU has, beside the fastest of three reads."""
    pytest.importorskip("triton", reason="there is no Triton for this platform")
    found = checked("speed", tmp_path)
    assert {row["read_by"] for row in found["rows"] if "read_by" in row} <= {"x.sum()", "x.amax()", "a Triton program"}
    assert len(found["rows"]) == 10 and len(found["bandwidth_gb_s"]) == 4
    assert "needs a CUDA device" in found["not_run"]["pplmon triton"]


@pytest.mark.parametrize("name", ["compiling", "tuning"])
def test_constants_are_tried_out(name: str, tmp_path: Path) -> None:
    """All are compiled beforehand and timed, and the source keeps its own."""
    pytest.importorskip("triton", reason="there is no Triton for this platform")
    from pplmon.measure.triton import launch as kernel

    before = (kernel.MAX_WARPS, kernel.MIN_ROUNDS, kernel.CHUNKS_PER_THREAD)
    found = checked(name, tmp_path)
    if name == "compiling":
        assert len(found["compiled"]) == 8
    else:
        assert found["choice"]["gain"] >= 0 and set(found["counting_ms"]) == {"now", "WIDTH = 64"}
    assert before == (kernel.MAX_WARPS, kernel.MIN_ROUNDS, kernel.CHUNKS_PER_THREAD)


def test_counting(tmp_path: Path) -> None:
    """Six ways, with the waits that torchmetrics is known for and ours without."""
    rows = {row["way"]: row for row in checked("counting", tmp_path)["rows"]}
    assert len(rows) == 6
    assert rows["torchmetrics: mean, maximum, accuracy"]["syncs"] > 0 == rows["array operations"]["syncs"]


def test_training(tmp_path: Path) -> None:
    """A tiny model, with its interval."""
    step = checked("training", tmp_path)["step"]
    assert step["overhead"]["low"] <= step["overhead"]["percent"] <= step["overhead"]["high"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tests", "kernel-tests"])
def test_tests_are_collected(name: str, tmp_path: Path) -> None:
    """By a pytest of its own, as in the part's process."""
    file = tmp_path / "part.json"
    command = [sys.executable, "-m", "benchmarks.on_gpu.part", name, str(file), "100", "--dry"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    assert json.loads(file.read_text())["found"]["collected"] >= 14


def test_outcomes_are_kept_as_they_come(tmp_path: Path) -> None:
    """Passed, skipped, failed, not to be imported: also in a run of pytest that is then stopped."""
    from benchmarks.on_gpu.suite import Outcomes

    kept = Kept(tmp_path / "part.json", 10.0)
    plugin = Outcomes(kept)
    plugin.pytest_collection_finish(SimpleNamespace(items=[1, 2, 3]))
    plugin.pytest_collectreport(SimpleNamespace(failed=True, nodeid="a.py", longreprtext="no module b"))
    for when, outcome in (("setup", "passed"), ("call", "passed"), ("setup", "skipped"), ("call", "failed")):
        report = SimpleNamespace(when=when, outcome=outcome, nodeid="a.py::test", longreprtext="E  1 != 2")
        report.failed, report.skipped = outcome == "failed", outcome == "skipped"
        plugin.pytest_runtest_logreport(report)
    found = json.loads((tmp_path / "part.json").read_text())["found"]
    assert found["collected"] == 3 and found["outcomes"] == {"passed": 1, "skipped": 1, "failed": 2}
    assert found["failures"] == {"a.py (import)": "no module b", "a.py::test (call)": "E  1 != 2"}


# One part's process.


def test_a_step_that_fails_costs_only_itself(tmp_path: Path) -> None:
    """Its error and its place are kept, and what came before and after."""
    kept = Kept(tmp_path / "part.json", 10.0)
    kept.keep("one", 1)
    with kept.step("two"):
        raise ArithmeticError("of another kind")
    kept.table("three", ["a", "b"], [["x|y", 2]])
    content = json.loads((tmp_path / "part.json").read_text())
    (error,) = content["errors"]
    assert (error["step"], error["error"]) == ("two", "ArithmeticError: of another kind")
    assert content["found"] == {"one": 1} and content["tables"]["three"].endswith("| x\\|y | 2 |")


def test_what_pplmon_warns_of_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that was given up, above all."""

    def warned(kept: Kept, device: torch.device) -> None:
        for text in ("pplmon: the kernels were given up", "another's", "pplmon: the kernels were given up"):
            warnings.warn(text, RuntimeWarning, stacklevel=1)

    monkeypatch.setattr(worker, "import_module", lambda name: SimpleNamespace(run=warned))
    kept = Kept(tmp_path / "part.json", 10.0)
    worker.run("speed", kept, CPU)
    assert kept.content["found"]["warnings"] == ["pplmon: the kernels were given up"]


def test_a_part_without_a_gpu_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert worker.main(["speed", str(tmp_path / "part.json"), "10"]) == NO_DEVICE


# All parts together, with processes that stand in for them.

STAND_IN = """
import json, os, subprocess, sys, time
name, file, seconds = sys.argv[1:4]
begun = time.time()
def keep(**more):
    found = {"begun": begun, "ended": time.time(), **more}
    json.dump({"found": found, "tables": {"a table": "| 1 |"}, "errors": []}, open(file, "w"))
print("this is", name)
if name == "hangs":
    keep(child=subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid)
    time.sleep(60)
if name == "dies":
    os.abort()
time.sleep(0.3)
keep(machine={"gpu": "a card", "torch": "2"}, seconds=float(seconds))
sys.exit(name == "fails")
"""


def parts(*names: str, **more: Any) -> list[Part]:
    """Parts that only have a name and a limit."""
    return [Part(name, "", 1.5 if name == "hangs" else 20.0, f"what {name} does", **more) for name in names]


@pytest.fixture
def _stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(gpu, "COMMAND", [sys.executable, str(script)])
    monkeypatch.setattr(gpu, "side_by_side", lambda: 4)


def alive(process: int) -> bool:
    """Tell whether a process runs on; one that has ended and waits for its parent to notice does not."""
    try:
        return "(zombie)" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def ends(process: int) -> bool:
    """Wait a moment for a process that was killed to be gone."""
    until = time.monotonic() + 10
    while alive(process) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(process)


@pytest.mark.usefixtures("_stand_in")
def test_parts_that_hang_die_or_fail_cost_only_themselves(tmp_path: Path) -> None:
    """Their results up to there, and what they printed, are kept; a part that hangs is ended with all that it began."""
    result = gpu.run(parts("hangs", "dies", "fails", "works"), 60.0, tmp_path / "out", dry=False)
    states = {name: part["state"] for name, part in result["parts"].items()}
    assert states == {
        "hangs": "stopped at its limit",
        "dies": "died with status -6",
        "fails": "done, with errors",
        "works": "done",
    }
    assert ends(result["parts"]["hangs"]["found"]["child"])
    assert "this is dies" in result["parts"]["dies"]["log"] and "log" not in result["parts"]["works"]
    assert result["machine"] == {"gpu": "a card", "torch": "2"}
    assert json.loads((tmp_path / "out/result.json").read_text()) == json.loads(json.dumps(result))
    page, log = ((tmp_path / "out" / name).read_text() for name in ("table.md", "log.txt"))
    assert page.count("| 1 |") == 3 and "a card" in page and "## works\n\nwhat works does." in page
    assert log.count("this is") == 4


@pytest.mark.usefixtures("_stand_in")
def test_what_takes_times_runs_alone(tmp_path: Path) -> None:
    """The others side by side, before it."""
    result = gpu.run([*parts("a", "b"), *parts("c", "d", alone=True)], 60.0, tmp_path, dry=False)
    a, b, c, d = ((part["found"]["begun"], part["found"]["ended"]) for part in result["parts"].values())
    assert max(a[0], b[0]) < min(a[1], b[1])
    assert max(a[1], b[1]) <= c[0] < c[1] <= d[0]


@pytest.mark.usefixtures("_stand_in")
def test_what_is_not_installed_is_left_out_by_name(tmp_path: Path) -> None:
    """And what no time is left for."""
    result = gpu.run([*parts("a", needs=("torch", "nothing_such")), *parts("b")], 60.0, tmp_path, dry=False)
    assert result["parts"]["a"]["state"] == "left out: nothing_such is not installed"
    assert result["parts"]["b"]["state"] == "done"
    result = gpu.run(parts("a", "b"), 5.0, tmp_path, dry=False)
    assert {part["state"] for part in result["parts"].values()} == {"left out: no time is left"}


@pytest.mark.usefixtures("_stand_in")
def test_the_limit_is_that_of_all(tmp_path: Path) -> None:
    """A part is told what is left, if that is less than its own."""
    result = gpu.run(parts("a"), 18.0, tmp_path, dry=False)
    assert 12.0 < result["parts"]["a"]["found"]["seconds"] <= 14.0


@pytest.mark.parametrize(("name", "status"), [("works", 0), ("fails", 0), ("dies", 1)])
@pytest.mark.usefixtures("_stand_in")
def test_the_status_is_1_where_nothing_ran(
    name: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part that failed at something ran."""
    monkeypatch.setattr(gpu, "PARTS", parts(name))
    monkeypatch.setattr(gpu.signal, "signal", lambda *handler: None)
    assert gpu.main(["--out", str(tmp_path)]) == status
    shown = capsys.readouterr().out
    assert f"{name}: what {name} does; at most 20 s" in shown and "| not measured |" in shown


@pytest.mark.usefixtures("_stand_in")
def test_nothing_runs_on_after_an_interruption(tmp_path: Path) -> None:
    """As by Ctrl-C: parts under way are ended."""
    under_way = gpu.outcomes(parts("a", "hangs"), time.monotonic() + 60, 2, tmp_path, dry=False)
    assert next(under_way)[0].name == "a"
    process = json.loads((tmp_path / "hangs.json").read_text())["found"]["child"]
    assert alive(process)
    under_way.close()
    assert ends(process)


@pytest.mark.parametrize(
    ("printed", "width"), [("Default\n", max(1, (os.cpu_count() or 1) // 2)), ("Exclusive_Process\n", 1)]
)
def test_a_card_for_one_process_has_one_at_a_time(printed: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.subprocess, "run", lambda *command, **how: SimpleNamespace(stdout=printed))
    assert gpu.side_by_side() == width


def test_a_dry_run_does_not_see_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton interprets only where it is to run; pplmon is found in the checkout, before what else was named."""
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for part in PARTS:
        real, tiny = (gpu.environment(part, dry) for dry in (False, True))
        assert real["PYTHONPATH"] == os.pathsep.join([str(ROOT), "elsewhere"])
        assert tiny["CUDA_VISIBLE_DEVICES"] == "" and "TRITON_INTERPRET" not in real
        assert ("TRITON_INTERPRET" in tiny) == (part.name in INTERPRETED)


@pytest.mark.slow
def test_a_whole_dry_run_of_one_part(tmp_path: Path) -> None:
    """From make to the table, with the real command."""
    command = [
        "make",
        "gpu",
        f"PYTHON={sys.executable}",
        f"ARGS=--dry --only training --out {tmp_path}",
        "--no-print-directory",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "training: done" in done.stdout and "a CPU: a dry run" in done.stdout and "MISSED" not in done.stdout
    assert json.loads((tmp_path / "result.json").read_text())["parts"]["training"]["errors"] == []


# The plan, and what is made of the results.


def test_the_plan_fits_its_limit() -> None:
    """Were every part stopped at its own limit, the last would still have had its time."""
    together = max(part.seconds for part in PARTS if not part.alone)
    alone = [part for part in PARTS if part.alone]
    assert list(PARTS)[-len(alone) :] == alone
    assert together + sum(part.seconds for part in alone) <= gpu.LIMIT_S - gpu.RESERVE_S
    assert len({part.name for part in PARTS}) == len(PARTS) and set(INTERPRETED) < {part.name for part in PARTS}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_is_there(part: Part) -> None:
    module, function = part.run.split(".")
    if not part.missing():
        assert callable(getattr(importlib.import_module(f"benchmarks.on_gpu.{module}"), function))


def test_the_parent_needs_nothing_but_python() -> None:
    """It runs where packages are missing, and says so."""
    check = "import sys, benchmarks.gpu; print(*(n for n in ('torch', 'numpy', 'rich', 'pplmon') if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def speed_rows(over: float, compile_over: float) -> list[dict[str, Any]]:
    """Rows of one shape: ours, and torch.compile, by how many times the floor they take."""
    ways = {show.TRITON: over, show.ENTROPY: over, show.UPDATE: over, show.COMPILE: compile_over}
    shape = {"tokens": 1000, "vocab": 32_000, "dtype": "bfloat16", "peak_bytes": 2**20 + 31_000}
    return [
        {**shape, "way": way, "over_floor": x, "faster_than_torchmetrics": 5 / x, "all_ms": [x, x]}
        for way, x in ways.items()
    ]


def test_targets_are_judged() -> None:
    """Met, missed, and not measured."""
    judged = {t.what: t for t in show.targets({"speed": {"found": {"rows": speed_rows(1.1, 3.3)}}})}
    assert all(judged[what].met for what in ("bf16, over one read", "times as fast as torchmetrics"))
    assert judged["times as fast as torch.compile"].found == "3.0"
    assert judged["peak memory of an update, B a token, less 1 MiB"].found == "31.0"
    assert judged["fp32, over one read"].found is None and judged["V % 8 != 0, over one read"].found is None
    judged = {t.what: t for t in show.targets({"speed": {"found": {"rows": speed_rows(1.3, 2.0)}}})}
    missed = [what for what, target in judged.items() if target.found is not None and target.met is False]
    assert missed == [
        "bf16, over one read",
        "bf16 with entropy",
        "times as fast as torchmetrics",
        "times as fast as torch.compile",
    ]


def test_a_failed_test_is_a_missed_target() -> None:
    judged = {t.what: t for t in show.targets({"tests": {"found": {"outcomes": {"passed": 3, "failed": 1}}}})}
    assert judged["tests"].found == "1 failed, 3 passed" and not judged["tests"].met
    assert judged["kernel-tests"].found is None


def test_a_rule_is_chosen_by_the_times_of_programs() -> None:
    """Long rows that want eight warps, and short ones that want one, get them."""
    pytest.importorskip("triton", reason="there is no Triton for this platform")
    from benchmarks.on_gpu import tuning

    times = {}
    for vocab, wanted in ((1000, 1), (152_064, 8)):
        all_programs = [(warps, chunks) for warps in tuning.WARPS for chunks in tuning.PER_THREAD]
        times[vocab, torch.bfloat16] = {
            program: 1.0 + abs(program[0] - wanted) + (program[1] != 4) for program in all_programs
        }
    found = tuning.chosen(times)
    assert found["best"]["CHUNKS_PER_THREAD"] == 4 and found["best"]["MAX_WARPS"] == 8
    assert found["best"]["over_best"] == 1.0 and found["gain"] == pytest.approx(found["now"]["over_best"] - 1)
    with tuning.constants(8, 0, 4):
        assert tuning.measuring.shape_of_program(2) == (32 * 8 * 4, 8)
    launched: list[Any] = []
    tuning._Warps({(3,): lambda *a, **k: launched.append((a, k))}, 2)[3,](7, K=1)
    assert launched == [((7,), {"num_warps": 2, "K": 1})]


# What CUDA reports, as far as that can be had without CUDA.


def test_pytorch_s_notice_of_the_mode_is_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes once, when the mode is first set, and also says "synchronizing"."""
    notice = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: warnings.warn(notice, stacklevel=1))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    wait = "called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp:1)"
    assert meter.waits(lambda: None) == 0
    assert meter.waits(lambda: [warnings.warn(wait, stacklevel=1) for _ in range(2)]) == 2


def test_a_refused_wait_is_told_and_the_mode_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def waits() -> None:
        raise RuntimeError("called a synchronizing CUDA operation\nand where")

    assert meter.refused(waits, torch.device("cuda")) == "called a synchronizing CUDA operation"
    assert meter.refused(lambda: None, torch.device("cuda")) is None
    assert modes == ["error", "default"] * 2


def test_ranges_that_are_named_are_no_launches() -> None:
    """As around a compiled graph."""
    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [("measure_row", cuda, False), ("## Call", cuda, True), ("cudaLaunchKernel", cpu, False)]
    named = [SimpleNamespace(name=n, device_type=d, is_user_annotation=u) for n, d, u in events]
    named.append(SimpleNamespace(name="Memset", device_type=cuda))  # older versions do not say
    assert meter._of_a_gpu(named) == ["measure_row", "Memset"]


def test_ratios_are_within_rounds() -> None:
    """A drift that slows both down changes nothing."""
    assert paired([1.0, 2.0, 400.0], [1.0, 1.0, 200.0]) == 2.0
