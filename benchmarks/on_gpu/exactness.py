"""Every token of the kernels against float64 on the device itself, and the kernels that count against array operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import batch
from benchmarks.on_gpu.counters import ARRAYS, KERNELS, counted_by
from benchmarks.on_gpu.kept import Kept
from pplmon import TokenStats, TokenTally, token_stats
from pplmon.report import layout

VOCABULARIES, ODD = (32_000, 50_257, 128_256, 152_064), (1, 7, 1000, 4099)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BOUND = 2e-6  # of a loss, beside max(1, |lse|)
INEXACT = ("probability_whole", "probability_fraction")  # of p(target): exp is the device's own
# What the shape of a program may get wrong: rows at every distance from a 16-byte boundary, columns beside them, gaps between.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x[:, 3:].contiguous(),
    "cut out of wider rows": lambda x: x[:, 1:-2],
    "last position cut off": lambda x: x[:, 2:-1].unflatten(0, (2, -1))[:, :-1],
}


def exact(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return what is true of each row, in float64."""
    x, wanted = logits.double().flatten(0, -2), targets.flatten()
    top = x.amax(-1, keepdim=True)
    argmax = torch.where(x == top, torch.arange(x.shape[1], device=x.device), x.shape[1]).amin(-1)
    below = x - top
    log_total = torch.log1p(below.exp().scatter(1, argmax[:, None], 0.0).sum(-1))
    probability = (below - log_total[:, None]).exp()
    return {
        "nll": top[:, 0] - x.gather(1, wanted[:, None])[:, 0] + log_total,
        "lse": top[:, 0] + log_total,
        "top_probability": (-log_total).exp(),
        "entropy": log_total - (below * probability).sum(-1),
        "predicted": argmax,
    }


