"""What each extra costs: operators of one update, integers that are kept and sent, memory held for a moment, and time.

    python -m benchmarks.extras [--rows 4] [--length 1024] [--vocab 32000] [--dtype bfloat16] [--rounds 5] [--markdown] [--out F]

An extra's update is measured by itself, on stats that are there already; the first row is the update of a tally without any, which
measures the logits. All that may come with a batch comes with it: packed documents, input ids, group ids, sample ids. On a CPU
operators are those that touch elements, on a GPU launches. All together take the sum of them, one after the other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import pplmon
from benchmarks.machine import machine
from benchmarks.meter import Timer, costs, interleaved
from pplmon.extras.base import Extra

GROUPS, CLASSES = 4, 7
COLUMNS = ("extra", "operators", "integers", "bytes a token, for a moment", "ms")


def extras(vocab: int) -> list[Extra]:
    """Return one of each."""
    return [
        pplmon.TokenClasses(torch.arange(vocab) % CLASSES, [str(n) for n in range(CLASSES)]),
        pplmon.Novelty(),
        pplmon.Rollouts(),
        pplmon.Calibration(),
        pplmon.Groups([str(n) for n in range(GROUPS)]),
        pplmon.Positions(),
        pplmon.Uncertainty(),
        pplmon.Entropy(),
    ]


def batch(options: argparse.Namespace) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits and all that comes with them."""
    shape = (options.rows, options.length)
    logits = torch.randn(*shape, options.vocab, dtype=getattr(torch, options.dtype), device=options.device)
    ids = torch.randint(options.vocab, shape, device=options.device)
    return logits, {
        "targets": ids,
        "input_ids": ids.roll(1, 1),
        "document_ids": (torch.rand(shape, device=options.device) < 0.01).cumsum(1),
        "group_ids": torch.randint(GROUPS, shape, device=options.device),
        "sample_ids": torch.arange(options.rows, device=options.device),
    }


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for a tally without extras, one for each extra, and one for all of them."""
    device = torch.device(options.device)
    logits, data = batch(options)
    plain = pplmon.TokenTally().to(device)
    stats = pplmon.token_stats(logits, data["targets"], entropy=True)
    more = {name: value for name, value in data.items() if name != "targets"}
    runs: dict[str, Any] = {"none": lambda: plain.update(logits, **data)}
    integers = {"none": sum(state.numel() for state in plain.state_dict().values())}
    for extra in extras(options.vocab):
        name = type(extra).__name__
        runs[name] = lambda extra=extra: extra.update(stats, stats.scored, logits, **more)
        integers[name] = extra.size + extra.maxima
    times = interleaved(runs, Timer(device), options.rounds)
    rows = []
    for name, run in runs.items():
        cost = costs(run, device)
        held = cost["peak_bytes"] / (options.rows * options.length)
        row = {"extra": name, "operators": cost["launches"], "integers": integers[name], "bytes_a_token": held}
        rows.append({**row, "ms": statistics.median(times[name]), "syncs": cost["syncs"]})
    added: dict[str, Any] = {
        name: sum(row[name] for row in rows[1:]) for name in ("operators", "integers", "ms", "syncs")
    }
    return [*rows, {"extra": "all", **added, "bytes_a_token": max(row["bytes_a_token"] for row in rows[1:])}]


def texts(row: dict[str, Any]) -> list[str]:
    """Return a row as it is shown."""
    return [
        row["extra"],
        f"{row['operators']:.0f}",
        str(row["integers"]),
        f"{row['bytes_a_token']:.0f}",
        f"{row['ms']:.1f}",
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extras", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = measured(options)
    if options.out is not None:
        settings = {key: value for key, value in vars(options).items() if key != "out"}
        options.out.write_text(
            json.dumps({"machine": machine(), "settings": settings, "results": rows}, indent=1) + "\n"
        )
    where = f"{options.device}, {options.rows}·{options.length} tokens, V = {options.vocab}, {options.dtype}, {options.threads} threads"
    if options.markdown:
        lines = [COLUMNS, ["---"] * len(COLUMNS), *map(texts, rows)]
        print(where, "", *("| " + " | ".join(line) + " |" for line in lines), sep="\n")
        return
    table = Table(*COLUMNS, title=where)
    for row in rows:
        table.add_row(*texts(row))
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
