"""Measure a call: its time, allocations, launches and waits, on a CPU and on a CUDA device."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

WARM_UP = 3
FLUSHED = 2**28  # bytes written between runs on a GPU: more than its caches hold
# Written so often, for some two milliseconds: so that the host has handed a call over before the device comes to it, as in training.
BACKLOG = 24
WAIT = (
    "called a synchronizing"  # of the text of PyTorch's warning; when the mode is first set, it warns of something else
)
SYNCS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal")
WORK = ("aten::", "## Call CompiledFxGraph")
CUDA = torch.device("cuda")
# Leaves of the profile that do no work on elements.
IDLE = {
    "aten::alias", "aten::as_strided", "aten::detach", "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::expand",
    "aten::lift_fresh", "aten::reshape", "aten::resize_", "aten::resolve_conj", "aten::resolve_neg", "aten::result_type",
    "aten::set_", "aten::slice", "aten::squeeze", "aten::t", "aten::to", "aten::transpose", "aten::unsqueeze", "aten::view",
    "aten::_local_scalar_dense", "aten::_reshape_alias", "aten::_unsafe_view", "aten::contiguous", "aten::item",
}  # fmt: skip


class Timer:
    """Milliseconds of a call: by the clock on a CPU, by events after a flush of the caches on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.flush = torch.empty(FLUSHED, dtype=torch.int8, device=device) if self.cuda else None

    def __call__(self, run: Callable[[], Any]) -> float:
        if self.flush is None:
            begun = time.perf_counter()
            run()
            return 1000 * (time.perf_counter() - begun)
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(BACKLOG):
            self.flush.zero_()
        begun.record()
        run()
        ended.record()
        torch.cuda.synchronize()
        return float(begun.elapsed_time(ended))


def first_call_s(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the first call, compiling included."""
    begun = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def interleaved(runs: dict[str, Callable[[], Any]], timer: Timer, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every run in every round. Each round takes them in turn, from another start, so that drift hits all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for name in names:
        for _ in range(WARM_UP):
            timer(runs[name])
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(timer(runs[name]))
    return times


def costs(run: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """What one warm call takes: bytes at its peak, allocations, launches (on a CPU: operators that touch elements), host syncs."""
    return _cuda_costs(run) if device.type == "cuda" else _cpu_costs(run)


def _cpu_costs(run: Callable[[], Any]) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    held = peak = allocations = 0
    results = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted((e for e in results if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
        allocations += event.nbytes() > 0
    del kept
    events = profiler.events()
    syncs = sum(event.name in SYNCS for event in events)
    return {"peak_bytes": peak, "allocations": allocations, "launches": len(_of_a_cpu(events)), "syncs": syncs}


def _cuda_costs(run: Callable[[], Any]) -> dict[str, float]:
    torch.cuda.synchronize()
    before, asked = torch.cuda.memory_allocated(), _asked()
    torch.cuda.reset_peak_memory_stats()
    kept = run()
    torch.cuda.synchronize()
    peak, asked = torch.cuda.max_memory_allocated() - before, _asked() - asked
    del kept
    return {"peak_bytes": peak, "allocations": asked, "launches": len(launched(run, CUDA)), "syncs": waits(run)}


def waits(run: Callable[[], Any]) -> int:
    """Count how often a call makes the host wait for a CUDA device, as PyTorch sees it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    return sum(WAIT in str(warning.message) for warning in caught)


def launched(run: Callable[[], Any], device: torch.device) -> list[str]:
    """Names of what a call launches: kernels and copies as CUDA reports them, on a CPU operators that touch elements."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        run()
        if cuda:
            torch.cuda.synchronize()
    return (_of_a_gpu if cuda else _of_a_cpu)(profiler.events())


def _of_a_gpu(events: Any) -> list[str]:
    """A range that something names for itself, as compiled graphs do, is no launch."""
    on_device = [event for event in events if event.device_type == DeviceType.CUDA]
    return [event.name for event in on_device if not getattr(event, "is_user_annotation", False)]


def _of_a_cpu(events: Any) -> list[str]:
    leaves = [event.name for event in events if not event.cpu_children]
    return [name for name in leaves if name.startswith(WORK) and name not in IDLE]


def _asked() -> int:
    return int(torch.cuda.memory_stats()["allocation.all.allocated"])


def host_us(run: Callable[[], Any], device: torch.device, times: int = 30) -> float:
    """Microseconds that the host spends on a call, while the device has nothing else to do: the median."""
    taken = []
    for _ in range(times):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        run()
        taken.append(1e6 * (time.perf_counter() - begun))
    return statistics.median(taken)


def refused(run: Callable[[], Any], device: torch.device) -> str | None:
    """Make a call where every wait for a CUDA device is an error, and return that error's text; ``None`` where there is none."""
    if device.type != "cuda":
        run()
        return None
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def captured(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Return what replays a call from a CUDA graph; on a CPU the call itself."""
    if device.type != "cuda":
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
