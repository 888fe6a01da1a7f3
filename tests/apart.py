"""Ranks that are lost, late or disagree: forked off a process that has the imports already, and killed when they hang.

A case is a function ``(at: At, …)`` of ``tests.apart_cases``; what it returns, the errors it raises and the warnings it is given
come back, with the seconds it took.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.launch import start_server, unhurried

TOKENS = (10, 100, 1000)  # a step gives on each rank, so that a sum tells whose tokens are in it


def busy() -> float:
    """Return how many times as long a call may take as on idle cores: by how many processes wait for each."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Outcome(NamedTuple):
    """What became of one rank."""

    code: int  # of its process; −9 where it was killed, by itself or because it hung
    answer: Any
    error: str  # "" where it raised nothing
    warnings: list[str]
    seconds: float  # of the longest call that it timed, else of all


class At:
    """One rank of a case: where it is, its way into the group, and the longest call that it timed."""

    def __init__(self, rank: int, size: int, where: Path, timeout: float) -> None:
        self.rank, self.size, self.where, self._timeout = rank, size, where, timeout
        self.longest = 0.0

    def init(self, name: str = "store") -> None:
        """Join the group of this name."""
        import torch.distributed as dist

        dist.init_process_group(
            "gloo",
            init_method=f"file://{self.where}/{name}",
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=self._timeout),
        )

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measure a call that may wait for other ranks."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.longest = max(self.longest, time.monotonic() - begun)


def run(case: str, where: Path, *args: Any, size: int = 2, timeout: float = 15.0) -> list[Outcome]:
    """Run a case on so many ranks of a group that waits for ``timeout`` seconds; whoever takes 20 more is killed."""
    context = start_server()
    ranks = [context.Process(target=_be, args=(case, where, rank, size, timeout, args)) for rank in range(size)]
    for process in ranks:
        process.start()
    until = time.monotonic() + timeout + 20
    for process in ranks:
        process.join(max(until - time.monotonic(), 0))
        process.kill()
        process.join()
    outcomes = []
    for rank, process in enumerate(ranks):
        path = where / f"outcome{rank}.json"
        found = json.loads(path.read_text()) if path.exists() else [None, "", [], 0.0]
        outcomes.append(Outcome(process.exitcode, *found))
    return outcomes


def _be(case: str, where: Path, rank: int, size: int, timeout: float, args: tuple[Any, ...]) -> None:
    from tests import apart_cases

    torch.set_num_threads(1)
    unhurried()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    answer, error, begun = None, "", time.monotonic()
    at = At(rank, size, where, timeout)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer = getattr(apart_cases, case)(at, *args)
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
            traceback.print_exc()
    texts = [str(each.message) for each in caught if str(each.message).startswith("pplmon")]
    seconds = at.longest or time.monotonic() - begun
    (where / f"outcome{rank}.json").write_text(json.dumps([answer, error, texts, seconds]))
    sys.stderr.flush()
    os._exit(0)  # another may be gone, and gloo's own farewell would wait for it
