"""Tries out the kernels' few constants: finds the fastest on this card and its gain. Nothing in the source changes.

Constants are read when a kernel is called, so a process tries others by setting them in their modules. Every program (warps for
a row, chunks for a thread) is timed on every shape once; a rule that picks a program by a row's length is then judged by these times.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any
from unittest import mock

import torch

from benchmarks.measure import batch
from benchmarks.meter import Timer, interleaved
from benchmarks.on_gpu.counters import KERNELS, counted_by
from benchmarks.on_gpu.kept import Kept
from pplmon import TokenStats, TokenTally, token_stats
from pplmon.measure import eager
from pplmon.measure.triton import launch as measuring
from pplmon.tally.count.triton import launch as counting

WARPS, PER_THREAD, ROUNDS_OF_A_WARP = (1, 2, 4, 8, 16), (1, 2, 4), (1, 2, 4, 8, 16, 32)
DTYPES = (torch.bfloat16, torch.float32)
SHAPES = ((1000, 32_768), (8192, 8192), (32_000, 4096), (50_257, 4096), (128_256, 4096), (152_064, 4096))  # V, N
WIDTHS, COUNT_WARPS, FINISH_WARPS = (256, 512, 1024, 2048), (4, 8), (1, 2, 4, 8)
CHUNKS = (2**22, 2**23, 2**24, 2**25, 2**26)
ROUNDS = 5

Program = tuple[int, int]  # warps for a row, chunks for a thread
Rule = tuple[int, int, int]  # MAX_WARPS, MIN_ROUNDS, CHUNKS_PER_THREAD
Times = dict[tuple[int, torch.dtype], dict[Program, float]]  # milliseconds, by V and dtype


@contextmanager
def constants(most_warps: int, least_rounds: int, per_thread: int) -> Iterator[None]:
    """Set the constants of the kernel that measures."""
    values = {"MAX_WARPS": most_warps, "MIN_ROUNDS": least_rounds, "CHUNKS_PER_THREAD": per_thread}
    with mock.patch.multiple(measuring, **values):
        yield


def with_program(program: Program, call: Callable[[], Any]) -> Any:
    """Call where every row, however short, is measured by one program."""
    with constants(program[0], 0, program[1]):
        return call()


def calls(device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return a small call of each program, to compile it."""
    found = {}
    for dtype in DTYPES:
        logits, targets = batch(4, 1000, dtype, device)
        measure = partial(token_stats, logits, targets, kernel="triton")
        for program in programs(device):
            found[f"{dtype} {program}"] = partial(with_program, program, measure)
    return found


def programs(device: torch.device) -> list[Program]:
    """Return all programs; in a dry run those that the constants of the source may pick."""
    return list(product(WARPS, PER_THREAD)) if device.type == "cuda" else [(1, 2), (2, 2), (4, 2)]


def timed(device: torch.device) -> Iterator[tuple[int, torch.dtype, dict[Program, float]]]:
    """Yield the times of every program on one shape after the other."""
    timer = Timer(device)
    for dtype in DTYPES:
        for vocab, tokens in SHAPES if device.type == "cuda" else ((600, 1),):
            logits, targets = batch(tokens, vocab, dtype, device)
            measure = partial(token_stats, logits, targets, kernel="triton")
            runs = {str(program): partial(with_program, program, measure) for program in programs(device)}
            taken = interleaved(runs, timer, ROUNDS if device.type == "cuda" else 1)
            yield vocab, dtype, {program: statistics.median(taken[str(program)]) for program in programs(device)}


def judged(rule: Rule, times: Times) -> float:
    """Return the geometric mean of a rule's times over the best program's, for each shape."""
    logs = []
    for (vocab, dtype), of_programs in times.items():
        with constants(*rule):
            _, warps = measuring.shape_of_program(vocab * dtype.itemsize)
        logs.append(math.log(of_programs[warps, rule[2]] / min(of_programs.values())))
    return math.exp(statistics.fmean(logs))


def chosen(times: Times) -> dict[str, Any]:
    """Return the best rule and the one in the source, each with how far it is from the best program of each shape."""
    tried = {program for of_programs in times.values() for program in of_programs}
    rules = [
        (most, rounds, per_thread)
        for most, rounds, per_thread in product(WARPS, ROUNDS_OF_A_WARP, PER_THREAD)
        if {(warps, per_thread) for warps in WARPS if warps <= most} <= tried
    ]
    now = (measuring.MAX_WARPS, measuring.MIN_ROUNDS, measuring.CHUNKS_PER_THREAD)
    best = min(rules or [now], key=lambda rule: judged(rule, times))
    names = ("MAX_WARPS", "MIN_ROUNDS", "CHUNKS_PER_THREAD")
    return {
        "now": dict(zip(names, now)) | {"over_best": judged(now, times)},
        "best": dict(zip(names, best)) | {"over_best": judged(best, times)},
        "gain": judged(now, times) / judged(best, times) - 1,
    }


