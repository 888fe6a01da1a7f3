"""Start ranks as torchrun would, for scripts that tests run: forked off a process that has the imports already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def launch(fn: Callable[..., Any], size: int, *args: Any, timeout_s: float = 90.0) -> list[int | None]:
    """Call ``fn(*args)`` in ``size`` processes that find torchrun's environment; return their exit codes.

    Only for a process without threads: a script of its own, not the one that runs the tests. A rank that hangs is killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(fn, rank, size, port, args)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in ranks]


def run_script(
    name: str, *args: object, timeout_s: float = 150.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m tests.{name} args…`` and return what became of it."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    return subprocess.run(
        [sys.executable, "-m", f"tests.{name}", *map(str, args)],
        cwd=ROOT, env={**os.environ, **own, **environment}, timeout=timeout_s, capture_output=True, text=True, check=False,
    )  # fmt: skip


def _rank(fn: Callable[..., Any], rank: int, size: int, port: int, args: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "tests",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    fn(*args)
