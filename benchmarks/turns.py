"""The callback of two checkouts, in turns: what each adds to a step, and their ratio with its confidence interval.

    python -m benchmarks.callback --against CHECKOUT [--steps 300] [--rounds 5] [--out result.json]

In each round a fresh process trains with the package of this checkout and one with that of the other, in an order that changes from
round to round; both run the benchmark of this one. A round gives a ratio of what the callback adds to the step of an empty one, and a
ratio of the whole steps. Intervals hold 95 %, as those of ``benchmarks.step``. A checkout against itself shows the noise.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import step

ROOT = Path(__file__).resolve().parent.parent
EMPTY, OURS = "an empty callback", "PerplexityMonitor"
# Arguments: the checkout whose pplmon is timed, the one whose benchmark times it, steps, a folder to write to.
TURN = """
import sys
sys.path.insert(0, sys.argv[1])
import pplmon
sys.path[0] = sys.argv[2]
from benchmarks import turns
turns.take(int(sys.argv[3]), sys.argv[4])
"""


def take(steps: int, where: str) -> None:
    """Print, as JSON, the seconds of a mean step of each variant, and whose pplmon it was."""
    import pplmon
    from benchmarks import callback

    callback.quieten()
    taken = {name: callback.trained(name, steps + callback.WARM + 1, Path(where))[1].mean() for name in (EMPTY, OURS)}
    print(json.dumps({"pplmon": str(Path(pplmon.__file__).parent.parent), **taken}))


def turn(checkout: Path, steps: int) -> dict[str, float]:
    """Let a process of its own take a turn with a checkout's pplmon."""
    with tempfile.TemporaryDirectory() as where:
        command = [sys.executable, "-c", TURN, str(checkout), str(ROOT), str(steps), where]
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)  # noqa: S603 - our own code
    if done.returncode:
        raise RuntimeError(f"the benchmark failed with the pplmon of {checkout}:\n{done.stderr[-2000:]}")
    taken = json.loads(done.stdout.splitlines()[-1])
    if Path(taken.pop("pplmon")) != checkout:
        raise RuntimeError(f"{checkout} has no pplmon of its own: give the root of a checkout")
    return {name: float(seconds) for name, seconds in taken.items()}


def compare(other: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Return the µs that each checkout's callback adds to a step, and the two ratios, ours over theirs."""
    other = other.resolve()
    if not (other / "pplmon/__init__.py").is_file():
        raise ValueError(f"{other} has no pplmon/__init__.py: give the root of a checkout")
    taken: dict[str, list[dict[str, float]]] = {"here": [], "there": []}
    for number in range(rounds):
        for side in ("here", "there") if number % 2 else ("there", "here"):
            taken[side].append(turn(ROOT if side == "here" else other, steps))
    added = {side: [row[OURS] - row[EMPTY] for row in rows] for side, rows in taken.items()}
    whole = {side: [row[OURS] for row in rows] for side, rows in taken.items()}
    return {
        "other": str(other),
        "added": {side: 1e6 * statistics.median(seconds) for side, seconds in added.items()},
        "whole step": {side: 1e6 * statistics.median(seconds) for side, seconds in whole.items()},
        "ratio of what is added": ratio(added),
        "ratio of the whole step": ratio(whole),
        "seconds": taken,
    }


def ratio(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return the mean ratio of here to there less 1, in percent, and its interval."""
    return step.interval([math.log(here / there) for here, there in zip(seconds["here"], seconds["there"])])


def table(results: dict[str, Any]) -> Table:
    """Return the figures for the terminal."""
    shown = Table(
        "µs a step", "here", "there", "here over there (95 %)", title=f"the callback, against {results['other']}"
    )
    for what, name in (("added", "ratio of what is added"), ("whole step", "ratio of the whole step")):
        values = (f"{results[what][side]:,.0f}" for side in ("here", "there"))
        shown.add_row(what, *values, step.shown("", results[name]).strip())
    return shown
