"""Ranks that are lost, late or disagree: forked off a process that has the imports already, and killed when they hang.

``Forks`` starts that process; each of its runs forks the ranks of one case. A case is a function ``(at: At, …)`` of
``tests.apart_cases``; what it returns, the errors it raises and the warnings it is given come back, with the seconds it took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from tests.launch import ROOT

TOKENS = (10, 100, 1000)  # a step gives on each rank, so that a sum tells whose tokens are in it


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


class Forks:
    """A process that forks ranks."""

    def __enter__(self) -> Forks:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-m", "tests.apart"]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.kill()  # it has no children by now, and its own farewell takes seconds
        self._server.communicate()

    def run(self, case: str, where: Path, *args: Any, size: int = 2, timeout: float = 15.0) -> list[Outcome]:
        """Run a case on so many ranks of a group that waits for ``timeout`` seconds; whoever takes 20 more is killed."""
        task = {"case": case, "where": str(where), "args": args, "size": size, "timeout": timeout}
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps(task), file=self._server.stdin, flush=True)
        codes = json.loads(self._server.stdout.readline())
        outcomes = []
        for rank, code in enumerate(codes):
            path = where / f"outcome{rank}.json"
            found = json.loads(path.read_text()) if path.exists() else [None, "", [], 0.0]
            outcomes.append(Outcome(code, *found))
        return outcomes


def _serve() -> None:
    import torch

    from tests import apart_cases

    torch.set_num_threads(1)
    for line in sys.stdin:
        task = json.loads(line)
        children = []
        for rank in range(task["size"]):
            child = os.fork()
            if child == 0:
                os.dup2(2, 1)  # stdout is the answer's
                _be(apart_cases, task, rank)
            children.append(child)
        print(json.dumps(_codes(children, time.monotonic() + task["timeout"] + 20)), flush=True)


def _codes(children: list[int], until: float) -> list[int]:
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(child, 9)
        time.sleep(0.01)
    return [codes[child] for child in children]


def _be(cases: Any, task: dict[str, Any], rank: int) -> None:
    where, answer, error, begun = Path(task["where"]), None, "", time.monotonic()
    at = At(rank, task["size"], where, task["timeout"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer = getattr(cases, task["case"])(at, *task["args"])
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
            traceback.print_exc()
    texts = [str(each.message) for each in caught if str(each.message).startswith("pplmon")]
    seconds = at.longest or time.monotonic() - begun
    (where / f"outcome{rank}.json").write_text(json.dumps([answer, error, texts, seconds]))
    sys.stderr.flush()
    os._exit(0)  # another may be gone, and gloo's own farewell would wait for it


if __name__ == "__main__":
    _serve()
