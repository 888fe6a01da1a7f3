"""Collectives, bytes and time per read-out: pplmon beside torchmetrics and Lightning's ``self.log(sync_dist=True)``.

    python -m benchmarks.collectives [--ranks 1 2 4 8 16] [--repeats 30] [--out result.json]

Each rank is a process that talks over gloo. Collectives are counted, and their bytes added up, by wrapping the functions
of ``torch.distributed`` while one read-out is made; times are taken without the wrapping.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.machine import machine
from pplmon import TokenTally, token_stats
from pplmon.testing import run_on_ranks

VOCAB, ROWS, LENGTH = 512, 4, 128
COLLECTIVES = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "all_to_all", "barrier", "broadcast", "gather", "reduce",
    "reduce_scatter", "scatter",
)  # fmt: skip


def pplmon_way(logits: Tensor, targets: Tensor) -> Callable[[], Any]:
    """Every number of the report."""
    tally = TokenTally()
    tally.update(logits, targets)
    return lambda: tally.read_out().totals().report()


def torchmetrics_way(logits: Tensor, targets: Tensor) -> Callable[[], Any]:
    """The four nearest metrics, in one collection."""
    from torchmetrics import MaxMetric, MeanMetric, MetricCollection
    from torchmetrics.classification import MulticlassAccuracy
    from torchmetrics.text import Perplexity

    settings = {"compute_with_cache": False}
    collection = MetricCollection(
        {
            "perplexity": Perplexity(**settings),
            "accuracy": MulticlassAccuracy(VOCAB, average="micro", **settings),
            "mean": MeanMetric(**settings),
            "max": MaxMetric(**settings),
        },
        compute_groups=False,
    )
    nll = token_stats(logits, targets).nll
    collection["perplexity"].update(logits, targets)
    collection["accuracy"].update(logits.flatten(0, 1), targets.flatten())
    collection["mean"].update(nll)
    collection["max"].update(nll)
    return collection.compute


def lightning_way(logits: Tensor, targets: Tensor) -> Callable[[], Any]:
    """The same four as keys of ``self.log(sync_dist=True)``: the function that Lightning calls once for each key."""
    from lightning_fabric.utilities.distributed import _sync_ddp_if_available

    nll = token_stats(logits, targets).nll
    keys = [(nll.mean(), "mean"), (nll.mean(), "mean"), (nll.mean(), "mean"), (nll.max(), "max")]
    return lambda: [_sync_ddp_if_available(value.clone(), reduce_op=op).item() for value, op in keys]


WAYS = {"pplmon": pplmon_way, "torchmetrics": torchmetrics_way, "self.log(sync_dist=True)": lightning_way}


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count the collectives that are started within, and the bytes that this rank gives to each."""
    seen = {"collectives": 0, "bytes": 0}
    kept = {name: getattr(dist, name) for name in COLLECTIVES}

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [value for value in args if isinstance(value, Tensor)]
            seen["collectives"] += 1
            seen["bytes"] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            return kept[name](*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, wrapped(name))
    try:
        yield seen
    finally:
        for name, function in kept.items():
            setattr(dist, name, function)


def measure(rank: int, repeats: int) -> dict[str, dict[str, float]]:
    """Read out in each way on this rank."""
    generator = torch.Generator().manual_seed(rank)
    logits = torch.randn(ROWS, LENGTH, VOCAB, generator=generator)
    targets = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator)
    found: dict[str, dict[str, float]] = {}
    for name, way in WAYS.items():
        read_out = way(logits, targets)
        read_out()  # pplmon's first also compares the ranks' layouts
        with counted() as seen:
            read_out()
        times = []
        for _ in range(repeats):
            dist.barrier()
            begun = time.perf_counter()
            read_out()
            times.append(1000 * (time.perf_counter() - begun))
        median = statistics.median(times)
        found[name] = {**seen, "median_ms": median, "min_ms": min(times), "step_waits_ms": median}
    found["pplmon"]["step_waits_ms"] = launch(logits, targets, repeats)
    return found


def launch(logits: Tensor, targets: Tensor, repeats: int) -> float:
    """What a training step waits for: the start of a read-out that is taken in a step later."""
    tally, times = TokenTally(), []
    tally.update(logits, targets)
    tally.read_out().totals()
    for _ in range(repeats):
        dist.barrier()
        begun = time.perf_counter()
        under_way = tally.read_out()
        times.append(1000 * (time.perf_counter() - begun))
        under_way.totals()
    return statistics.median(times)


def table(results: dict[int, dict[str, dict[str, float]]]) -> Table:
    """Show the results, and how many times longer the others take."""
    shown = Table(title="one read-out (rank 0); pplmon's is taken in a step later, so a step waits for its start only")
    for column in ("ranks", "way", "collectives", "bytes", "median ms", "min ms", "× pplmon", "step waits ms"):
        shown.add_column(column, justify="left" if column == "way" else "right")
    for ranks, ways in results.items():
        for name, row in ways.items():
            ratio = row["median_ms"] / ways["pplmon"]["median_ms"]
            counts = (f"{row['collectives']:.0f}", f"{row['bytes']:,.0f}")
            times = [f"{row[column]:.2f}" for column in ("median_ms", "min_ms")]
            last = (f"{ratio:.1f}", f"{row['step_waits_ms']:.2f}")
            shown.add_row(str(ranks), name, *counts, *times, *last, end_section=name == list(ways)[-1])
    return shown


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="numbers of processes")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    options = parser.parse_args(arguments)
    results = {ranks: run_on_ranks(measure, ranks, options.repeats, timeout_s=600)[0] for ranks in options.ranks}
    Console(width=max(Console().width, 110)).print(table(results))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
