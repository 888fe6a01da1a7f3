"""``SaveBatch``: keep the micro-batch that an alert is about."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pplmon.alerts import Alert, at_fault
from pplmon.alerts.actions.files import folder, stem
from pplmon.report.checks import at_least
from pplmon.report.worst import WorstSequence, WorstToken

MAX_BYTES, MAX_HELD_BYTES = 64 * 2**20, 256 * 2**20
DEPTH = 4  # of a batch within a batch


class Seen(NamedTuple):
    """One micro-batch: its tensors by name, how often each had been written to, and their size in bytes."""

    step: int
    micro_batch: int
    tensors: dict[str, Tensor]
    versions: dict[str, int | None]
    plain: dict[str, Any]
    bytes: int


class SaveBatch:
    """Save the micro-batch that an alert of stage "train" is about; ``torch.load(path, weights_only=True)`` loads it.

    The file is ``{rule}-{metric}-step={step}-rank={rank}.pt``: the address (step, micro_batch, rank, sequence, position,
    sample_id), the alert's text, and ``batch``, the tensors by name. The rank that had the batch writes it.

    Until then references to the integer tensors of the last ``judge_every_n_steps + 1`` steps are held, and nothing is
    copied; a loop that writes its next batch into the same tensors gets a warning.

    Args:
        directory: where to; ``None`` is ``alerts/`` in the trainer's log directory.
        everything: also save the floating-point tensors, strings and numbers of the batch, not ids alone.
        max_bytes: the most bytes of tensors in a file; of a larger micro-batch only the row at fault is saved.
        max_held_bytes: the most bytes that are held; beyond that the oldest are released.
        at_most: files of one rank in a run.
    """

    everywhere = True  # the rank that had the batch need not be the one that writes reports

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        everything: bool = False,
        max_bytes: int = MAX_BYTES,
        max_held_bytes: int = MAX_HELD_BYTES,
        at_most: int = 10,
    ) -> None:
        self._directory, self._everything = directory, everything
        self._max_bytes = at_least("SaveBatch: max_bytes", max_bytes)
        self._max_held_bytes = at_least("SaveBatch: max_held_bytes", max_held_bytes)
        self._at_most = at_least("SaveBatch: at_most", at_most)
        self._monitor: Any = None
        self.folder: Path | None = None  # where its files go, once a run has begun
        self._seen: deque[Seen] = deque()
        self._saved: set[tuple[int, int]] = set()

    def bind(self, monitor: Any) -> None:
        """Begin a run; the monitor calls it."""
        self._monitor = monitor
        self.folder = folder(self._directory, monitor, "SaveBatch")
        self._seen.clear()
        self._saved.clear()

    def see(self, step: int, micro_batch: int, batch: Any) -> None:
        """Hold a micro-batch of training for as long as an alert can still be about it."""
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {}
        for name, value in _leaves(batch, "", DEPTH):
            if isinstance(value, Tensor):
                if self._everything or not (value.is_floating_point() or value.is_complex()):
                    tensors[name] = value.detach()
            elif self._everything:
                plain[name] = value
        size = sum(_bytes(tensor) for tensor in tensors.values())
        versions = {name: times_written(tensor) for name, tensor in tensors.items()}
        self._seen.append(Seen(step, micro_batch, tensors, versions, plain, size))
        self._forget(step)

    def __call__(self, alert: Alert) -> None:
        """Save the micro-batch, if it was this rank's."""
        culprit = at_fault(alert)
        if culprit is None or alert.stage != "train" or culprit.rank != self._monitor.rank:
            return
        if getattr(getattr(self._monitor, "trainer", None), "fast_dev_run", False):
            return  # it leaves no files
        address = (culprit.step, culprit.micro_batch)
        if address in self._saved or len(self._saved) >= self._at_most:
            return
        found = next((seen for seen in self._seen if (seen.step, seen.micro_batch) == address), None)
        if found is None:
            raise LookupError(
                f"the micro-batch {address[1]} of step {address[0]} is no longer held; are the batches of the "
                f"steps that are judged together more than max_held_bytes={self._max_held_bytes}?"
            )
        self._saved.add(address)
        self._write(alert, culprit, found)

    def _forget(self, step: int) -> None:
        # A read-out covers judge_every_n_steps steps at most, and is judged in the step after them.
        oldest = step - int(self._monitor.cadence.judge_every_n_steps)
        held = sum(seen.bytes for seen in self._seen)
        while len(self._seen) > 1 and (self._seen[0].step < oldest or held > self._max_held_bytes):
            held -= self._seen.popleft().bytes

    def _write(self, alert: Alert, culprit: WorstToken | WorstSequence, seen: Seen) -> None:
        assert self.folder is not None
        tensors, left_out = _capped(seen.tensors, culprit.sequence, self._max_bytes)
        changed = sorted(name for name in tensors if times_written(seen.tensors[name]) != seen.versions[name])
        if changed:
            warnings.warn(
                f"pplmon: {', '.join(changed)} of the micro-batch was written to in place after the step; what SaveBatch "
                "saves may be a later batch. Give the loop a new tensor per batch.",
                RuntimeWarning,
                stacklevel=2,
            )
        content = {
            **_address(culprit),
            **{name: getattr(alert, name) for name in ("rule", "metric", "severity", "text")},
            "batch": {**seen.plain, **tensors},
            "left_out": left_out,
            "changed_in_place": changed,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{stem(alert)}-rank={culprit.rank}.pt"
        whole = path.with_suffix(".tmp")  # a kill in between leaves no half of a file under the name
        torch.save(content, whole)
        whole.replace(path)

    def __repr__(self) -> str:
        return "SaveBatch()" if self._directory is None else f"SaveBatch({str(self._directory)!r})"


def _address(culprit: WorstToken | WorstSequence) -> dict[str, Any]:
    names = ("loss", "step", "micro_batch", "rank", "sequence", "position", "sample_id")
    return {name: value for name, value in asdict(culprit).items() if name in names}


def _leaves(batch: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield the tensors and plain values of a batch with names such as "x", "0" or "meta/length"."""
    if isinstance(batch, (Tensor, str, bool, int, float)):
        yield path or "batch", batch
    elif (
        isinstance(batch, (list, tuple)) and batch and all(isinstance(item, (str, bool, int, float)) for item in batch)
    ):
        yield path or "batch", list(batch)
    elif depth:
        for name, value in _items(batch):
            yield from _leaves(value, f"{path}/{name}" if path else str(name), depth - 1)


def _items(batch: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(batch, Mapping):
        yield from batch.items()
    elif isinstance(batch, (list, tuple)):
        yield from enumerate(batch)
    elif hasattr(batch, "__dict__"):
        yield from vars(batch).items()


def _capped(tensors: Mapping[str, Tensor], row: int, most: int) -> tuple[dict[str, Tensor], list[str]]:
    """Return copies on the host of at most so many bytes, and the names of tensors that were left out.

    If all is too much, only the row at fault is taken of each (marked by its first dimension being 1), and if that is
    too much, too, the largest are left out.
    """
    chosen = dict(tensors)
    if sum(map(_bytes, chosen.values())) > most:
        chosen = {n: t[row : row + 1] if t.dim() and t.shape[0] > row else t for n, t in chosen.items()}
    left_out = []
    while sum(map(_bytes, chosen.values())) > most:
        left_out.append(max(chosen, key=lambda name: _bytes(chosen[name])))
        del chosen[left_out[-1]]
    # A copy: of a view torch would save all that lies behind it.
    return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in chosen.items()}, left_out


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def times_written(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to in place; ``None`` where torch does not count it."""
    return None if tensor.is_inference() else tensor._version
