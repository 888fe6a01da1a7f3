"""Numbers of the user's own: kept on the device until a read-out takes them along, each in a slot that all ranks agree on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pplmon.measure.tokens import is_dtensor
from pplmon.report import own
from pplmon.tally.coming import Waits, wait_for
from pplmon.tally.ranks import Group
from pplmon.tally.same_layout import by_value, tell


class Block(NamedTuple):
    """The part of a read-out that holds numbers of the user's own."""

    squares: Tensor  # [steps · CELLS] int64: digits of squared gradient norms, added over ranks
    maxima: Tensor  # [MOST_NAMES + 1] int64: a key for each slot, and 1 where this rank has a name without a slot
    slots: list[str]  # the names so far; ranks agree on more only between read-outs


class OwnNumbers:
    """The numbers that one rank logs, by optimizer step, until they are read out.

    Nothing here waits for the device. A rank that logs a name for the first time says so with the next read-out; all
    ranks then agree on its slot (``settle``), and no collective but the read-out's own is needed from then on.
    """

    def __init__(self, steps: int) -> None:
        """Keep squares of gradient norms of at most ``steps`` optimizer steps for a read-out; 0: none."""
        self._steps = steps
        self.slots: list[str] = []
        self._full = False
        self._kept: dict[int, dict[str, Tensor | float]] = {}  # by step
        self._squares: dict[int, Tensor] = {}  # by step [CELLS]
        self._without_slot: dict[str, Tensor | float] = {}  # in the read-out under way

    def log(self, name: str, value: Tensor | float, step: int) -> None:
        """Keep a value of an optimizer step: the largest of those of one name."""
        own.check_own_name(name)
        kept = self._kept.setdefault(step, {})
        new = _checked(name, value)
        kept[name] = _larger(kept[name], new) if name in kept else new

    def add_squares(self, digits: Tensor, step: int) -> None:
        """Keep this rank's part of the squared gradient norm of a step; parts of several optimizers add."""
        before = self._squares.get(step)
        self._squares[step] = digits if before is None else before + digits

    def restore(self, numbers: Mapping[str, float], step: int) -> None:
        """Go on with numbers that a checkpoint holds; they count as those of ``step``."""
        self._kept.setdefault(step, {}).update(numbers)

    def take(self, step: int, device: torch.device) -> Block:
        """Return what was logged up to ``step``, for a read-out, and forget it."""
        if not (self._kept or self._squares or self._without_slot):
            return self.empty(device)
        block, rest = self._block(step, device)
        self._kept = {s: numbers for s, numbers in self._kept.items() if s > step}
        self._squares = {s: digits for s, digits in self._squares.items() if s > step}
        self._without_slot = {} if self._full else rest
        return block

    def look(self, device: torch.device) -> Block:
        """Return everything that was logged and not yet read out, to be saved; it stays."""
        return self._block(max([*self._kept, *self._squares], default=0), device)[0]

    def _block(self, step: int, device: torch.device) -> tuple[Block, dict[str, Tensor | float]]:
        if not self._kept and not self._squares:
            return self.empty(device), {}
        merged: dict[str, Tensor | float] = {}
        for numbers in (self._kept[s] for s in sorted(self._kept) if s <= step):
            for name, value in numbers.items():
                merged[name] = _larger(merged[name], value) if name in merged else value
        # A trainer that skips the number of a step may have more of them than there is room for.
        parts = [self._squares[s] for s in sorted(self._squares) if s <= step][-max(self._steps, 1) :]
        rest = {name: value for name, value in merged.items() if name not in self.slots}
        block = self.empty(device)
        squares, maxima = block.squares.clone(), block.maxima.clone()
        if self._steps and parts:
            squares[: len(parts) * own.CELLS] = torch.cat([part.to(device) for part in parts])
        keys = [_key(merged.get(name), device) for name in self.slots]
        if keys:
            maxima[: len(keys)] = torch.stack(keys)
        if rest and not self._full:
            maxima[-1] = 1
        return Block(squares, maxima, self.slots), rest

    def empty(self, device: torch.device) -> Block:
        """Return a block without a value: a pass takes part with one, so that every read-out has one size."""
        return Block(*_no_values(self._steps, device), self.slots)

    def settle(self, group: Group, device: torch.device, wait: Waits | None = None) -> dict[str, float]:
        """Agree on slots for names that are new, and return what was logged under them. Every rank of the group calls it.

        ``wait`` may give it up: then nothing has changed, and this rank can settle alone.
        """
        mine = [*self.slots, *self._without_slot][: 2 * own.MOST_NAMES]
        told = tell(group, device, dict.fromkeys(mine, ""), wait) if group.size > 1 else {0: dict.fromkeys(mine, "")}
        have: dict[str, list[int]] = {}
        for rank, names in told.items():
            for name in names:
                have.setdefault(name, []).append(rank)
        new = [name for name in have if name not in self.slots]
        room = own.MOST_NAMES - len(self.slots)
        fit, too_many = new[:room], new[room:]
        maxima = [_key(self._without_slot.get(name), device) for name in fit]
        merged = torch.stack(maxima) if maxima else torch.zeros(0, dtype=torch.int64, device=device)
        if group.size > 1 and fit:
            work = dist.all_reduce(merged, dist.ReduceOp.MAX, group=group.handle, async_op=True)
            wait_for(work, device, wait)
        self.slots += fit
        self._full, self._without_slot = self._full or bool(too_many), {}
        if group.rank == 0:
            _tell_of_lacking({name: have[name] for name in new}, list(told), too_many)
        return own.values(fit, merged.tolist(), ())


