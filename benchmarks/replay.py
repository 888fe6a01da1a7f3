"""Time a replay: steps per second and rule, with and without reading the journal.

    python benchmarks/replay.py [--steps 200000]

Times are the process's own (CPU seconds; it has one thread): on a shared machine the clock on the wall tells of others.
Every rule judges the same series: falling, noisy, with a spike now and then, so that all its branches are taken.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
import time
from pathlib import Path

from pplmon import replay
from pplmon.report.report import Report
from pplmon.sinks import Journal

RULES = (
    "NonFinite()",
    "Above('max_token_loss', 40)",
    "Below('token_accuracy', 0.01, for_steps=3)",
    "Spike('cross_entropy')",
    "Spike('max_sequence_loss')",
)
REPEATS = 3


def write(directory: Path, steps: int) -> None:
    """Write a journal of judged rows as a monitor does, 22 bytes or so for each number."""
    noise = random.Random(0)
    journal = Journal(directory)
    journal.start({"alerts": list(RULES), "judge_every_n_steps": 1})
    for step in range(steps):
        loss = 3 + 6 * math.exp(-step / 2000) + noise.gauss(0, 0.05) + 5 * (step % 9973 == 9972)
        worst = loss + noise.expovariate(0.5)
        numbers = {
            "cross_entropy": loss,
            "perplexity": math.exp(loss),
            "token_accuracy": 1 / loss,
            "inverse_perplexity": math.exp(-loss),
            "max_token_loss": 14 + noise.expovariate(1),
            "max_sequence_loss": worst,
            "token_loss_p99": 3 * loss,
            "nonfinite_tokens": int(step % 30011 == 30010),
            "tokens_seen": 4096 * (step + 1),
            "worst_1pct_loss": 3.4 * loss,
            "max_token_excess": noise.expovariate(1) - 4,
            "relative_cross_entropy": loss / 10.8,
            "tokens": 4096,
            "invalid_targets": 0,
        }
        journal.judged(Report(step, "train", numbers))
    journal.close()


def timed(work: object) -> tuple[float, object]:
    """Return the median CPU seconds of a few runs, and what the last gave."""
    seconds, given = [], None
    for _ in range(REPEATS):
        begun = time.process_time()
        given = work()  # type: ignore[operator]
        seconds.append(time.process_time() - begun)
    return statistics.median(seconds), given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200_000, help="judged steps in the journal (default: %(default)s)")
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), steps)
        size = (Path(directory) / "pplmon.jsonl").stat().st_size
        reading, series = timed(lambda: replay.read(directory))
        print(f"{steps:,} judged steps, {size / steps:.0f} bytes a step; reading {steps / reading:,.0f} steps/s\n")
        print(f"{'rule':45} {'judging':>12} {'and reading':>12}   steps/s")
        for texts in ([rule] for rule in RULES):
            report(texts, steps, reading, series)
        report(list(RULES), steps, reading, series)


def report(texts: list[str], steps: int, reading: float, series: object) -> None:
    """Time some rules over the series; the rates are for each rule."""
    rules = replay.Rules(texts, series)  # type: ignore[arg-type]
    judging, result = timed(lambda: replay.run(series, rules))  # type: ignore[arg-type]
    name = texts[0] if len(texts) == 1 else f"all {len(texts)}, for each rule"
    work = steps * len(texts)
    alerts = len(result.fired)  # type: ignore[attr-defined]
    print(f"{name:45} {work / judging:12,.0f} {work / (judging + reading):12,.0f}   {alerts} alerts")


if __name__ == "__main__":
    main()