def errors(stats: TokenStats, logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the largest error of each column, and how many ids and flags are wrong."""
    true = exact(logits, targets)
    assert stats.top_probability is not None and stats.predicted is not None and stats.correct is not None
    found = {
        "nll": (stats.nll - true["nll"]).abs() / true["lse"].abs().clamp_min(1),
        "top_probability": (stats.top_probability / true["top_probability"] - 1).abs(),
    }
    if stats.entropy is not None:
        found["entropy"] = (stats.entropy - true["entropy"]).abs() / true["entropy"].clamp_min(1e-3)
    wrong = (stats.predicted != true["predicted"]) | (stats.correct != (true["predicted"] == targets.flatten()))
    largest = {name: float(error.nan_to_num(torch.inf).max()) for name, error in found.items()}
    return {**largest, "wrong_ids": int(wrong.sum())}


def with_ties(rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return logits [rows, vocab + 3], every other row with its largest at several columns."""
    logits = batch(rows, vocab + 3, dtype, device)[0]
    tied = [column for column in {3, 3 + vocab // 3, vocab // 2, vocab, vocab - 1} if column >= 3]
    logits[::2, tied] = 20.0
    return logits


def of_shape(kernel: str, vocab: int, dtype: torch.dtype, device: torch.device) -> list[dict[str, Any]]:
    """Compare one vocabulary in every layout."""
    rows, found = 8 if device.type == "cpu" else 96, []
    for arrangement, cut in LAYOUTS.items():
        logits = cut(with_ties(rows, vocab, dtype, device))
        shape = logits.shape[:-1]
        targets = torch.randint(vocab, shape, device=device)
        best = exact(logits, targets)["predicted"].view(shape)
        targets = torch.where(torch.rand(shape, device=device) < 0.5, best, targets)
        stats = token_stats(logits, targets, entropy=True, kernel=kernel)
        what = {"kernel": kernel, "vocab": vocab, "dtype": str(dtype).removeprefix("torch."), "layout": arrangement}
        found.append({**what, **errors(stats, logits, targets)})
    return found


def beyond_2_31(device: torch.device) -> list[dict[str, Any]]:
    """Look at both ends of a batch of more than 2**31 logits, as rows and as one sequence."""
    cuda = device.type == "cuda"
    rows, vocab, seen = (14_336, 152_064, 64) if cuda else (12, 50, 4)
    if cuda and torch.cuda.mem_get_info()[0] < 3 * 2 * rows * vocab:
        raise MemoryError("less is free than three times the batch")
    logits, targets = batch(rows, vocab, torch.bfloat16, device)
    found = []
    for arrangement, x, y in (("rows", logits, targets), ("one sequence", logits[None], targets[None])):
        stats = token_stats(x, y, entropy=True, kernel="triton")
        for part, (start, stop) in {"first": (0, seen), "last": (rows - seen, rows)}.items():
            columns = {f.name: getattr(stats, f.name) for f in dataclasses.fields(stats)}
            cut = {name: v[start:stop] for name, v in columns.items() if isinstance(v, Tensor)}
            piece = dataclasses.replace(stats, **cut, batch_shape=(seen,))
            what = {
                "kernel": "triton",
                "vocab": vocab,
                "dtype": "bfloat16",
                "layout": f"{logits.numel():,} logits as {arrangement}, {part}",
            }
            found.append({**what, **errors(piece, logits[start:stop], targets[start:stop])})
    return found


def counted(device: torch.device) -> dict[str, list[str]]:
    """Return, by kind of batch, which integers the kernels and the array operations do not find alike."""
    cuda = device.type == "cuda"
    shapes, keep = (((8, 1024), (3, 4097), (1100, 2)), 16) if cuda else (((2, 12),), 2)
    found = {}
    for rows, length in shapes:
        logits = torch.randn(rows, length, 97, device=device) * 3
        logits[0, 0, 5], logits[-1, -1, 7] = torch.nan, torch.inf
        targets = torch.randint(-1, 98, (rows, length), device=device)
        data = {
            "document_ids": (torch.rand(rows, length, device=device) < 0.01).cumsum(1),
            "sample_ids": torch.arange(rows, device=device) * 7,
            "position_ids": torch.arange(rows * length, device=device).flip(0).view(rows, length),
        }
        for shift in (False, True):
            stats = token_stats(logits, targets, shift=shift, entropy=True)
            for names in ((), tuple(data)):
                totals = []
                for who in (KERNELS, ARRAYS):
                    tally = TokenTally(top_k=keep, context=4).to(device)
                    with counted_by(who, device):
                        for step in (3, 2):
                            tally.update(stats, step=step, **{name: data[name] for name in names})
                    totals.append(_comparable(tally))
                differing = [name for name in totals[0] if totals[0][name] != totals[1][name]]
                found[f"{rows} x {length}{', shifted' if shift else ''}, {' '.join(names) or 'rows'}"] = differing
    return found


def _comparable(tally: TokenTally) -> dict[str, Any]:
    totals = tally.local_totals()
    sums = {name: value for name, value in zip(layout.SUMS, totals.sums) if name not in INEXACT}
    return {
        "sums": sums,
        "maxima": totals.maxima,
        "histogram": totals.histogram.buckets(),
        "token_rows": totals.token_rows,
        "sequence_rows": totals.sequence_rows,
    }


def run(kept: Kept, device: torch.device) -> None:
    """Compare, and keep a table of the largest errors."""
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for vocab in (*VOCABULARIES, *ODD) if device.type == "cuda" else (1, 7, 300):
        for dtype in DTYPES:
            for kernel in ("triton", "eager"):
                with kept.step(f"{kernel}, V = {vocab}, {dtype}"):
                    rows += of_shape(kernel, vocab, dtype, device)
        kept.keep("tokens", rows)
        kept.table(f"Errors against float64 (a loss may err by {BOUND:g})", *_table(rows))
    with kept.step("counting"):
        differing = counted(device)
        kept.keep("counting", differing)
        kept.table(
            "Counting, kernels against arrays",
            ["batch", "differs in"],
            [[k, ", ".join(v) or "nothing"] for k, v in differing.items()],
        )
    with kept.step("beyond 2**31 logits"):
        rows += beyond_2_31(device)
        kept.keep("tokens", rows)
        kept.table(f"Errors against float64 (a loss may err by {BOUND:g})", *_table(rows))


def _table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[object]]]:
    """The worst of each kernel and dtype, over vocabularies and layouts."""
    columns, lines = ["kernel", "dtype", "cases", "loss", "at", "probability", "entropy", "wrong ids"], []
    for kind in sorted({(row["kernel"], row["dtype"]) for row in rows}):
        of_kind = [row for row in rows if (row["kernel"], row["dtype"]) == kind]
        worst = max(of_kind, key=lambda row: row["nll"])
        others = [f"{max(row[name] for row in of_kind):.1e}" for name in ("top_probability", "entropy")]
        at = f"V = {worst['vocab']}, {worst['layout']}"
        lines.append(
            [*kind, len(of_kind), f"{worst['nll']:.1e}", at, *others, sum(row["wrong_ids"] for row in of_kind)]
        )
    return columns, lines
