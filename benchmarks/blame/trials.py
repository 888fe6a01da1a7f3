"""Score any function of the rows on the bed of trials: a frozen model's losses, of each step and each sequence.

    python -m benchmarks.blame.trials                            # the default set and the peers, on what is held out
    python -m benchmarks.blame.trials --split tune               # where thresholds may be chosen
    python -m benchmarks.blame.trials --function my.py:make      # a function of yours, beside pplmon's default set

``make()`` returns a fresh judge, which is called with one row after the other (``Row``: the step, its numbers, the loss of
every sequence by rank, micro-batch and row). It answers ``None``, or a ``Verdict``: "notice" or "page", and where, as far as
it says. Every trial begins with a fresh judge, 300 clean rows and then the faulty ones. A fault is caught by a verdict from
its first row to the row behind its last; clean steps are judged in blocks of 2,000, each by a fresh judge.
"""

from __future__ import annotations

import argparse
import json
import math
import runpy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pplmon
from benchmarks.blame import frozen
from benchmarks.blame.peers import PEERS, Rule

BED = Path(__file__).parent / "bed"
OURS = "pplmon default"
ONE_EVENT = 200  # steps: verdicts that are no farther apart are one event
Place = tuple[int, int, int]  # rank, micro-batch, row


@dataclass(frozen=True)
class Row:
    """One step: its numbers, and the mean loss of every sequence in nats per token."""

    step: int
    numbers: Mapping[str, float]
    sequences: Mapping[Place, float]


@dataclass(frozen=True)
class Verdict:
    """A judge's answer: "notice" or "page", and the rank, or rank, micro-batch and row, that it names."""

    severity: str
    place: tuple[int, ...] | None = None


Judge = Callable[[Row], Verdict | None]


@dataclass(frozen=True)
class Bed:
    """The rows of every domain, the rows of every trial, and what is wrong in it."""

    clean: dict[str, list[Row]]
    faulty: dict[int, list[Row]]
    faults: list[frozen.Fault]

    def trial(self, fault: frozen.Fault) -> list[Row]:
        """Return the rows of one trial: clean ones, the faulty ones, and a few clean ones behind."""
        rows, end = self.clean[fault.domain], fault.step + fault.steps
        return [*rows[fault.step - frozen.HISTORY : fault.step], *self.faulty[fault.trial], *rows[end : end + 1]]


def read_bed(folder: Path = BED) -> Bed:
    """Read the files of a bed."""
    faults = [frozen.Fault(**fields) for fields in json.loads((folder / "faults.json").read_text(encoding="utf-8"))]
    faulty: dict[int, list[Row]] = defaultdict(list)
    for line in frozen.read(folder / "faulty.csv.gz"):
        faulty[int(line["trial"])].append(_row(line))
    clean = {domain: [_row(line) for line in frozen.read(folder / f"{domain}.csv.gz")] for domain in frozen.DOMAINS}
    return Bed(clean, faulty, faults)


def _row(line: Mapping[str, str]) -> Row:
    sequences = {place: float(line["loss@{}.{}.{}".format(*place)]) for place in frozen.PLACES}
    return Row(int(line["step"]), {name: float(line[name]) for name in frozen.NUMBERS}, sequences)


# Judges of pplmon's rules and of the peers.


def of_rules(make: Callable[[], Rule | Sequence[Rule]], names: bool = False) -> Callable[[], Judge]:
    """Return a maker of judges from a maker of rules ``Report -> Alert | None``; ``names``: they name the worst sequence."""

    def judge_of() -> Judge:
        made = make()
        rules = list(made) if isinstance(made, Sequence) else [made]

        def judge(row: Row) -> Verdict | None:
            told = _report(row)
            alerts = [alert for rule in rules if (alert := rule(told)) is not None]
            if not alerts:
                return None
            page = any(alert.severity != "info" for alert in alerts)
            return Verdict("page" if page else "notice", _worst(row) if names else None)

        return judge

    return judge_of


def _worst(row: Row) -> Place:
    return max(row.sequences, key=row.sequences.__getitem__)


def _report(row: Row) -> pplmon.Report:
    tokens = len(row.sequences) * frozen.LENGTH
    excess = row.numbers["max_token_loss"] - math.log(frozen.VOCAB) - math.log(tokens)
    more = {"max_token_excess": excess, "relative_cross_entropy": row.numbers["cross_entropy"] / math.log(frozen.VOCAB)}
    return pplmon.Report(row.step, numbers={**row.numbers, **more, "nonfinite_tokens": 0, "tokens": tokens})


# Scores.


