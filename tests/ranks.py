"""Real ranks for tests: processes that talk over gloo, kept between tests, and killed when one does not answer."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from tests.launch import start_server, unhurried


class RankFailure(AssertionError):
    """A rank raised, or did not answer in time."""


class Ranks:
    """``size`` processes of one gloo group. ``run`` calls a function on all of them and returns what each gave."""

    def __init__(self, size: int, folder: Path) -> None:
        self.size, self._folder = size, folder
        self._starts = 0
        self._workers: list[tuple[Any, Connection]] = []

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, pipe in self._workers:
            pipe.send(None)
        for process, _ in self._workers:
            process.join(5)
        self.kill()

    def run(self, call: Callable[..., Any], *args: Any, timeout: float = 60.0) -> list[Any]:
        """Call ``call(rank, *args)`` on every rank. ``call`` is a function at the top of a module."""
        if not self._workers:
            self._start()
        for _, pipe in self._workers:
            pipe.send((call, args))
        results = []
        for rank, (_, pipe) in enumerate(self._workers):
            if not pipe.poll(timeout):
                self.kill()
                raise RankFailure(f"rank {rank} of {self.size} gave no answer within {timeout} s: a collective hangs")
            try:
                ok, result = pipe.recv()
            except EOFError:
                self.kill()
                raise RankFailure(f"rank {rank} of {self.size} died") from None
            if not ok:
                self.kill()  # its partner may wait for it
                raise RankFailure(f"rank {rank} raised\n{result}")
            results.append(result)
        return results

    def kill(self) -> None:
        """End the processes; the next ``run`` starts fresh ones."""
        for process, _ in self._workers:
            process.kill()
            process.join()
        self._workers = []

    def _start(self) -> None:
        self._starts += 1
        context = start_server()
        meeting = (self._folder / f"gloo{self.size}.{self._starts}").as_uri()
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(rank, self.size, meeting, theirs), daemon=True)
            process.start()
            theirs.close()  # ours then breaks when the process dies, in place of waiting
            self._workers.append((process, ours))


def _work(rank: int, size: int, meeting: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    unhurried()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=timedelta(seconds=50))
    while (task := pipe.recv()) is not None:
        call, args = task
        try:
            pipe.send((True, call(rank, *args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()
