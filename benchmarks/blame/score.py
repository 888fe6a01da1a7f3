"""Score rules on the planted faults: what was caught, how late, what was named, and what was raised for nothing.

    python -m benchmarks.blame.score                      # the default set and every peer, on the held-out runs
    python -m benchmarks.blame.score --split tune         # where thresholds may be chosen
    python -m benchmarks.blame.score --rule my.py:rules   # a function of yours that returns a rule, or a list of rules

An alert names what the first row of its evidence says: of the worst sequences, or for token faults of the worst tokens.
A *page* is a warning or a critical alert, a *notice* one of severity "info"; a fault is caught by either, and both are counted.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import runpy
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pplmon
from benchmarks.blame.peers import PEERS, Rule

DATA = Path(__file__).parent / "data"
# Steps after a fault within which an alert is about it: at once for data, while the model still suffers for the others.
HELPS = {"lr_jump": 60, "weight_noise": 20, "head_row": 20}
ONE_EVENT = 200  # steps: alarms that are no farther apart are one event
BY_TOKEN = ("wrong_targets", "extreme_tokens", "nan")  # named by the worst token, the others by the worst sequence
NOWHERE = ("lr_jump", "weight_noise", "head_row")  # faults of the model are in no one place
OURS = "pplmon default"
Rules = Callable[[], "Rule | Sequence[Rule]"]
Address = tuple[int | None, ...]  # rank, micro-batch, row, document


@dataclass(frozen=True)
class Planted:
    """One planted fault and its address, ``None`` where it has no single one."""

    kind: str
    step: int
    address: Address

    @property
    def last(self) -> int:
        """The last step at which an alert is still about this fault."""
        return self.step + HELPS.get(self.kind, 1)


@dataclass(frozen=True)
class Run:
    """One published run."""

    about: dict[str, Any]
    reports: list[pplmon.Report]
    faults: list[Planted]


def read_run(path: Path) -> Run:
    """Read one file: its settings, the report of every step, and what was planted."""
    with gzip.open(path, "rt", encoding="utf-8") as page:
        about = json.loads(page.readline().removeprefix("# "))
        lines = list(csv.DictReader(page))
    faults = [_planted(line) for line in lines if line["planted"]]
    return Run(about, [_report(line, about["vocab_size"]) for line in lines], faults)


def read_runs(split: str = "held-out", folder: Path = DATA) -> list[Run]:
    """Read the runs of a split: "tune", "held-out" or "all"."""
    runs = [read_run(path) for path in sorted(folder.glob("*.csv.gz"))]
    return [run for run in runs if split in ("all", run.about["split"])]


def _planted(line: dict[str, str]) -> Planted:
    kind, _, address = line["planted"].partition("@")
    return Planted(kind, int(line["step"]), _address(address))


def _address(text: str) -> Address:
    return tuple(int(part) if part else None for part in text.split("."))


def _report(line: dict[str, str], vocab_size: int) -> pplmon.Report:
    step = int(line["step"])
    known = {n: v for n, v in line.items() if v and n not in ("step", "worst_sequences", "worst_tokens", "planted")}
    numbers: dict[str, float | int] = {name: float(value) for name, value in known.items()}
    loss = numbers["cross_entropy"]
    numbers["perplexity"] = math.exp(loss) if loss < 700 else math.inf
    numbers["relative_cross_entropy"] = loss / math.log(vocab_size)
    sequences = [_split(cell) for cell in line["worst_sequences"].split()]
    tokens = [_split(cell) for cell in line["worst_tokens"].split()]
    return pplmon.Report(
        step,
        numbers=numbers,
        worst_sequences=tuple(
            pplmon.WorstSequence(loss, step=step, rank=r, micro_batch=m, sequence=s, document_id=d)
            for loss, (r, m, s, d) in sequences
        ),
        worst=tuple(
            pplmon.WorstToken(loss, step=step, rank=r, micro_batch=m, sequence=s, position=p)
            for loss, (r, m, s, p) in tokens
        ),
    )


def _split(cell: str) -> tuple[float, tuple[Any, ...]]:
    loss, _, address = cell.partition("@")
    return float(loss), _address(address)


# What a rule did.


@dataclass
class Outcome:
    """One fault as one rule saw it: ``delay`` in steps, and which parts of the address it named right."""

    delay: int | None
    page: bool = False  # a page told it, then or later
    rank: bool | None = None  # None: not caught, or the fault has no such part
    micro_batch: bool | None = None
    sequence: bool | None = None  # the row, and under packing the document


@dataclass
class Score:
    """What one rule, or set of rules, did on all runs."""

    outcomes: dict[str, list[Outcome]] = field(default_factory=lambda: defaultdict(list))
    false_alarms: int = 0  # events on the clean runs: pages
    notices: int = 0  # likewise
    clean_steps: int = 0
    strays: int = 0  # events on the other runs, farther than 200 steps after any fault

    def recall(self, kinds: Sequence[str]) -> float:
        """The share of these kinds' faults that were caught."""
        return _share([outcome.delay is not None for kind in kinds for outcome in self.outcomes[kind]])

    def named(self, kinds: Sequence[str], part: str = "sequence") -> float:
        """The share of the caught ones whose rank, micro_batch or sequence was named right; NaN where there is none."""
        found = [getattr(outcome, part) for kind in kinds for outcome in self.outcomes[kind]]
        return _share([right for right in found if right is not None])

    def per_100k(self, count: int) -> str:
        """A count on the clean runs as a rate, with the count."""
        return f"{1e5 * count / max(1, self.clean_steps):.0f} ({count})"


