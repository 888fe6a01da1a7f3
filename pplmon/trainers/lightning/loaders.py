"""A pass over the loaders of a Lightning ``Trainer``, which may repeat samples to fill the last batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pplmon.monitor.evaluation import Pass
from pplmon.tally import TokenTally


class TrainerPass(Pass):
    """A pass whose loaders may repeat samples: a ``DistributedSampler`` fills up the last round of ranks."""

    def __init__(self, stage: str, pattern: TokenTally, loaders: Sequence[Any]) -> None:
        super().__init__(stage, pattern, len(loaders))
        self._loaders = loaders
        self._repeated = [repeated_sample(loader) for loader in loaders]
        self._batches = [0] * len(loaders)
        self._left_out: list[Tensor | None] = [None] * len(loaders)

    def begin_batch(self, index: int) -> tuple[TokenTally, int | None]:
        """Return the loader's tally, and for the loader's last batch the dataset's row that this rank only repeats."""
        self._batches[index] += 1
        last = self._repeated[index] is not None and self._batches[index] == len(self._loaders[index])
        return self.tallies[index], self._repeated[index] if last else None

    def end_batch(self, index: int, left_out: Tensor | None) -> None:
        """Note whether the repeated row was left out (a bool on the device, which nobody waits for)."""
        if left_out is not None:
            self._left_out[index] = left_out

    def count_repeated(self) -> None:
        """Put on record how many sequences were counted twice."""
        for index, (loader, tally) in enumerate(zip(self._loaders, self.tallies)):
            if _sampler(loader) is not None:
                # It is the rank's last sample: a pass that was cut short did not come to it.
                reached = self._repeated[index] is not None and self._batches[index] == len(loader)
                left_out = self._left_out[index]
                tally.add_duplicates(int(reached) if left_out is None else (~left_out).to(torch.int64) * int(reached))


def repeated_sample(loader: Any) -> int | None:
    """Return the dataset's row that this rank's ``DistributedSampler`` gives a second time, ``None`` without one.

    The sampler deals n rows to W ranks in turn, the k-th of rank r being the (k·W + r)-th, and takes the first rows again
    for the places from n on. So a rank repeats at most one row, its last.
    """
    sampler = _sampler(loader)
    if sampler is None:
        return None
    last = (sampler.num_samples - 1) * sampler.num_replicas + sampler.rank
    return None if last < len(sampler.dataset) else int(list(sampler)[-1])


def _sampler(loader: Any) -> Any:
    """The loader's ``DistributedSampler``, told by what it knows."""
    sampler = getattr(loader, "sampler", None)
    known = all(isinstance(getattr(sampler, name, None), int) for name in ("num_replicas", "num_samples", "rank"))
    return sampler if known and hasattr(getattr(sampler, "dataset", None), "__len__") else None
