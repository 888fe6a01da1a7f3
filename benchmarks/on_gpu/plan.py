"""The parts, the most informative first within each of two halves, with their limits. Needs nothing but Python."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple


class Part(NamedTuple):
    """One part: it is run as ``module.function(kept, device)`` of this package."""

    name: str
    run: str
    seconds: float  # its own limit
    what: str
    needs: tuple[str, ...] = ()  # packages without which it is left out
    alone: bool = False  # it takes times, so nothing may run beside it

    def missing(self) -> list[str]:
        """The packages that it needs and that are not installed."""
        return [package for package in self.needs if find_spec(package) is None]


NO_DEVICE = 3  # the status of a part that finds no GPU
TESTS = ("pytest", "hypothesis")
PARTS = (
    Part("tests", "suite.marked", 110, "pytest -m gpu, in one process", TESTS),
    Part("kernel-tests", "suite.native", 110, "the tests of both Triton kernels, compiled, not interpreted", (*TESTS, "triton")),
    Part("exactness", "exactness.run", 90, "every token against float64; kernels that count against arrays", ("triton",)),
    Part("launches", "launches.run", 80, "launches, waits, memory; a CUDA graph; the side stream"),
    Part("nccl", "nccl.run", 80, "a read-out through NCCL; two ranks on the one GPU"),
    Part("instructions", "code.run", 60, "machine instructions per logit, by the Triton that is here", ("triton",)),
    Part("compiling", "compiling.run", 110, "compiles beforehand what the parts below time", ("triton",)),
    Part("speed", "speed.run", 125, "from logits to per-token numbers, beside one read and all peers", alone=True),
    Part("tuning", "tuning.run", 40, "the few constants of the kernels: the best, and the gain", ("triton",), alone=True),
    Part("counting", "counting.run", 30, "from per-token numbers to the tally: kernels, arrays, torchmetrics", alone=True),
    Part("training", "training.run", 70, "a whole training step of 1.5 B parameters, with and without", alone=True),
    Part("training-8b", "training.run_8b", 95, "the same of 8 B parameters, on a card that holds them", alone=True),
)  # fmt: skip
# In a dry run Triton interprets what these measure and count. The others compile, or need no program of Triton's.
INTERPRETED = ("exactness", "compiling", "speed", "tuning")
