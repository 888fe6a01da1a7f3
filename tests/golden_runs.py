"""Fixed runs through the public names only, and all that they gave: to hold that a change of the code changes no bit of it.

    python -m tests.golden_runs --write FILE [--portable]
    python -m tests.golden_runs --compare FILE

``everywhere`` begins with losses that are given bit by bit: its facts are the same on every machine, but for the last bits of what
passes through exp or log; ``--portable`` writes it alone, with six digits of those numbers. ``here`` begins with logits, or is a
Lightning ``Trainer``: its losses are those of one processor and one build of PyTorch. ``--compare`` prints every difference and exits
with 1 if there is one. ``tests/golden/runs.json`` is what ``--portable`` wrote when alerts were last changed on purpose; after a change
that is meant, write it anew, and let the diff show that nothing else changed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.golden import monitors, tallies
from tests.golden.facts import differences, exact, portable, text


def everywhere() -> Any:
    """Return what is the same on every machine."""
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The ``compute`` method of metric")  # of a tally that was given nothing
        where = Path(directory)
        runs = {"tally": tallies.runs(), "monitor": monitors.long_run(where), "replay": monitors.replays(where)}
        return exact({**runs, "log keys": monitors.log_keys()})


def here() -> Any:
    """Return what is the same on one machine only."""
    from tests.golden import logits  # Lightning takes seconds to load

    return exact(logits.runs())


def machine() -> dict[str, str]:
    """Return what decides on the last bits of a loss."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), processor)
    return {
        "processor": f"{processor}, {torch.backends.cpu.get_cpu_capability()}",
        "libc": "-".join(platform.libc_ver()),
        **{name: version(name) for name in ("torch", "numpy", "pytorch-lightning")},
    }


def compare(before: dict[str, Any]) -> list[str]:
    """Return how the runs differ from what a file holds, as exactly as this machine can tell."""
    if before.get("machine") == machine():
        return list(differences(before, {"machine": machine(), "everywhere": everywhere(), "here": here()}))
    print("not made on this machine: compared is what is the same on every one", file=sys.stderr)
    return list(differences(portable(before["everywhere"]), portable(everywhere())))


def main(arguments: list[str] | None = None) -> int:
    """Write, or compare and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--write", type=Path, metavar="FILE")
    asked.add_argument("--compare", type=Path, metavar="FILE")
    parser.add_argument("--portable", action="store_true", help="write what is the same on every machine only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.write is not None:
        whole = {"everywhere": everywhere()}
        facts = portable(whole) if options.portable else {"machine": machine(), **whole, "here": here()}
        options.write.write_text(text(facts) + "\n", encoding="utf-8")
        return 0
    found = compare(json.loads(options.compare.read_text(encoding="utf-8")))
    print(*found, f"{len(found)} differences", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
