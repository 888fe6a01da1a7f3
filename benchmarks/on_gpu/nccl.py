"""A read-out through NCCL's collectives in a group of one, which takes itself for two; and two ranks on the one GPU, over gloo."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks.collectives import counted
from benchmarks.meter import host_us, refused
from benchmarks.on_gpu.counting import stats_of
from benchmarks.on_gpu.kept import Kept
from pplmon import TokenTally
from pplmon.tally.ranks import Group
from pplmon.testing import run_on_ranks

ROWS, LENGTH, RANKS = 8, 128, 2


def through_nccl(device: torch.device) -> dict[str, Any]:
    """Read out through a communicator of pplmon's own. A group of one would send nothing: it is told that it has two ranks."""
    tally = TokenTally().to(device)
    tally.update(stats_of(ROWS, LENGTH, device))
    with mock.patch.object(Group, "size", RANKS):
        tally.process_group = tally.group.private().handle
        tally.read_out().totals()  # makes the communicator
        with counted() as sent:
            error = refused(tally.read_out, device)
        begun = time.perf_counter()
        totals = tally.read_out().totals()
        waited = 1000 * (time.perf_counter() - begun)
        host = host_us(tally.read_out, device)
    return {
        "backend": dist.get_backend(tally.process_group),
        **sent,
        "right": totals == tally.local_totals(),
        "where_waits_are_errors": error or "none",
        "host_us_to_start": host,
        "ms_to_arrive": waited,
    }


def on_a_rank(rank: int, device: str) -> dict[str, Any]:
    """Count this rank's rows on the one device, and read out with the other."""
    torch.manual_seed(0)
    stats = stats_of(ROWS, LENGTH, torch.device(device))
    both, own = (TokenTally().to(device) for _ in range(2))
    both.update(stats)
    share = ROWS // RANKS
    own.update(stats.rows(rank * share, rank * share + share))
    one, two = own.report(), both.local_totals().report()
    return {
        "numbers": one.as_dict() == two.as_dict(),
        "worst tokens": [worst.loss for worst in one.worst] == [worst.loss for worst in two.worst],
        "worst sequences": [worst.loss for worst in one.worst_sequences]
        == [worst.loss for worst in two.worst_sequences],
    }


def run(kept: Kept, device: torch.device) -> None:
    """Read out in both ways."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asked otherwise, CUDA is of no use after a fork
    with kept.step("two ranks"):
        alike = run_on_ranks(on_a_rank, RANKS, device.type, timeout_s=kept.left_s() * 0.6)
        kept.keep("two_ranks_are_one", alike)
        kept.table(
            "Two ranks on one device, over gloo: as one rank", list(alike[0]), [list(of.values()) for of in alike]
        )
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")  # a machine without a network has no other
    with tempfile.TemporaryDirectory() as folder, kept.step("NCCL"):
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=(Path(folder) / "store").as_uri(), rank=0, world_size=1)
        try:
            found = through_nccl(device)
            kept.keep("nccl", found)
            kept.table(
                "A read-out through a group's collectives",
                ["figure", "value"],
                [[k.replace("_", " "), v] for k, v in found.items()],
            )
        finally:
            dist.destroy_process_group()