def _share(found: list[bool]) -> float:
    return statistics.fmean(found) if found else math.nan


def alerts(rules: Rule | Sequence[Rule], run: Run) -> list[tuple[int, pplmon.Alert]]:
    """Every alert of a rule, or of several, on a run: (place of its report, alert).

    Without those that tell a second time: "did not recover" is about a spike that was counted 200 steps before.
    """
    several = rules if isinstance(rules, Sequence) else [rules]
    raised = ((place, rule(report)) for place, report in enumerate(run.reports) for rule in several)
    return [(place, alert) for place, alert in raised if alert is not None and not _second(alert)]


def _second(alert: pplmon.Alert) -> bool:
    return alert.rule == "Spike" and alert.severity == "critical"


def _pages(alert: pplmon.Alert) -> bool:
    return alert.severity != "info"


def score(make: Rules, runs: Sequence[Run]) -> Score:
    """Judge every run with fresh rules."""
    result = Score()
    for run in runs:
        raised = alerts(make(), run)
        for fault in run.faults:
            result.outcomes[fault.kind].append(_outcome(fault, run, raised))
        steps = {
            page: [run.reports[at].step for at, alert in raised if _pages(alert) == page] for page in (True, False)
        }
        if run.faults:
            result.strays += len(_events(s for s in steps[True] if not _explained(s, run.faults)))
        else:
            result.false_alarms += len(_events(iter(steps[True])))
            result.notices += len(_events(iter(steps[False])))
            result.clean_steps += len(run.reports)
    return result


def _outcome(fault: Planted, run: Run, raised: list[tuple[int, pplmon.Alert]]) -> Outcome:
    told = [hit for hit in raised if fault.step <= run.reports[hit[0]].step <= fault.last]
    if not told:
        return Outcome(None)
    place, alert = told[0]
    report = run.reports[place]
    outcome = Outcome(report.step - fault.step, any(_pages(hit[1]) for hit in told))
    if fault.kind in NOWHERE:
        return outcome
    named = _named(fault, alert, report)
    rank, micro_batch, row, _ = fault.address
    outcome.rank, outcome.micro_batch = named[:1] == (rank,), named[:2] == (rank, micro_batch)
    if row is not None:  # of a token the row is known and not the document
        wanted = fault.address[: len(named)] if named else fault.address
        outcome.sequence = named == wanted
    return outcome


def _named(fault: Planted, alert: pplmon.Alert, report: pplmon.Report) -> Address:
    """The address that the alert's evidence puts first: the report's, as a monitor fills it in."""
    if fault.kind in BY_TOKEN:
        tokens = alert.worst or report.worst
        return (tokens[0].rank, tokens[0].micro_batch, tokens[0].sequence) if tokens else ()
    rows = alert.worst_sequences or report.worst_sequences
    return (rows[0].rank, rows[0].micro_batch, rows[0].sequence, rows[0].document_id) if rows else ()


def _explained(step: int, faults: list[Planted]) -> bool:
    return any(fault.step <= step <= fault.step + ONE_EVENT for fault in faults)


def _events(steps: Iterator[int]) -> list[int]:
    first: list[int] = []
    for step in steps:
        if not first or step - first[-1] > ONE_EVENT:
            first.append(step)
    return first


# What is printed.


def all_rules() -> dict[str, Rules]:
    """The default set, and the peers."""
    return {OURS: pplmon.default_alerts, **PEERS}


