"""The tests that need a GPU, and those of the Triton kernels, which are compiled where there is one, by pytest."""

from __future__ import annotations

import os
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.on_gpu.kept import Kept

TESTS = Path(__file__).parents[2] / "tests"
NATIVE = tuple(str(TESTS / name) for name in ("test_kernels_triton.py", "test_tally_triton.py"))
SHOWN = 1500  # characters of a failure


class Outcomes:
    """A plugin of pytest: keeps each outcome as it comes, so that a run that is stopped has told what it knew."""

    def __init__(self, kept: Kept) -> None:
        self._kept, self._counts, self._failures = kept, Counter[str](), dict[str, str]()

    def pytest_collection_finish(self, session: Any) -> None:
        """Note how many tests there are."""
        if getattr(session, "items", ()):
            self._kept.keep("collected", len(session.items))

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be imported is a failure."""
        if report.failed:
            self._failed(report)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a test once, and note a failure's text."""
        if report.failed:
            self._failed(report)
        elif report.when == "call" or report.skipped:
            self._counts[report.outcome] += 1
            self._kept.keep("outcomes", dict(self._counts))

    def _failed(self, report: Any) -> None:
        self._counts["failed"] += 1
        self._failures[f"{report.nodeid} ({getattr(report, 'when', 'import')})"] = str(report.longreprtext)[-SHOWN:]
        self._kept.keep("outcomes", dict(self._counts))
        self._kept.keep("failures", self._failures)


def marked(kept: Kept, device: torch.device) -> None:
    """Run what is marked ``gpu``, in one process. Other files are not imported: they may need what is not installed."""
    files = sorted(str(file) for file in TESTS.glob("test_*.py") if "mark.gpu" in file.read_text(encoding="utf-8"))
    _run(kept, device, ("-m", "gpu", *files))


def native(kept: Kept, device: torch.device) -> None:
    """Run the kernels' tests: several processes at once, since most of the time is Triton's, which compiles."""
    workers = min(6, (os.cpu_count() or 1) // 2)
    several = (
        ("-n", str(workers), "--dist", "worksteal")
        if workers > 1 and find_spec("xdist") and device.type == "cuda"
        else ()
    )
    _run(kept, device, (*NATIVE, *several))


def _run(kept: Kept, device: torch.device, arguments: tuple[str, ...]) -> None:
    dry = () if device.type == "cuda" else ("--collect-only", "-qq")
    found = pytest.main(["-q", "-p", "no:cacheprovider", "--durations=8", *arguments, *dry], plugins=[Outcomes(kept)])
    outcomes = kept.content["found"].get("outcomes", {})
    kept.keep("exit_status", int(found))
    kept.table("Tests", ["collected", "passed", "skipped", "failed"], [
        [kept.content["found"].get("collected", 0), *(outcomes.get(name, 0) for name in ("passed", "skipped", "failed"))]
    ])  # fmt: skip
    if failures := kept.content["found"].get("failures"):
        kept.table(
            "Failures", ["test", "last line"], [[name, text.splitlines()[-1]] for name, text in failures.items()]
        )
    if found not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {found!r}")
