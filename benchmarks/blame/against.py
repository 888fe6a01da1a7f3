"""Judge runs of others beside each other, where they read one order of data: how quiet the difference is, and what is seen in it.

    python -m benchmarks.blame.against FOLDER

FOLDER as for ``benchmarks.blame.public``. A pair is two runs of one kind that share at least 2,000 steps and whose noise there
correlates by more than 0.8. To one of them 0.02 nats are added for 100 steps, at many places; the rule is ``Spike`` alone, and
``Spike`` beside the other run. A fault counts as seen by a page within the 100 steps; pages of the untouched runs are counted, too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np

import pplmon
from benchmarks.blame.public import BEFORE, KINDS, Run, read_runs
from pplmon import Report
from pplmon.alerts.against import Against
from pplmon.alerts.earlier import Earlier

LEAST_STEPS = 2000  # that two runs share
ADDED, LASTS, AFTER = 0.02, 100, 150  # nats, steps, steps that are judged from the first one on
PLACES = 10  # of each pair at most
ALIKE = 0.8  # correlation


@dataclass(frozen=True)
class Pair:
    """Two runs on one order of data, at the steps that both have."""

    ours: str
    theirs: str
    kind: str
    steps: np.ndarray
    losses: np.ndarray  # [2, steps]

    @property
    def correlation(self) -> float:
        """Of the changes from one step to the next, by their ranks, so that a few hard batches do not decide."""
        ranks = np.argsort(np.argsort(np.diff(self.losses), axis=1), axis=1)
        return float(np.corrcoef(ranks)[0, 1])

    @property
    def quieter(self) -> float:
        """The noise of one run over that of the difference."""
        return _noise(self.losses[0]) / max(_noise(self.losses[0] - self.losses[1]), 1e-12)


def pairs(runs: Sequence[Run]) -> Iterator[Pair]:
    """Every two runs of one kind that share enough steps, and an order of data."""
    for one, two in combinations(runs, 2):
        if one.kind != two.kind:
            continue
        shared, first, second = np.intersect1d(one.steps, two.steps, return_indices=True)
        if len(shared) >= LEAST_STEPS:
            pair = Pair(one.key, two.key, one.kind, shared, np.stack([one.losses[first], two.losses[second]]))
            if pair.correlation > ALIKE:
                yield pair


def _noise(values: np.ndarray) -> float:
    """A robust standard deviation of single values, from changes."""
    changes = np.diff(values)
    return float(1.4826 * np.median(np.abs(changes - np.median(changes))) / np.sqrt(2))


def judged(steps: np.ndarray, ours: np.ndarray, theirs: np.ndarray | None) -> tuple[list[int], list[int]]:
    """The places of pages and of notices."""
    rule = pplmon.Spike("cross_entropy")
    against = None
    if theirs is not None:
        rows = zip(steps.tolist(), theirs.tolist())
        against = Against(Earlier((step, {"cross_entropy": loss}) for step, loss in rows))
    pages, notices = [], []
    for place, (step, loss) in enumerate(zip(steps.tolist(), ours.tolist())):
        report = Report(step, numbers={"cross_entropy": loss})
        if against is None:
            alert = rule(report)
        else:
            against.begin(report)
            alert = against.judge(rule, report)
        if alert is not None:
            (notices if alert.severity == "info" else pages).append(place)
    return pages, notices


@lru_cache
def _alone(key: str, steps: tuple[int, ...], losses: tuple[float, ...]) -> tuple[list[int], list[int]]:
    """The same for a run without another, which is in several pairs."""
    return judged(np.array(steps), np.array(losses), None)


def seen(pair: Pair) -> list[tuple[bool, bool]]:
    """Whether each added fault was seen, without the other run and beside it."""
    count = len(pair.steps)
    places = np.linspace(400, count - AFTER, min(PLACES, (count - 400 - AFTER) // 100 + 1)).astype(int)
    told = []
    for at in places.tolist():
        start = max(0, at - BEFORE)
        stretch = slice(start, at + AFTER)
        ours, theirs = pair.losses[0, stretch].copy(), pair.losses[1, stretch]
        ours[at - start : at - start + LASTS] += ADDED
        each = []
        for beside in (None, theirs):
            pages, _ = judged(pair.steps[stretch], ours, beside)
            each.append(any(at - start <= page < at - start + LASTS for page in pages))
        told.append((each[0], each[1]))
    return told


def table(found: Sequence[Pair]) -> str:
    """A line for every kind of run, in Markdown."""
    lines = [
        "| kind | pairs | quieter, median | correlation, median | +0.02 for 100 steps: places | seen alone | seen beside | "
    ]
    lines[0] += "values | pages alone | pages beside | notices alone | notices beside |"
    lines.append("|---|" + "---|" * 11)
    for kind in KINDS:
        some = [pair for pair in found if pair.kind == kind]
        if not some:
            continue
        told = [one for pair in some for one in seen(pair)]
        alone = [_alone(pair.ours, tuple(pair.steps.tolist()), tuple(pair.losses[0].tolist())) for pair in some]
        beside = [judged(pair.steps, pair.losses[0], pair.losses[1]) for pair in some]
        quieter, alike = (statistics.median(getattr(p, name) for p in some) for name in ("quieter", "correlation"))
        rates = [f"{np.mean([one[which] for one in told]):.2f}" for which in (0, 1)]
        counts = [str(sum(len(one[what]) for one in runs)) for what in (0, 1) for runs in (alone, beside)]
        values = sum(len(pair.steps) for pair in some)
        cells = [kind, str(len(some)), f"{quieter:.1f}", f"{alike:.2f}", str(len(told)), *rates, f"{values:,}", *counts]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Find the pairs, judge them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    found = list(pairs(read_runs(options.folder)))
    if not found:
        parser.error(f"{options.folder} has no two runs on one order of data")
    print(table(found))


if __name__ == "__main__":
    main()
