"""The test kit for users: ranks without a cluster, laws as assertions, captured alerts, corrupted batches.

Shapes: B rows, T positions.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import random
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pplmon.alerts import Alert
from pplmon.measure.tokens import TokenStats
from pplmon.monitor.delivery import Delivery
from pplmon.report.totals import Totals
from pplmon.tally import TokenTally

JOIN_S = 5.0  # for a process that was killed
ANSWER_S = 1.0  # for one that is asked where it is
ASKED = getattr(signal, "SIGUSR1", None)  # there is none on Windows
CORRUPTIONS = ("garbage", "shuffled", "shifted", "copied", "repeated")


def run_on_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """Run ``fn(rank, *args)`` in ``world_size`` real processes joined by gloo, and return what each returned.

    ``fn``, ``args`` and the results have to be picklable (a function at the top of a module).

    Raises:
        RuntimeError: a rank raised or died; its traceback is in the text. TimeoutError: a rank hung, with the place where it
            did; all are killed.
    """
    context = _context()
    with tempfile.TemporaryDirectory() as directory:
        ranks, answers = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe(duplex=False)
            given = (fn, rank, world_size, directory, theirs, args)
            process = context.Process(target=_rank, args=given, daemon=True)
            process.start()
            theirs.close()  # ours then breaks when the process dies, in place of waiting
            ranks.append(process)
            answers.append(ours)
        try:
            return _gathered(ranks, answers, time.monotonic() + timeout_s, Path(directory))
        finally:
            for process in ranks:
                process.kill()
                process.join(JOIN_S)


def assert_split_invariant(stats: TokenStats, make: Callable[[], TokenTally] = TokenTally, trials: int = 10) -> None:
    """Assert that a batch gives the same numbers and the same worst losses however it is cut between rows.

    Each trial cuts ``stats`` [B, T] at random, counts the parts in random order in several tallies, saves and loads one
    of them, and adds their totals up.
    """
    whole = make()
    whole.update(stats)
    expected = _facts(whole.totals())
    for trial in range(trials):
        found = _facts(_in_pieces(stats, make, random.Random(trial)))  # noqa: S311 - which cut, no secret
        assert found == expected, f"trial {trial}: {_difference(found, expected)}"


@contextmanager
def capture_alerts() -> Iterator[list[Alert]]:
    """Collect the alerts of every monitor of this process, for as long as the block runs."""
    alerts: list[Alert] = []
    Delivery.listeners.append(alerts.append)
    try:
        yield alerts
    finally:
        Delivery.listeners.remove(alerts.append)


def corrupted(ids: Tensor, kind: str, vocab_size: int, seed: int = 0) -> Tensor:
    """Return one corrupted copy of a row of token ids [T], as data bugs make them.

    Kinds: "garbage" (random ids), "shuffled" (its own ids in random order), "shifted" (moved by one column), "copied"
    (its first half twice), "repeated" (its first four ids over and over).
    """
    generator = torch.Generator().manual_seed(seed)
    length = ids.shape[0]
    if kind == "garbage":
        return torch.randint(0, vocab_size, (length,), generator=generator, dtype=ids.dtype)
    if kind == "shuffled":
        return ids[torch.randperm(length, generator=generator)]
    if kind == "shifted":
        return ids.roll(1)
    if kind == "copied":
        return ids[: -(-length // 2)].repeat(2)[:length]
    if kind == "repeated":
        return ids[:4].repeat(-(-length // 4))[:length]
    raise ValueError(f"unknown corruption {kind!r}; known are {', '.join(CORRUPTIONS)}")


def _context() -> Any:
    # A fork server has torch imported once, and has no threads that a fork could leave in the middle of something.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "pplmon"])
    return context


def _rank(
    fn: Callable[..., Any], rank: int, size: int, directory: str, answer: Connection, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    stack = open(_stack(Path(directory), rank), "w")  # noqa: SIM115 - open for as long as the process
    faulthandler.enable(stack)
    if ASKED is not None:
        faulthandler.register(ASKED, stack)
    try:
        dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=size)
        found = fn(rank, *args)
        dist.barrier()  # a rank that is done early must not close the others' connections
        answer.send((found, None))
    except BaseException:
        answer.send((None, traceback.format_exc()))
        raise


def _gathered(ranks: list[Any], answers: list[Connection], until: float, directory: Path) -> list[Any]:
    found: dict[int, Any] = {}
    while len(found) < len(ranks):
        missing = {answer: rank for rank, answer in enumerate(answers) if rank not in found}
        ready = wait(list(missing), max(until - time.monotonic(), 0))
        if not ready:
            stacks = "".join(f"\nrank {rank}:\n{_place(ranks[rank], directory, rank)}" for rank in missing.values())
            raise TimeoutError(
                f"ranks {sorted(missing.values())} gave no answer in time: do all ranks call the same collectives?{stacks}"
            )
        for answer in map(answers.index, ready):  # type: ignore[arg-type]
            found[answer], failure = _received(ranks[answer], answers[answer], answer, directory)
            if failure is not None:
                raise RuntimeError(f"rank {answer} failed:\n{failure}")
    return [found[rank] for rank in range(len(ranks))]


def _received(process: Any, answer: Connection, rank: int, directory: Path) -> tuple[Any, str | None]:
    found: tuple[Any, str | None]
    try:
        found = answer.recv()
    except (EOFError, ConnectionError):
        process.join(JOIN_S)
        found = None, f"it died with exit code {process.exitcode}\n{_read(directory, rank)}"
    return found


def _place(process: Any, directory: Path, rank: int) -> str:
    """Return where a rank is."""
    if ASKED is not None and process.is_alive():
        os.kill(process.pid, ASKED)
        process.join(ANSWER_S)
    return _read(directory, rank)


def _stack(directory: Path, rank: int) -> Path:
    return directory / f"stack{rank}.txt"


def _read(directory: Path, rank: int) -> str:
    path = _stack(directory, rank)
    return path.read_text() if path.exists() else ""


def _in_pieces(stats: TokenStats, make: Callable[[], TokenTally], chance: random.Random) -> Totals:
    rows = stats.batch_shape[0]
    cuts = sorted({0, rows, *(chance.randrange(rows + 1) for _ in range(3))})
    pieces = [stats.rows(start, stop) for start, stop in zip(cuts, cuts[1:])]
    chance.shuffle(pieces)
    tallies = [make() for _ in range(chance.randint(1, 3))]
    for piece in pieces:
        chance.choice(tallies).update(piece)
    loaded = make()
    loaded.load_state_dict(tallies[0].state_dict())
    tallies[0] = loaded
    return sum((tally.local_totals() for tally in tallies), Totals())


def _facts(totals: Totals) -> dict[str, Any]:
    """Return the results that a cut must leave bit-identical: all numbers, and the worst losses without addresses."""
    rows = {"worst": [row[0] for row in totals.token_rows], "worst_sequences": [row[0] for row in totals.sequence_rows]}
    return {name: repr(value) for name, value in totals.numbers().items()} | rows


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    return "; ".join(
        f"{name} is {found[name]}, not {value}" for name, value in expected.items() if found[name] != value
    )