@dataclass
class Score:
    """The outcomes of one judge: by kind and dose, and on the clean steps."""

    outcomes: dict[tuple[str, float], list[tuple[bool, bool, bool]]] = field(default_factory=lambda: defaultdict(list))
    false: dict[str, int] = field(default_factory=lambda: {"page": 0, "notice": 0})  # events on clean steps
    steps: int = 0  # clean ones

    def share(self, kind: str, dose: float, what: int = 0) -> float:
        """Return the share that was caught (0), by a page (1), or caught with the right place (2)."""
        found = self.outcomes[kind, dose]
        return sum(outcome[what] for outcome in found) / len(found) if found else math.nan


def score(make: Callable[[], Judge], bed: Bed, split: str) -> Score:
    """Judge every trial of a split, and the clean steps of its blocks."""
    result = Score()
    for fault in bed.faults:
        if split in ("all", fault.split):
            result.outcomes[fault.kind, fault.dose].append(_outcome(make(), fault, bed.trial(fault)))
    for own in (rows[a:b] for rows in bed.clean.values() for a, b in frozen.blocks(len(rows), split)):
        judge = make()
        told = [(row.step, verdict.severity) for row in own if (verdict := judge(row)) is not None]
        for severity in result.false:
            result.false[severity] += sum(1 for _ in _events(step for step, what in told if what == severity))
        result.steps += len(own)
    return result


def _outcome(judge: Judge, fault: frozen.Fault, rows: Sequence[Row]) -> tuple[bool, bool, bool]:
    """Return whether a fault was caught, by a page, and with the right place."""
    verdicts = [(row.step, verdict) for row in rows if (verdict := judge(row)) is not None]
    found = [verdict for step, verdict in verdicts if step >= fault.step]
    place = tuple(part for part in (fault.rank, fault.micro_batch, fault.row) if part is not None)
    named = bool(found) and bool(place) and found[0].place is not None and found[0].place[: len(place)] == place
    return bool(found), any(verdict.severity == "page" for verdict in found), named


def _events(steps: Iterator[int]) -> Iterator[int]:
    first: int | None = None
    for step in steps:
        if first is None or step - first > ONE_EVENT:
            first = step
            yield step


def table(scores: Mapping[str, Score]) -> str:
    """Return a line for each kind, and for each judge the share caught at the three doses."""
    lines = [f"| kind | doses | trials | {' | '.join(scores)} |", "|---|---|---|" + "---|" * len(scores)]
    for kind, doses in frozen.DOSES.items():
        count = len(next(iter(scores.values())).outcomes[kind, doses[0]])
        cells = [" ".join(_part(found.share(kind, dose)) for dose in doses) for found in scores.values()]
        lines.append(f"| {kind} | {' '.join(f'{dose:g}' for dose in doses)} | 3 × {count} | {' | '.join(cells)} |")
    for severity in ("page", "notice"):
        cells = [_rate(found.false[severity], found.steps) for found in scores.values()]
        steps = next(iter(scores.values())).steps
        lines.append(f"| {severity}s per 100k clean steps | | {steps:,} steps | {' | '.join(cells)} |")
    return "\n".join(lines)


def naming(found: Score) -> str:
    """Return a line for each kind with a place: the shares caught by a page, and named right, at the three doses."""
    lines = ["| kind | by a page | the place named right |", "|---|---|---|"]
    for kind, doses in frozen.DOSES.items():
        pages, places = (" ".join(_part(found.share(kind, dose, what)) for dose in doses) for what in (1, 2))
        lines.append(f"| {kind} | {pages} | {'–' if kind in ('label_noise', 'stale_batch') else places} |")
    return "\n".join(lines)


def _part(share: float) -> str:
    return f"{share:.2f}".replace("0.", ".", 1)


def _rate(events: int, steps: int) -> str:
    """Return a rate; where nothing was seen in n steps, the bound 3 / n that holds at 95 % confidence."""
    return f"{1e5 * events / steps:.0f} ({events})" if events else f"0 (≤ {3e5 / steps:.0f})"


def judges() -> dict[str, Callable[[], Judge]]:
    """Return the default set, whose evidence begins with the worst sequence, and the peers."""
    peers = {name: of_rules(make, names=name == "Soup rewind") for name, make in PEERS.items()}
    return {OURS: of_rules(pplmon.default_alerts, names=True), **peers}


def main() -> None:
    """Read the bed, judge it, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--split", default="held-out", choices=("tune", "held-out", "all"))
    parser.add_argument("--bed", type=Path, default=BED)
    parser.add_argument("--function", help="file.py:make, where make() returns a judge: Row -> Verdict | None")
    options = parser.parse_args()
    bed = read_bed(options.bed)
    makers: dict[str, Callable[[], Judge]] = judges()
    if options.function:
        path, _, name = options.function.partition(":")
        made: Any = runpy.run_path(path)[name]
        makers = {OURS: makers[OURS], options.function: made}
    scores = {name: score(make, bed, options.split) for name, make in makers.items()}
    print(table(scores), naming(scores[OURS]), sep="\n\n")


if __name__ == "__main__":
    main()