def kinds_of(runs: Sequence[Run]) -> dict[str, int]:
    """How often each fault was planted, data faults first."""
    counts: dict[str, int] = defaultdict(int)
    for run in runs:
        for fault in run.faults:
            counts[fault.kind] += 1
    order = ("garbage", "shuffled", "copied", "shifted", "repeated", "halves", *BY_TOKEN, *NOWHERE)
    return {kind: counts[kind] for kind in order if counts[kind]}


def table(runs: Sequence[Run], scores: dict[str, Score]) -> str:
    """A line for every fault, a column for every rule: the share that was caught / the median delay in steps.

    In brackets the share that a page told, where a notice told more.
    """
    lines = [f"| fault | planted | {' | '.join(scores)} |", "|---|" + "---|" * (len(scores) + 1)]
    for kind, count in kinds_of(runs).items():
        cells = [_caught(result.outcomes[kind]) for result in scores.values()]
        lines.append(f"| {kind} | {count} | {' | '.join(cells)} |")
    steps = max(result.clean_steps for result in scores.values())
    for what in ("false_alarms", "notices"):
        rates = [result.per_100k(getattr(result, what)) for result in scores.values()]
        name = {"false_alarms": "pages", "notices": "notices"}[what]
        lines.append(f"| {name} per 100k clean steps (seen in {steps}) | | {' | '.join(rates)} |")
    return "\n".join(lines)


def _caught(outcomes: list[Outcome]) -> str:
    delays = [outcome.delay for outcome in outcomes if outcome.delay is not None]
    if not delays:
        return ".00"
    pages = sum(outcome.page for outcome in outcomes)
    fewer = f" ({_part(pages, outcomes)})" if pages < len(delays) else ""
    return f"{_part(len(delays), outcomes)} / {statistics.median(delays):.0f}{fewer}"


def _part(count: int, outcomes: list[Outcome]) -> str:
    return f"{count / len(outcomes):.2f}".replace("0.", ".", 1)


def naming(runs: Sequence[Run], result: Score) -> str:
    """A line for every fault with a place: of those caught, the share whose rank, micro-batch and sequence were named."""
    lines = ["| fault | rank | micro-batch | sequence |", "|---|---|---|---|"]
    for kind in kinds_of(runs):
        if kind not in NOWHERE:
            cells = [result.named([kind], part) for part in ("rank", "micro_batch", "sequence")]
            lines.append(f"| {kind} | {' | '.join('–' if math.isnan(c) else f'{c:.2f}' for c in cells)} |")
    return "\n".join(lines)


def promise(result: Score) -> str:
    """What the default set is held to, and what it does."""
    kinds = ("garbage", "shuffled", "copied")
    recall = min(result.recall([kind]) for kind in kinds)
    named = result.named(kinds)
    false = result.false_alarms + result.notices
    holds = recall >= 0.9 and named >= 0.95 and false == 0
    return (
        f"garbage, shuffled and copied sequences: at least {recall:.0%} of each caught, the sequence named in {named:.0%} "
        f"of those, {false} pages and notices in {result.clean_steps} clean steps: the promise "
        f"(≥ 90 %, ≥ 95 %, none) {'holds' if holds else 'DOES NOT HOLD'}"
    )


def submitted(where: str) -> Rules:
    """Return the function ``name`` of ``file.py:name``, which makes rules."""
    path, _, name = where.partition(":")
    return runpy.run_path(path)[name]  # type: ignore[no-any-return]


def main() -> None:
    """Read the runs, judge them, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--split", default="held-out", choices=("tune", "held-out", "all"))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rule", help="file.py:function, where the function returns a rule or a list of rules")
    parser.add_argument("--each", action="store_true", help="also every rule of the default set by itself")
    options = parser.parse_args()
    runs = read_runs(options.split, options.data)
    rules = all_rules()
    if options.rule:
        rules[options.rule] = submitted(options.rule)
    if options.each:
        for place, rule in enumerate(pplmon.default_alerts()):
            rules[repr(rule)] = lambda place=place: pplmon.default_alerts()[place]  # type: ignore[misc]
    scores = {name: score(make, runs) for name, make in rules.items()}
    print(f"{options.split}: {len(runs)} runs, {sum(len(run.faults) for run in runs)} planted faults\n")
    print(table(runs, scores), naming(runs, scores[OURS]), promise(scores[OURS]), sep="\n\n")
    print("pages on runs with faults, more than 200 steps after any: ", end="")
    print(", ".join(f"{name} {result.strays}" for name, result in scores.items()))


if __name__ == "__main__":
    main()
