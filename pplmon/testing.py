"""The test kit for users: ranks without a cluster, laws as assertions, captured alerts, corrupted batches.

Shapes: B rows, T positions.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pplmon.alerts import Alert
from pplmon.measure.tokens import TokenStats
from pplmon.monitor.delivery import Delivery
from pplmon.report.totals import Totals
from pplmon.tally import TokenTally

CORRUPTIONS = ("garbage", "shuffled", "shifted", "copied", "repeated")


def run_on_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """Run ``fn(rank, *args)`` in ``world_size`` real processes joined by gloo, and return what each returned.

    ``fn``, ``args`` and the results have to be picklable (a function at the top of a module).

    Raises:
        RuntimeError: a rank raised; its traceback is in the text. TimeoutError: a rank hung; all are killed.
    """
    context = _context()
    with tempfile.TemporaryDirectory() as directory:
        answers = context.SimpleQueue()
        ranks = [
            context.Process(target=_rank, args=(fn, rank, world_size, directory, answers, args), daemon=True)
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            return _gathered(ranks, answers, time.monotonic() + timeout_s)
        finally:
            for process in ranks:
                process.kill()
                process.join()


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


def _rank(fn: Callable[..., Any], rank: int, size: int, directory: str, answers: Any, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    try:
        dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=size)
        answer = fn(rank, *args)
        dist.barrier()  # a rank that is done early must not close the others' connections
        answers.put((rank, answer, None))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
        raise


def _gathered(ranks: list[Any], answers: Any, until: float) -> list[Any]:
    found: dict[int, Any] = {}
    while len(found) < len(ranks):
        if not answers.empty():
            rank, answer, failure = answers.get()
            if failure is not None:
                raise RuntimeError(f"rank {rank} failed:\n{failure}")
            found[rank] = answer
            continue
        dead = [rank for rank, process in enumerate(ranks) if rank not in found and process.exitcode not in (None, 0)]
        if dead and answers.empty():
            raise RuntimeError(f"rank {dead[0]} died with exit code {ranks[dead[0]].exitcode}")
        if time.monotonic() > until:
            missing = sorted(set(range(len(ranks))) - set(found))
            raise TimeoutError(f"ranks {missing} gave no answer in time: do all ranks call the same collectives?")
        time.sleep(0.01)
    return [found[rank] for rank in range(len(ranks))]


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
