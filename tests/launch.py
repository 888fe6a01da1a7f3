"""Start scripts and ranks that tests run: forked off a process that has the imports already, which saves seconds each."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
IMPORTED = (  # where they are installed
    "pplmon",
    "pytorch_lightning",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.utils.tensorboard",
    "transformers.trainer",
)


def unhurried() -> None:
    """Let no call count as slow: how long a logger takes here is for the load of the machine to say."""
    from pplmon.monitor import failures

    failures.SLOW_S = 60.0


def fresh() -> dict[str, str]:
    """Return this process's environment for an interpreter of its own, without what a test may have set for ranks and W&B."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "LOCAL_RANK"))}
    paths = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "COLUMNS": "200"}


def start_server() -> Any:
    """Start the process that others are forked off, if it does not run yet; return multiprocessing's way to use it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    with _quiet():
        forkserver.ensure_running()
    return context


@contextmanager
def _quiet() -> Iterator[None]:
    """Have processes that are started meanwhile say nothing: what ranks warn of is expected, and tests get their errors."""
    kept = [os.dup(stream) for stream in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    try:
        yield
    finally:
        for stream, before in zip((1, 2), kept):
            os.dup2(before, stream)
        for each in (*kept, nowhere):
            os.close(each)


def start_script(path: str, *args: object, out: Path, cwd: Path = ROOT, **environment: str) -> Any:
    """Start a script by its path, as python does, or a module, as ``python -m``; ``out`` gets the files ``stdout`` and ``stderr``."""
    given = (path, [str(arg) for arg in args], out, cwd, {**os.environ, "OMP_NUM_THREADS": "1", **environment})
    process = start_server().Process(target=_script, args=given)
    process.start()
    return process


def run_script(
    path: str, *args: object, cwd: Path = ROOT, timeout_s: float = 150.0, afresh: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script or a module likewise, and return what became of it.

    ``afresh`` starts an interpreter: for what decides, before it imports Triton, whether that compiles or interprets.
    """
    if afresh:
        command = [sys.executable, *([] if path.endswith(".py") else ["-m"]), path, *map(str, args)]
        return subprocess.run(
            command, cwd=cwd, env=fresh() | environment, timeout=timeout_s, check=False,
            capture_output=True, encoding="utf-8",
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        process = start_script(path, *args, out=Path(folder), cwd=cwd, **environment)
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(path, timeout_s)
        said = [Path(folder, name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess([path, *map(str, args)], process.exitcode, *said)


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


def _script(path: str, args: list[str], out: Path, cwd: Path, environment: Mapping[str, str]) -> None:
    import torch

    torch.set_num_threads(1)
    unhurried()
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        with open(out / name, "wb") as file:
            os.dup2(file.fileno(), stream.fileno())
        stream.reconfigure(encoding="utf-8")
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = [path, *args]
    try:
        if path.endswith(".py"):
            sys.path.insert(0, str(Path(path).parent))
            runpy.run_path(path, run_name="__main__")
        else:
            runpy.run_module(path, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


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
