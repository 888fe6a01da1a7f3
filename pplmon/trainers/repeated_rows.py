"""Find the samples that a sampler repeats to fill the last batch of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pplmon.monitor.evaluation import Pass


class RepeatedRows:
    """The samples that the loaders of one pass repeat: a ``DistributedSampler`` fills up the last round of ranks."""

    def __init__(self, loaders: Sequence[Any] = ()) -> None:
        self._loaders = loaders
        self._rows = [repeated_row(loader) for loader in loaders]
        self._left_out: list[Tensor | None] = [None] * len(loaders)

    def in_batch(self, opened: Pass, loader: int) -> int | None:
        """Return the sample that this rank repeats, if the current batch is the loader's last."""
        row = self._rows[loader]
        return row if row is not None and self._at_end(opened, loader) else None

    def note(self, loader: int, left_out: Tensor | None) -> None:
        """Record if the repeated sample was left out (a bool on the device, read later without a wait)."""
        if left_out is not None:
            self._left_out[loader] = left_out

    def record(self, opened: Pass) -> None:
        """Add the number of sequences that were counted twice to the tally."""
        for index, (loader, tally) in enumerate(zip(self._loaders, opened.tallies)):
            if _sampler(loader) is not None:
                # It is the rank's last sample, which a pass that was cut short did not reach.
                reached = self._rows[index] is not None and self._at_end(opened, index)
                left_out = self._left_out[index]
                tally.add_duplicates(int(reached) if left_out is None else (~left_out).to(torch.int64) * int(reached))

    def _at_end(self, opened: Pass, loader: int) -> bool:
        return bool(opened.batches[loader] == len(self._loaders[loader]))


def repeated_row(loader: Any) -> int | None:
    """Return the sample that this rank's ``DistributedSampler`` repeats, ``None`` if there is none.

    The sampler deals n rows to W ranks in turn, the k-th of rank r being the (k·W + r)-th, and takes the first rows again
    for the places from n on. So a rank repeats at most one row, its last.
    """
    sampler = _sampler(loader)
    if sampler is None:
        return None
    last = (sampler.num_samples - 1) * sampler.num_replicas + sampler.rank
    return None if last < len(sampler.dataset) else int(list(sampler)[-1])


def _sampler(loader: Any) -> Any:
    """Return the loader's ``DistributedSampler``, recognised by its attributes."""
    sampler = getattr(loader, "sampler", None)
    known = all(isinstance(getattr(sampler, name, None), int) for name in ("num_replicas", "num_samples", "rank"))
    return sampler if known and hasattr(getattr(sampler, "dataset", None), "__len__") else None