def digits_of(total: Tensor) -> Tensor:
    """Return a 0-dim float64, at least 0, as [CELLS] int64: its digits of 32 bits, and what it is beside a finite number."""
    finite = total.isfinite()
    number = torch.where(finite, total, 0.0)
    # Scaling by a power of two is exact, and so is what is left of a number without its leading bits.
    scaled = (number * _scales(total.device)).floor()
    digits = scaled.clone()  # the highest takes what is beyond
    digits[:-1] -= scaled[1:] * 2.0**own.DIGIT_BITS
    counts = torch.stack([total.isinf(), total.isnan(), torch.ones_like(finite)])
    return torch.cat([digits.to(torch.int64), counts.to(torch.int64)])


@lru_cache
def _no_values(steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the tensors of an empty block, which nobody changes: a step without a value makes none."""
    squares = torch.zeros(steps * own.CELLS, dtype=torch.int64, device=device)
    return squares, torch.full((own.MOST_NAMES + 1,), own.EMPTY, dtype=torch.int64, device=device)


@lru_cache
def _scales(device: torch.device) -> Tensor:
    """Return [DIGITS] float64: what moves the lowest bit of each digit to 1. Made on the device: a copy would be waited for."""
    scales = [2.0 ** -(own.LOWEST_BIT + own.DIGIT_BITS * place) for place in range(own.DIGITS)]
    return torch.stack([torch.full((), scale, dtype=torch.float64, device=device) for scale in scales])


def _checked(name: str, value: Tensor | float) -> Tensor | float:
    if isinstance(value, Tensor):
        if is_dtensor(value):
            raise TypeError(f"{name} is a DTensor, of which a rank holds a part: log value.full_tensor()")
        if value.numel() != 1 or value.is_complex():
            raise ValueError(
                f"{name} must be one real number, got a tensor of shape {tuple(value.shape)} and {value.dtype}"
            )
        value = value.detach().reshape(())
        # A copy: the caller's may change. MPS has no float64; only there is the device waited for.
        return (value.cpu() if value.device.type == "mps" else value).to(torch.float64, copy=True)
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or a tensor of one, got {type(value).__name__}")
    return float(value)


def _larger(one: Tensor | float, two: Tensor | float) -> Tensor | float:
    """Return the larger one; NaN where one of them is."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return torch.maximum(one, two.to(one.device))
    if isinstance(one, Tensor) or isinstance(two, Tensor):
        tensor, number = (one, two) if isinstance(one, Tensor) else (two, one)
        return torch.maximum(tensor, torch.full_like(tensor, number))  # type: ignore[arg-type]
    return own.larger({"": one}, {"": two})[""]


def _key(value: Tensor | float | None, device: torch.device) -> Tensor:
    if isinstance(value, Tensor) and value.device.type == "cpu" != device.type:
        value = float(value)
    if not isinstance(value, Tensor):  # made on the device: a copy to it would be waited for
        return torch.full((), own.EMPTY if value is None else own.ordered(value), dtype=torch.int64, device=device)
    bits = value.view(torch.int64)
    key = torch.where(bits >= 0, bits, bits ^ own.NAN)
    return torch.where(value.isnan(), own.NAN, key)


def _tell_of_lacking(have: Mapping[str, Iterable[int]], ranks: Sequence[int], dropped: Sequence[str]) -> None:
    """Warn once of names that only some ranks log, and of those that find no room."""
    some = {name: list(has) for name, has in have.items() if name not in dropped and len(list(has)) < len(ranks)}
    if some:
        said = "; ".join(f"{name} ({by_value(dict.fromkeys(has, 'logged'))})" for name, has in some.items())
        warnings.warn(
            f"pplmon: only some of {len(ranks)} ranks log {said}: the largest value of those is shown. Log a number on every rank",
            RuntimeWarning,
            stacklevel=2,
        )
    if dropped:
        warnings.warn(
            f"pplmon: there is room for {own.MOST_NAMES} numbers of one's own; left out: {', '.join(dropped)}",
            RuntimeWarning,
            stacklevel=2,
        )
