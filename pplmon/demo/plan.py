"""The demo's options, checked, and the step and the row that it corrupts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BATCH = 16  # sequences in an optimizer step, over all ranks
# A ``Spike`` learns for 64 judged steps; by then the first fall of the loss is still most of what it takes for usual.
SETTLED = 120
LOGGERS = ("tensorboard", "wandb", "csv", "none")


@dataclass(frozen=True)
class Plan:
    """The options of the command line. ``corrupt_step=None`` is two thirds of the run, if the alerts are armed by then."""

    steps: int = 540  # optimizer steps
    logger: str = "tensorboard"
    devices: int = 1  # ranks, on the CPU
    corrupt_step: int | None = None  # 0-based optimizer step
    out: Path = Path("runs/demo")
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"--steps must be at least 1 optimizer step, got {self.steps}")
        if not 1 <= self.devices <= BATCH:
            raise ValueError(f"--devices must be 1 to {BATCH} (a step has {BATCH} sequences), got {self.devices}")
        if self.corrupt_step is not None and not 0 <= self.corrupt_step < self.steps:
            raise ValueError(
                f"--corrupt-step must be one of the run's steps, 0 to {self.steps - 1}, got {self.corrupt_step}"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be 0 to {2**32 - 1}, got {self.seed}")

    @property
    def rank_batch(self) -> int:
        """Sequences of one rank in an optimizer step."""
        return BATCH // self.devices

    @property
    def rows(self) -> int:
        """Sequences of the run, over all ranks."""
        return self.steps * self.rank_batch * self.devices

    @property
    def corrupted_step(self) -> int | None:
        """The 0-based optimizer step that gets a corrupted sequence; ``None`` where the run is too short to find it."""
        if self.corrupt_step is not None:
            return self.corrupt_step
        step = max(self.steps * 2 // 3, SETTLED)
        return step if step < self.steps else None

    @property
    def corrupted_row(self) -> int | None:
        """Its row of the dataset. A step takes consecutive rows, and the last of them goes to the last rank."""
        return None if self.corrupted_step is None else (self.corrupted_step + 1) * self.rank_batch * self.devices - 1

    def opening(self) -> str:
        """Return the text that the demo opens with: it says what will happen."""
        ranks = "" if self.devices == 1 else f" on {self.devices} ranks (DDP)"
        what = (
            f"pplmon demo: {self.steps} steps of a small byte-level transformer{ranks} on the Python language reference"
        )
        if self.corrupted_step is None:
            return (
                f"{what}.\nNo sequence is corrupted: before step {SETTLED} the alerts hardly know what is usual. Give "
                f"--steps {SETTLED + 1} or more to see one found."
            )
        return (
            f"{what}.\nAt step {self.corrupted_step} one sequence of the batch (row {self.corrupted_row} of the data) is "
            "random bytes, on purpose.\nA notice has to name it; with min_severity='info' this run's handlers hear of notices, too."
        )