def counting_variants() -> dict[str, dict[str, Any]]:
    """Return what is set, by name, to count otherwise than the source says."""
    found: dict[str, dict[str, Any]] = {"now": {}}
    found |= {f"WIDTH = {width}": {"WIDTH": width} for width in WIDTHS if width != counting.WIDTH}
    found |= {f"count, {warps} warps": {"count": _Warps(counting.count, warps)} for warps in COUNT_WARPS}
    found |= {f"finish, {warps} warps": {"finish": _Warps(counting.finish, warps)} for warps in FINISH_WARPS}
    return found


class _Warps:
    """A kernel that is launched with so many warps."""

    def __init__(self, kernel: Any, warps: int) -> None:
        self._kernel, self._warps = kernel, warps

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return partial(self._kernel[grid], num_warps=self._warps)


def with_counting(values: dict[str, Any], call: Callable[[], Any]) -> Any:
    """Call with other constants or kernels in the module that counts."""
    with mock.patch.multiple(counting, **values) if values else mock.patch.dict({}):
        return call()


def counting_calls(device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return what counts one batch, by variant."""
    rows, length, keep = (8, 1024, 8) if device.type == "cuda" else (1, 9, 1)
    targets = torch.randint(50, (rows, length), device=device)
    losses = torch.rand(rows, length, device=device) * 8
    stats = TokenStats.from_losses(losses, targets, predicted=targets, vocab_size=50)
    tally = TokenTally(top_k=keep).to(device)

    def update() -> None:
        with counted_by(KERNELS, device):
            tally.update(stats)

    variants = counting_variants() if device.type == "cuda" else {"now": {}, "WIDTH = 64": {"WIDTH": 64}}
    return {name: partial(with_counting, values, update) for name, values in variants.items()}


def counted(device: torch.device) -> dict[str, float]:
    """Return the milliseconds of counting one batch, by variant."""
    taken = interleaved(counting_calls(device), Timer(device), 3 * ROUNDS if device.type == "cuda" else 1)
    return {name: statistics.median(times) for name, times in taken.items()}


def with_chunks(logits: int, call: Callable[[], Any]) -> Any:
    """Call with another size of the eager kernel's chunks on a GPU."""
    with mock.patch.object(eager, "ACCELERATOR_LOGITS", logits):
        return call()


def chunks(device: torch.device) -> dict[str, float]:
    """Return the eager kernel's milliseconds, by the logits of a chunk."""
    logits, targets = (
        batch(4096, 32_000, torch.bfloat16, device) if device.type == "cuda" else batch(8, 50, torch.bfloat16, device)
    )
    measure = partial(token_stats, logits, targets, kernel="eager")
    runs = {f"2^{int(math.log2(size))}": partial(with_chunks, size, measure) for size in CHUNKS}
    return {name: statistics.median(times) for name, times in interleaved(runs, Timer(device), ROUNDS).items()}


def run(kept: Kept, device: torch.device) -> None:
    """Try all, and keep times, choice and gain."""
    times: Times = {}
    with kept.step("measuring"):
        for vocab, dtype, of_programs in timed(device):
            times[vocab, dtype] = of_programs
            found = {
                f"V = {v}, {d}": {f"{p[0]} warps, {p[1]} chunks": ms for p, ms in of.items()}
                for (v, d), of in times.items()
            }
            kept.keep("programs_ms", found)
            kept.table("The best program of each shape", *_programs(times))
    with kept.step("choice"):
        choice = chosen(times)
        kept.keep("choice", choice)
        kept.table(
            "Constants of the kernel that measures",
            ["", *choice["now"]],
            [[name, *choice[name].values()] for name in ("now", "best")],
        )
    for name, try_out in (("counting_ms", counted), ("eager_chunks_ms", chunks)):
        with kept.step(name):
            taken = try_out(device)
            kept.keep(name, taken)
            kept.table(name.replace("_", " "), list(taken), [[f"{ms:.4f}" for ms in taken.values()]])


def _programs(times: Times) -> tuple[list[str], list[list[object]]]:
    lines: list[list[object]] = []
    for (vocab, dtype), of_programs in times.items():
        best = min(of_programs, key=lambda program: of_programs[program])
        with_now = (measuring.shape_of_program(vocab * dtype.itemsize)[1], measuring.CHUNKS_PER_THREAD)
        now = of_programs.get(with_now)
        lines.append(
            [vocab, dtype, *best, f"{of_programs[best]:.4f}", "" if now is None else f"{now / of_programs[best]:.3f}"]
        )
    return ["V", "dtype", "warps", "chunks for a thread", "ms", "as it is, over this"], lines
