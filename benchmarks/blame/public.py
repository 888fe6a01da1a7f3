"""Judge loss series of real runs, which others published: what is raised there, and what is seen of spikes added to their noise.

    python -m benchmarks.blame.public FOLDER                    # every series
    python -m benchmarks.blame.public FOLDER --split held-out   # those that nothing was tuned on

FOLDER has a file ``KEY.csv`` or ``KEY.csv.gz`` for each series, with the columns ``step`` and ``loss`` or ``cross_entropy``; of
a repeated step the last value counts. ``index.tsv``, where it is there, has the columns ``key``, ``repository`` and ``file``,
from which the kind of a run and its split are told. Nothing is known to be wrong in these runs: what is raised is counted for
what it costs a person, a *page* (a warning or a critical alert) or a *notice*.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import pplmon
from benchmarks.blame.peers import PEERS, Rule
from benchmarks.blame.simulate import alarms, ours, reports

# By "repository/file": the first that matches. A mean over 0.5M tokens, the loss of one rank, and everything else.
KINDS = {"large-batch mean": r"build-nanogpt", "one rank": r"modded-nanogpt", "small batches": r""}
# What rules were tuned on: six runs, the five oldest of one rank, and some small ones.
TUNED = r"AGNDM/|2024-10-(09|10|14|17|18)_|adu3110/|GeoLLM|Star/|mT5-based|s21-gpt2"
LAG, LOCAL = 16, 200  # of the local noise: values between two that are compared, values that tell it
BEFORE, AFTER = 1200, 350  # values around an added spike that are judged
LEAST = 2000  # values of a series to which spikes are added
ADDED = ("slow", "burst", "plateau")
EVERY = {"large-batch mean": 1000}  # values between two added spikes; the others 400


@dataclass(frozen=True)
class Run:
    """One series."""

    key: str
    kind: str
    tuned: bool
    steps: list[int]
    losses: np.ndarray

    @property
    def span(self) -> int:
        """Optimizer steps from the first row to the last."""
        return self.steps[-1] - self.steps[0] + 1


def read_runs(folder: Path, split: str = "all") -> list[Run]:
    """Read the series of a folder: "tune", "held-out" or "all"."""
    index = {}
    if (folder / "index.tsv").is_file():
        with open(folder / "index.tsv", encoding="utf-8") as page:
            index = {row["key"]: f"{row['repository']}/{row['file']}" for row in csv.DictReader(page, delimiter="\t")}
    paths = sorted([*folder.glob("*.csv"), *folder.glob("*.csv.gz")])
    runs = [_read(path, index.get(path.name.split(".")[0], path.name)) for path in paths]
    return [run for run in runs if split == "all" or run.tuned == (split == "tune")]


def _read(path: Path, name: str) -> Run:
    packed = path.read_bytes()
    text = (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode()
    rows = {
        int(row["step"]): float(row.get("loss") or row["cross_entropy"]) for row in csv.DictReader(text.splitlines())
    }
    steps = sorted(rows)
    kind = next(kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE))
    return Run(
        path.name.split(".")[0],
        kind,
        re.search(TUNED, name) is not None,
        steps,
        np.array([rows[step] for step in steps]),
    )


# What is raised where nothing is known to be wrong.


def raised(rules: dict[str, Callable[[], Rule]], runs: Sequence[Run]) -> str:
    """A line for every kind of run and rule, in Markdown: pages per judged value and per step, and notices."""
    lines = [
        "| kind | runs | rows | steps | rule | pages | per 100k values | per 100k steps | notices | per 100k values |"
    ]
    lines.append("|---|" + "---|" * 9)
    for kind in KINDS:
        some = [run for run in runs if run.kind == kind]
        values, steps = sum(len(run.losses) for run in some), sum(run.span for run in some)
        for name, make in rules.items() if some else ():
            found = [alarms(make(), reports(run.losses)) for run in some]
            pages, notices = (sum(len(one[which]) for one in found) for which in (0, 1))
            rates = f"{pages} | {1e5 * pages / values:.1f} | {1e5 * pages / steps:.1f}"
            line = f"| {kind} | {len(some)} | {values:,} | {steps:,} | {name} | {rates} | {notices} |"
            lines.append(f"{line} {1e5 * notices / values:.1f} |")
    return "\n".join(lines)


# Spikes added to their noise.


def added(run: Run) -> Iterator[tuple[str, np.ndarray, int, int]]:
    """Every spike that is added to a series: its kind, the values around it, its first value in them, the last that helps."""
    for at in range(400, len(run.losses) - 400, EVERY.get(run.kind, 400)):
        start = max(0, at - BEFORE)
        noise = _noise(run.losses[max(0, at - LOCAL) : at])
        for kind in ADDED:
            values, first = run.losses[start : at + AFTER].copy(), at - start
            after = np.arange(len(values) - first)
            if kind == "slow":
                values[first:] += np.minimum(after / 300, 1.0)
            else:
                values[first:] += noise * (3.0 if kind == "plateau" else 8.0 * np.exp(-after / 15))
            yield kind, values, first, first + {"slow": 300, "burst": 45, "plateau": 100}[kind]


def _noise(values: np.ndarray) -> float:
    """A robust standard deviation, of changes, so that a trend does not count."""
    changes = values[LAG:] - values[:-LAG]
    return float(1.4826 * np.median(np.abs(changes - np.median(changes))) / np.sqrt(2))


def seen(rules: dict[str, Callable[[], Rule]], runs: Sequence[Run]) -> str:
    """A line for every kind of run and rule, in Markdown: the share of added spikes that a page told, and the median delay."""
    lines = [
        "| kind | rule | slow: +1 nat in 300 | burst: 8 sd, decays over 15 | plateau: 3 sd |",
        "|---|" + "---|" * 4,
    ]
    for kind in KINDS:
        some = [run for run in runs if run.kind == kind and len(run.losses) >= LEAST]
        for name, make in rules.items() if some else ():
            delays: dict[str, list[int | None]] = defaultdict(list)
            for run in some:
                for what, values, first, last in added(run):
                    pages, _ = alarms(make(), reports(values))
                    delays[what].append(next((page - first for page in pages if first <= page <= last), None))
            lines.append(f"| {kind} | {name} | {' | '.join(_recall(delays[what]) for what in ADDED)} |")
    return "\n".join(lines)


def _recall(delays: Sequence[int | None]) -> str:
    told = [delay for delay in delays if delay is not None]
    late = f" / {statistics.median(told):.0f}" if told else ""
    return f"{len(told) / max(1, len(delays)):.2f} of {len(delays)}{late}"


def main() -> None:
    """Read the series, judge them, print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="all", choices=("tune", "held-out", "all"))
    options = parser.parse_args()
    runs = read_runs(options.folder, options.split)
    if not runs:
        parser.error(f"{options.folder} has no series (*.csv or *.csv.gz) of the split {options.split!r}")
    rules = {"**pplmon Spike**": ours(), **PEERS}
    print(
        f"{options.split}: {len(runs)} series, {sum(len(run.losses) for run in runs):,} values; pplmon {pplmon.__version__}\n"
    )
    print(
        raised(rules, runs),
        seen({name: rules[name] for name in ("**pplmon Spike**", "OLMo-core 128/6σ")}, runs),
        sep="\n\n",
    )


if __name__ == "__main__":
    main()
