"""Simulate loss series with labelled spikes, and score each rule on the mean loss alone.

    python -m benchmarks.blame.simulate               # tune and held-out seeds: a few minutes on one core
    python -m benchmarks.blame.simulate --seeds 5     # a look

Healthy series fall by a power law with warm-up, learning-rate restarts, an anneal and shifts of the data's domain; their
noise has heavy tails, a volatility that wanders, memory, and 1 % of hard batches. Spikes are one step, a burst that decays, a
slow divergence (to be told before it has cost 1 nat), or a plateau that stays. A *page* is a warning or a critical alert, a
*notice* one of severity "info". Either tells a one-step spike, only a page the others. False alarms are counted on healthy
series.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

import pplmon
from benchmarks.blame.peers import PEERS, Rule

STEPS = 20_000
KINDS = ("one-step", "burst", "slow", "plateau")
LASTING = KINDS[1:]  # what calls a person
ONE_EVENT = 200  # steps: alarms that are no farther apart are one event
SETTLED = 200  # steps before which nothing is planted or counted
FIRST_SEED = {"tune": 0, "held-out": 10_000}
SWEEP = (6.0, 8.0, 10.0, 12.0, 16.0)
Series = np.ndarray


@dataclass(frozen=True)
class Spike:
    """One planted spike. ``last``: the last step at which an alarm still helps."""

    kind: str
    step: int
    last: int
    size: float  # nats; of a one-step spike, robust standard deviations


def healthy(chance: np.random.Generator, steps: int = STEPS) -> tuple[Series, float]:
    """Return a series [steps] without spikes, and the standard deviation of its noise in nats."""
    t = np.arange(steps)
    deviation = float(np.exp(chance.uniform(np.log(0.006), np.log(0.06))))
    floor, exponent, tau = chance.uniform(1.8, 2.8), chance.uniform(0.3, 0.7), chance.uniform(50, 400)
    trend = floor + (10.5 - floor) * (1 + np.maximum(t - 50, 0) / tau) ** -exponent
    trend -= chance.uniform(0.05, 0.2) * np.maximum(0, t / steps - 0.8) / 0.2  # the anneal at the end
    for _ in range(chance.integers(0, 4)):  # a restart of the learning rate: up in a hundred steps, back in a thousand
        after = np.maximum(t - chance.integers(1000, steps), 0)
        trend += chance.uniform(0.02, 0.1) * (1 - np.exp(-after / 100)) * np.exp(-after / 1000)
    for start in np.flatnonzero(chance.random(steps) < 1 / 4000):  # another domain of the data; one in ten is far away
        large = chance.random() < 0.1
        size = chance.choice([-1, 1]) * chance.uniform(4, 10) if large else chance.normal(0, 0.5)
        trend[start:] += size * deviation
    return trend + deviation * _noise(chance, steps), deviation


def _noise(chance: np.random.Generator, steps: int) -> Series:
    """Noise of unit deviation [steps]: Student's t, with memory and a volatility that wanders, and a few hard batches."""
    degrees, memory = chance.uniform(4, 12), chance.uniform(0, 0.3)
    shocks = chance.standard_t(degrees, steps) * np.sqrt((degrees - 2) / degrees)
    shocks = _autoregressive(shocks, memory) * np.sqrt(1 - memory**2)
    stay = np.exp(-1 / chance.uniform(200, 1000))
    wander = _autoregressive(chance.normal(0, 1, steps), stay) * np.sqrt(1 - stay**2) * chance.uniform(0.05, 0.25)
    hard = (chance.random(steps) < 0.01) * chance.exponential(1.5, steps)
    return shocks * np.exp(wander) + hard


def _autoregressive(shocks: Series, memory: float) -> Series:
    values, last = [], 0.0
    for shock in shocks.tolist():
        last = memory * last + shock
        values.append(last)
    return np.array(values)


def spiked(chance: np.random.Generator, steps: int = STEPS) -> tuple[Series, list[Spike]]:
    """Return a series [steps] with a spike about every 1900 steps, and the spikes."""
    series, deviation = healthy(chance, steps)
    spikes = []
    for start in range(1500, steps - 1500, 1900):
        kind = KINDS[chance.integers(len(KINDS))]
        spike, shape = _spike(kind, start + int(chance.integers(0, 300)), deviation, chance)
        series[spike.step : spike.step + len(shape)] += shape[: steps - spike.step]
        if kind == "plateau":
            series[spike.step + len(shape) :] += spike.size
        spikes.append(spike)
    return series, spikes


