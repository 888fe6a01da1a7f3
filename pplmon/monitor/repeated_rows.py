"""Find the rows that are given a second time to fill the last batches of a pass, so that all ranks have as many.

A ``DistributedSampler`` deals single rows: only ``sample_ids`` can tell the one that a rank repeats. accelerate, and with it
the Hugging Face Trainer, fills up the last batch of each rank at its end, where ``gather_for_metrics`` cuts it off.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pplmon.monitor.evaluation import Pass


class Repeated(NamedTuple):
    """The rows at the end of a batch that were given before."""

    rows: int
    dealt: int | None = None  # rows of the whole batch, where the place tells which are repeated
    sample_id: int | None = None  # the dataset's row, where only this tells

    def among(self, targets: Tensor, sample_ids: Tensor | None) -> Tensor | None:
        """Return True for the rows [B] of the targets that are repeated; ``None`` where nobody can tell."""
        if targets.dim() != 2:
            return None
        place = torch.arange(len(targets), device=targets.device) >= len(targets) - self.rows
        if self.sample_id is None:
            return place if len(targets) == self.dealt else None
        return None if sample_ids is None else place & (sample_ids.to(targets.device) == self.sample_id)

    def left_out(self, targets: Tensor, data: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        """Return the data with these rows masked, and how many were: a count on the device, ``None`` where nobody can tell."""
        repeated = self.among(targets, data.get("sample_ids"))
        if repeated is None:
            return data, None
        kept, mask = ~repeated.unsqueeze(1).expand(targets.shape), data.get("mask")
        return {**data, "mask": kept if mask is None else mask.to(targets.device) & kept}, repeated.sum()


class RepeatedRows:
    """The rows that the loaders of one pass repeat; ``None`` stands for the loader that accelerate says is at work."""

    def __init__(self, loaders: Sequence[Any] = ()) -> None:
        self._loaders = loaders
        self._outside = (
            _at_work() if any(loader is None for loader in loaders) else None
        )  # a loop around the pass has nothing to do with it
        self._known = [_tells(loader) for loader in loaders]
        self._counted: list[int | Tensor] = [0] * len(loaders)

    def in_batch(self, opened: Pass, index: int) -> Repeated | None:
        """Return the rows that this rank only repeats in the batch that was begun; they count until ``note`` takes them off."""
        loader = self._loaders[index]
        if loader is None:
            loader = _at_work()
            if loader is None or loader is self._outside:
                return None
            self._known[index] = self._known[index] or _tells(loader)
            ends = bool(loader.end_of_dataloader)
        else:
            ends = self._known[index] and opened.batches[index] == len(loader)
        repeated = last_batch(loader) if ends else None
        self._counted[index] += 0 if repeated is None else repeated.rows
        return repeated

    def note(self, index: int, left_out: Tensor | None) -> None:
        """Take rows off that were left out: a count on the device, which nobody waits for."""
        if left_out is not None:
            self._counted[index] = self._counted[index] - left_out

    def record(self, opened: Pass) -> None:
        """Put on record how many sequences were counted twice."""
        for known, tally, counted in zip(self._known, opened.tallies, self._counted):
            if known:
                tally.add_duplicates(counted)


def last_batch(loader: Any) -> Repeated | None:
    """Return the rows that this rank repeats in a loader's last batch, ``None`` without one."""
    for dealer, how in (
        (_sampler(loader), _of_sampler),
        (_shard(loader), _of_shard),
        (_dispatcher(loader), _of_dispatcher),
    ):
        if dealer is not None:
            repeated = how(dealer)
            return repeated if repeated.rows else None
    return None


def _of_sampler(sampler: Any) -> Repeated:
    """Return at most the rank's last row.

    The sampler deals n rows to W ranks in turn, the k-th of rank r being the (k·W + r)-th, and takes the first rows again
    for the places from n on.
    """
    last = (sampler.num_samples - 1) * sampler.num_replicas + sampler.rank
    return Repeated(0) if last < len(sampler.dataset) else Repeated(1, sample_id=int(list(sampler)[-1]))


def _of_shard(shard: Any) -> Repeated:
    """Return the end of the rank's last batch of b rows: it holds the rows from k·W·b + r·b on, and those from n on are repeated."""
    rows, ranks = len(shard.batch_sampler.sampler), shard.num_processes
    size = shard.batch_size // ranks if shard.split_batches else shard.batch_size
    if shard.drop_last or not shard.even_batches or not rows:
        return Repeated(0)
    begin = (rows - 1) // (size * ranks) * size * ranks + shard.process_index * size
    return Repeated(min(max(begin + size - rows, 0), size), dealt=size)


def _of_dispatcher(loader: Any) -> Repeated:
    """Return the end of the part that this rank was given of the last batch, of which the first ``remainder`` rows are new."""
    rows, ranks = loader.remainder, loader.state.num_processes
    size = -(-rows // ranks)
    return Repeated(min(max((loader.state.process_index + 1) * size - rows, 0), size), dealt=size)


def _tells(loader: Any) -> bool:
    return any(find(loader) is not None for find in (_sampler, _shard, _dispatcher))


def _sampler(loader: Any) -> Any:
    """Return the loader's ``DistributedSampler``, told by what it knows."""
    sampler = getattr(loader, "sampler", None)
    known = _integers(sampler, "num_replicas", "num_samples", "rank")
    return sampler if known and hasattr(getattr(sampler, "dataset", None), "__len__") else None


def _shard(loader: Any) -> Any:
    """Return accelerate's ``BatchSamplerShard``, which deals batches of one size."""
    shard = getattr(loader, "batch_sampler", None)
    known = _integers(shard, "num_processes", "process_index", "batch_size") and hasattr(shard, "even_batches")
    rows = getattr(getattr(shard, "batch_sampler", None), "sampler", None)
    return shard if known and hasattr(rows, "__len__") else None


def _dispatcher(loader: Any) -> Any:
    """Return accelerate's ``DataLoaderDispatcher``, whose first rank reads for all."""
    return loader if hasattr(loader, "slice_fn") and _integers(loader, "remainder") else None


def _integers(holder: Any, *names: str) -> bool:
    return all(isinstance(getattr(holder, name, None), int) for name in names)


def _at_work() -> Any:
    """Return the loader whose batch accelerate says is under way, if there is one."""
    state = sys.modules.get("accelerate.state")
    return None if state is None else state.GradientState().active_dataloader
