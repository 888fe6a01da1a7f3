"""How often a 95 % interval of the perplexity holds the truth: by tokens, by rows, and by documents, as ``Uncertainty`` does.

    python -m benchmarks.coverage [--documents 20 40 80] [--samples 2000] [--markdown] [--out result.json]

Documents are the modules of Python's standard library; the model, of triples of bytes, is made of every second one. The others are
the population: its perplexity is the truth. From it documents are drawn with replacement, again and again; each sample of them
gives an interval in each of three ways, and each way's coverage is the share of its intervals in which the truth lies.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from pplmon.extras.nats import LOW_BITS
from pplmon.extras.uncertainty import BUCKETS, COLUMNS, Uncertainty, bucket_of
from pplmon.report import layout

ROW = 128  # tokens
LEAST_BYTES, MOST_BYTES = 500, 100_000
Z = 1.96
WAYS = ("tokens", "rows", "documents")


class Document(NamedTuple):
    """The losses of one document: of its rows tokens and Σ nll in 2^-32 nats; of all its tokens Σ nll²."""

    tokens: np.ndarray[Any, Any]
    units: np.ndarray[Any, Any]
    squares: float


def library() -> list[bytes]:
    """Return the modules of the standard library, in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts]
    return [text for text in (path.read_bytes()[:MOST_BYTES] for path in files) if len(text) >= LEAST_BYTES]


def population(texts: list[bytes]) -> list[Document]:
    """Return the losses of every second document, for a model of the others."""
    counts = np.ones((256, 256, 256), np.float32) * 1e-3
    for text in texts[::2]:
        ids = np.frombuffer(text, np.uint8).astype(np.int64)
        np.add.at(counts.reshape(-1), ids[:-2] * 65536 + ids[1:-1] * 256 + ids[2:], 1)
    pairs = counts.sum(2, keepdims=True)
    back_off = counts.sum(0) / counts.sum((0, 2))[:, None]
    losses = -np.log((counts + 2 * back_off[None]) / (pairs + 2))
    return [_document(losses, np.frombuffer(text, np.uint8).astype(np.int64)) for text in texts[1::2]]


def _document(losses: np.ndarray[Any, Any], ids: np.ndarray[Any, Any]) -> Document:
    nll = losses[ids[:-2], ids[1:-1], ids[2:]].astype(np.float64)
    units = np.rint(nll * 2.0**layout.FRACTION_BITS).astype(np.int64)
    starts = np.arange(0, len(nll), ROW)
    tokens = np.diff(np.append(starts, len(nll)))
    return Document(tokens, np.add.reduceat(units, starts), float((nll**2).sum()))


def by_tokens(sample: list[Document]) -> tuple[float, float]:
    """Return mean ± 1.96 · sd / √tokens, as if tokens had nothing to do with each other."""
    tokens = sum(int(document.tokens.sum()) for document in sample)
    mean = sum(int(document.units.sum()) for document in sample) / 2**layout.FRACTION_BITS / tokens
    width = Z * math.sqrt((sum(document.squares for document in sample) / tokens - mean**2) / tokens)
    return math.exp(mean - width), math.exp(mean + width)


def by_keys(tokens: np.ndarray[Any, Any], units: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the interval that ``Uncertainty`` gives, where each of these is a document by itself."""
    sums = np.zeros((BUCKETS, COLUMNS), np.int64)
    columns = np.stack([tokens, units >> LOW_BITS, units & (2**LOW_BITS - 1)], 1)
    np.add.at(sums, bucket_of(torch.arange(len(tokens))).numpy(), columns)
    numbers: Any = Uncertainty().numbers([0, 0, *sums.flatten().tolist()])
    return numbers["perplexity_low"], numbers["perplexity_high"]


def intervals(sample: list[Document]) -> Iterator[tuple[float, float]]:
    """Yield the interval of each way."""
    yield by_tokens(sample)
    yield by_keys(*(np.concatenate([document[column] for document in sample]) for column in (0, 1)))
    yield by_keys(*(np.array([document[column].sum() for document in sample]) for column in (0, 1)))


def coverage(documents: list[Document], size: int, samples: int) -> dict[str, dict[str, float]]:
    """Return for each way the share of samples whose interval holds the truth, and the interval's mean width in nats."""
    chance = np.random.default_rng(size)
    tokens, units = (sum(int(document[column].sum()) for document in documents) for column in (0, 1))
    truth = math.exp(units / 2**layout.FRACTION_BITS / tokens)
    held, width = np.zeros(len(WAYS)), np.zeros(len(WAYS))
    for _ in range(samples):
        sample = [documents[index] for index in chance.integers(len(documents), size=size)]
        ends = np.array(list(intervals(sample)))
        held += (ends[:, 0] <= truth) & (truth <= ends[:, 1])
        width += np.log(ends[:, 1] / ends[:, 0])
    return {way: {"coverage": held[i] / samples, "width": width[i] / samples} for i, way in enumerate(WAYS)}


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[20, 40, 80], help="in a sample")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    documents = population(library())
    found = {size: coverage(documents, size, options.samples) for size in options.documents}
    if options.out:
        options.out.write_text(json.dumps({"machine": machine(), "population": len(documents), "coverage": found}))
    header = ["documents in a sample", *(f"by {way}" for way in WAYS)]
    rows = [
        [str(size), *(f"{way['coverage']:.1%} (± {way['width'] / 2:.3f} nats)" for way in f.values())]
        for size, f in found.items()
    ]
    if options.markdown:
        print(*("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)), sep="\n")
        return
    table = Table(*header, title=f"Intervals of 95 % that hold the truth; a population of {len(documents)} documents")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
