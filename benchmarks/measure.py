"""Time the measurement of logits, beside one read of them: ours, torchmetrics, torch.compile, Liger and TRL in one run.

    python -m benchmarks.measure [--tokens 1024] [--vocab 32000 128256] [--dtype float32 bfloat16] [--device cpu]
                                 [--threads 2] [--rounds 7] [--ways pplmon torchmetrics] [--markdown] [--out result.json]

The floor is the faster of ``x.sum()`` and ``x.amax()``, timed in the same rounds. All ways take turns within a round; the table
has medians of times, and of the ratios within a round; the JSON has all times. Memory is what the allocator held at its peak beyond the logits, as a multiple of their bytes. On a
GPU times are between events, with the caches flushed before each run.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.machine import machine
from benchmarks.meter import Timer, costs, first_call_s, interleaved
from benchmarks.ways import PEER, WAYS, NotHereError, Way

SPREAD = 3.0  # standard deviation of the logits: losses near 14 nats at V = 32k, none of them tiny
FLOOR = "floor: one read"
FLOORS: dict[str, Callable[[Tensor], Any]] = {"x.sum()": lambda x: x.sum(), "x.amax()": lambda x: x.amax()}
COLUMNS = ("N", "V", "dtype", "way", "ms", "× floor", "× torchmetrics", "memory × logits", "launches", "syncs",
           "allocations", "loss off by")  # fmt: skip

Row = dict[str, Any]


def cell(
    tokens: int,
    vocab: int,
    dtype: torch.dtype,
    options: argparse.Namespace,
    absent: dict[str, str],
    floors: Mapping[str, Callable[[Tensor], Any]] = FLOORS,
) -> list[Row]:
    """Measure one shape in every way; ``absent`` gets the reasons of those that do not run."""
    device = torch.device(options.device)
    logits, targets = batch(tokens, vocab, dtype, device)
    truth = exact_mean(logits, targets)
    torch._dynamo.reset()  # the peers are compiled for each shape, without a memory of the last
    made: dict[str, Way] = {}
    rows: dict[str, Row] = {}
    for name in chosen(options.ways):
        way, row = once(name, logits, targets, truth)
        if way is None:
            absent[name] = row["reason"]
        else:
            made[name], rows[name] = way, row
    runs = {name: way.run for name, way in made.items()}
    runs.update({name: lambda read=read: read(logits) for name, read in floors.items()})
    times = interleaved(runs, Timer(device), options.rounds)
    floor = min(floors, key=lambda name: statistics.median(times[name]))
    shape = {"tokens": tokens, "vocab": vocab, "dtype": str(dtype).removeprefix("torch.")}
    found = [{**shape, "way": FLOOR, "read_by": floor, **_timed(times[floor]), "over_floor": 1.0, **_none()}]
    for name, row in rows.items():
        timed, faster = _timed(times[name]), paired(times[PEER], times[name]) if PEER in times else None
        ratios = {"over_floor": paired(times[name], times[floor]), "faster_than_torchmetrics": faster}
        found.append(
            {**shape, "way": name, **timed, **ratios, **row, "peak_over_logits": row["peak_bytes"] / logits.nbytes}
        )
    return found


def paired(one: list[float], other: list[float]) -> float:
    """Return the median over rounds of the ratio within a round, which a drift of the machine does not change."""
    return statistics.median(a / b for a, b in zip(one, other))


def _timed(taken: list[float]) -> Row:
    return {"median_ms": statistics.median(taken), "min_ms": min(taken), "all_ms": taken}


def once(name: str, logits: Tensor, targets: Tensor, truth: float) -> tuple[Way | None, Row]:
    """Make a way, and return it with all but its times; or None, with the reason why it does not run here."""
    device = logits.device
    try:
        way = WAYS[name](logits, targets)
        first = first_call_s(way.run, device)
        off = abs(way.mean(way.run()) - truth)
        return way, {"first_call_s": first, "mean_loss_off": off, **costs(way.run, device)}
    except NotHereError as reason:
        return None, {"reason": str(reason)}
    except Exception as error:  # one of many: the others are worth having
        return None, {"reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}


def _none() -> Row:
    return dict.fromkeys(
        ("faster_than_torchmetrics", "peak_over_logits", "launches", "syncs", "allocations", "mean_loss_off")
    )


def batch(tokens: int, vocab: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return logits [N, V] and targets [N], made where they are used."""
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.empty(tokens, vocab, dtype=dtype, device=device)
    for rows in logits.split(256):  # no float32 copy of the whole
        rows.copy_(torch.randn(rows.shape, generator=generator, device=device) * SPREAD)
    return logits, torch.randint(vocab, (tokens,), generator=generator, device=device)


def exact_mean(logits: Tensor, targets: Tensor) -> float:
    """Return the mean loss in float64."""
    total = 0.0
    for rows, wanted in zip(logits.split(64), targets.split(64)):
        total += torch.nn.functional.cross_entropy(rows.double(), wanted, reduction="sum").item()
    return total / len(targets)


def chosen(wanted: list[str]) -> list[str]:
    """Return the ways that ``wanted`` names whole, and those whose names hold another of its words; all, if it has none."""
    words = [part.lower() for part in wanted if part not in WAYS]
    return [name for name in WAYS if not wanted or name in wanted or any(word in name.lower() for word in words)]


def texts(row: Row) -> list[str]:
    """Return a row as it is shown."""

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    counts = [shown(row[name], ".0f") for name in ("launches", "syncs", "allocations")]
    return [
        *(str(row[name]) for name in ("tokens", "vocab", "dtype", "way")),
        shown(row["median_ms"], ".2f"),
        shown(row["over_floor"], ".1f"),
        shown(row["faster_than_torchmetrics"], ".1f"),
        shown(row["peak_over_logits"], ".3f"),
        *counts,
        shown(row["mean_loss_off"], ".0e"),
    ]


def markdown(rows: list[Row]) -> str:
    """Return the table as docs/performance.md has it."""
    lines = [COLUMNS, ("-",) * len(COLUMNS), *(texts(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table(rows: list[Row], title: str) -> Table:
    """Return the table for the terminal."""
    shown = Table(title=title)
    for name in COLUMNS:
        shown.add_column(name, justify="left" if name in ("way", "dtype") else "right")
    for row, after in zip(rows, [*rows[1:], rows[0]]):
        shown.add_row(*texts(row), end_section=after["way"].startswith("floor"))
    return shown


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024], help="N")
    parser.add_argument("--vocab", type=int, nargs="+", default=[32000, 128256], help="V")
    parser.add_argument(
        "--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", nargs="+", default=[], help="only those whose name has one of these in it")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    absent: dict[str, str] = {}
    rows: list[Row] = []
    for tokens in options.tokens:
        for vocab in options.vocab:
            for dtype in options.dtype:
                rows += cell(tokens, vocab, getattr(torch, dtype), options, absent)
                gc.collect()
    where = f"{options.device}, {options.threads} threads, median of {options.rounds} interleaved rounds"
    if options.markdown:
        print(f"{where}\n\n{markdown(rows)}")
    else:
        Console(width=max(Console().width, 170)).print(table(rows, where))
    for name, reason in absent.items():
        print(f"not run: {name}: {reason}", file=sys.stderr)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {key: value for key, value in vars(options).items() if key != "out"}
        found = {"machine": machine(), "settings": settings, "results": rows, "not_run": absent}
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