def _spike(kind: str, step: int, deviation: float, chance: np.random.Generator) -> tuple[Spike, Series]:
    """Return a spike and what it adds to the series from its step on."""

    def between(low: float, high: float) -> float:
        return float(np.exp(chance.uniform(np.log(low), np.log(high))))

    if kind == "one-step":
        size = between(4, 40)
        return Spike(kind, step, step + 2, size), np.array([size * deviation])
    if kind == "burst":
        size, decay = max(3 * deviation, between(0.03, 2)), between(5, 50)
        return Spike(kind, step, step + int(3 * decay), size), size * np.exp(-np.arange(int(6 * decay)) / decay)
    if kind == "plateau":
        size = between(0.02, 0.3)
        return Spike(kind, step, step + 100, size), np.full(1, size)
    # A slow divergence goes on to 2 nats, and the run then goes back to a checkpoint.
    doubling, begin = between(10, 120), 0.1 * deviation
    shape = begin * 2 ** (np.arange(int(doubling * np.log2(2 / begin))) / doubling)
    return Spike(kind, step, step + int(doubling * np.log2(1 / begin)), 1.0), shape


# Scoring.


def reports(series: Series) -> list[pplmon.Report]:
    """The series as the reports that a rule is given, with nothing but the mean loss."""
    return [pplmon.Report(step, numbers={"cross_entropy": value}) for step, value in enumerate(series.tolist())]


def alarms(rule: Rule, series: Sequence[pplmon.Report]) -> tuple[list[int], list[int]]:
    """Return the steps of a rule's pages, and those of its notices."""
    raised = [(report.step, alert) for report in series if (alert := rule(report)) is not None]
    pages = [step for step, alert in raised if alert.severity != "info"]
    return pages, [step for step, alert in raised if alert.severity == "info"]


def events(steps: Iterable[int]) -> list[int]:
    """Return the first steps of events: an alarm belongs to the event that began at most 200 steps before."""
    first: list[int] = []
    for step in steps:
        if not first or step - first[-1] > ONE_EVENT:
            first.append(step)
    return first


@dataclass
class Score:
    """What a rule did on many series."""

    caught: dict[str, list[bool]]
    delays: dict[str, list[int]]
    false_alarms: int = 0  # pages
    notices: int = 0  # on healthy series, one-step ones of 12 deviations and more are rightly told
    healthy_steps: int = 0
    seconds: float = 0.0
    judged: int = 0

    def recall(self, kind: str) -> float:
        """The share of this kind's spikes that were told in time."""
        return statistics.fmean(self.caught[kind] or [False])

    @property
    def mean_recall(self) -> float:
        """The mean over the kinds that call a person."""
        return statistics.fmean(self.recall(kind) for kind in LASTING)

    @property
    def rate(self) -> float:
        """False pages per 100k healthy steps."""
        return 1e5 * self.false_alarms / max(1, self.healthy_steps)

    @property
    def notice_rate(self) -> float:
        """Notices per 100k healthy steps."""
        return 1e5 * self.notices / max(1, self.healthy_steps)


def score(rules: dict[str, Callable[[], Rule]], split: str, seeds: int, steps: int = STEPS) -> dict[str, Score]:
    """Judge ``seeds`` spiked and as many healthy series of a split with every rule."""
    scores = {name: Score({k: [] for k in KINDS}, {k: [] for k in KINDS}) for name in rules}
    for seed in range(FIRST_SEED[split], FIRST_SEED[split] + seeds):
        series, spikes = spiked(np.random.default_rng([seed, 1]), steps)
        calm, _ = healthy(np.random.default_rng([seed, 2]), steps)
        with_spikes, without = reports(series), reports(calm)
        for name, make in rules.items():
            start = time.perf_counter()
            (found, noticed), (false, false_notices) = alarms(make(), with_spikes), alarms(make(), without)
            scores[name].seconds += time.perf_counter() - start
            scores[name].judged += 2 * steps
            _add(scores[name], spikes, found, false, steps, noticed, false_notices)
    return scores


