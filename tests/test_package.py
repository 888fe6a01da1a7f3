"""The wheel and the sdist: built, and tested from what they hold, not from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.launch import ROOT

pytest.importorskip("hatchling", reason="nothing here builds packages: pip install hatchling")
# Quick ones, of which some read files beside the code.
TRIED = ("test_layout.py", "test_sinks_journal.py", "test_page_data.py")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a program, and return what it printed."""
    kept = {**os.environ, **environment}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=kept, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow  # builds, installs, and runs tests in a process of their own
def test_the_wheel_that_the_sdist_builds_passes_the_tests_that_the_sdist_holds(tmp_path: Path) -> None:
    """Every file that the package reads is in the wheel, and every one that its tests read in the sdist."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    (archive,) = tmp_path.glob("pplmon-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    source, site = tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path / "site"
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=source)
    (wheel,) = tmp_path.glob("pplmon-*.whl")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site)
    run(*pip, wheel, cwd=tmp_path)
    shutil.rmtree(source / "pplmon")  # what is left of it is found in the wheel
    found = run(sys.executable, "-c", "import pplmon; print(pplmon.__file__)", cwd=source, PYTHONPATH=str(site))
    assert Path(found.strip()).parent == site / "pplmon"
    assert (site / "pplmon/py.typed").exists()
    tests = [source / "tests" / name for name in TRIED]
    run(sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "not slow", *tests, cwd=source, PYTHONPATH=str(site))