def _add(
    result: Score,
    spikes: list[Spike],
    found: list[int],
    false: list[int],
    steps: int,
    noticed: Sequence[int] = (),
    false_notices: Sequence[int] = (),
) -> None:
    for spike in spikes:
        told = sorted([*found, *noticed]) if spike.kind == "one-step" else found
        delay = next((step - spike.step for step in told if spike.step <= step <= spike.last), None)
        result.caught[spike.kind].append(delay is not None)
        if delay is not None:
            result.delays[spike.kind].append(delay)
    result.false_alarms += len(events(step for step in false if step >= SETTLED))
    result.notices += len(events(step for step in false_notices if step >= SETTLED))
    result.healthy_steps += steps - SETTLED


def table(scores: dict[str, Score]) -> str:
    """A line for every rule, in Markdown: recall / median delay by kind, the mean of the lasting ones, what was false."""
    lines = [
        f"| rule | {' | '.join(KINDS)} | mean of the last three | pages per 100k | notices |",
        "|---|" + "---|" * 7,
    ]
    for name, result in scores.items():
        cells = []
        for kind in KINDS:
            delay = f" / {statistics.median(result.delays[kind]):.0f}" if result.delays[kind] else ""
            cells.append(f"{result.recall(kind):.2f}{delay}")
        told = f"{result.mean_recall:.2f} | {result.rate:.1f} | {result.notice_rate:.1f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {told} |")
    return "\n".join(lines)


def ours(limit: float = 10.0) -> Callable[[], Rule]:
    """Our rule on the mean loss."""
    return lambda: pplmon.Spike("cross_entropy", limit=limit)


def bootstrap(own: Score, other: Score, draws: int = 2000) -> tuple[float, float]:
    """Return a 90 % interval of how many times the other's mean recall ours is; both saw the same spikes."""
    chance = np.random.default_rng(0)
    ratios = []
    for _ in range(draws):
        sums = np.zeros(2)
        for kind in LASTING:
            both = np.array([own.caught[kind], other.caught[kind]], dtype=float)
            sums += both[:, chance.integers(0, both.shape[1], both.shape[1])].mean(axis=1)
        ratios.append(sums[0] / max(sums[1], 1e-9))
    return float(np.quantile(ratios, 0.05)), float(np.quantile(ratios, 0.95))


def promise(own: Score) -> str:
    """What our rule is held to, and what it does."""
    one = own.recall("one-step")
    holds = own.mean_recall >= 0.90 and own.rate <= 5.5 and one >= 0.40
    return (
        f"mean recall of burst, slow and plateau {own.mean_recall:.3f} at {own.rate:.1f} pages per 100k, one-step {one:.2f}: the "
        f"promise (≥ .90 at ≤ 5.5, ≥ .40) {'holds' if holds else 'DOES NOT HOLD'}"
    )


def main() -> None:
    """Sweep the threshold on tune seeds, judge held-out ones with every rule, and say whether the promise holds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=50, help="spiked series, and as many healthy ones, held out")
    options = parser.parse_args()
    tune = max(1, options.seeds // 2)
    print(f"tune: {tune} + {tune} series of {STEPS} steps, seeds {FIRST_SEED['tune']} on\n")
    print(table(score({f"Spike, limit {limit:g}": ours(limit) for limit in SWEEP}, "tune", tune)))
    print(f"\nheld-out: {options.seeds} + {options.seeds} series, seeds {FIRST_SEED['held-out']} on\n")
    held_out = score({"**pplmon Spike**": ours(), **PEERS}, "held-out", options.seeds)
    print(table(held_out))
    own, olmo = held_out["**pplmon Spike**"], held_out["OLMo-core 128/6σ"]
    low, high = bootstrap(own, olmo)
    print(f"\nagainst OLMo-core: {own.mean_recall / max(olmo.mean_recall, 1e-9):.2f} × its mean recall", end=" ")
    print(f"(90 %: {low:.2f}–{high:.2f}) at {own.rate / max(olmo.rate, 1e-9):.2f} × its false pages", end=" ")
    print(f"({own.false_alarms} and {olmo.false_alarms})")
    print(promise(own))
    print("judged steps per second: " + ", ".join(f"{n} {s.judged / s.seconds:.0f}" for n, s in held_out.items()))


if __name__ == "__main__":
    main()
