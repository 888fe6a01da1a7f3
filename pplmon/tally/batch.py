"""One batch is counted: by the kernels of ``triton`` on a GPU where Triton is, once they have proved right; else by arrays.

A kernel that a compiler or a driver gets wrong would give wrong numbers that look plausible. So the first batch on a device
is preceded by a small one, with everything in it that a batch may bring, which kernels and array operations both count.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from pplmon import cells
from pplmon.tally import by_arrays
from pplmon.tally.given import Given, Settings, State
from pplmon.tokens import TokenStats

_ROWS, _LENGTH, _VOCAB, _KEEP, _CONTEXT = 3, 41, 7, 4, 2
_INEXACT = tuple(
    cells.SUMS.index(name) for name in ("probability_whole", "probability_fraction")
)  # exp is the device's
_proved: dict[torch.device, Any] = {}


def add(state: State, stats: TokenStats, given: Given, settings: Settings) -> Tensor:
    """Count one batch, and return which tokens were valid, [N] bool (or nothing, where ``settings`` do not ask for it)."""
    kernels = kernels_on(stats.nll.device)
    if kernels is not None and kernels.fits(state, stats):
        return kernels.add(state, stats, given, settings)  # type: ignore[no-any-return]
    return by_arrays.add(state, stats, given, settings)


def kernels_on(device: torch.device) -> Any:
    """Return the module of the kernels that count on a device; ``None`` where array operations do. Waits the first time."""
    if device.type != "cuda":
        return None
    if device not in _proved:
        if torch.cuda.is_current_stream_capturing():
            return None  # nothing can be proved within a graph
        _proved[device] = _prove(device)
    return _proved[device]


def _prove(device: torch.device) -> Any:
    try:
        from pplmon.tally import triton  # needs Triton, which is not everywhere
    except ImportError:
        return None
    try:
        wrong = differences(device, triton.add)
    except Exception as error:
        why = f"could not be run: {type(error).__name__}: {error}"
    else:
        if not wrong:
            return triton
        why = f"counted {', '.join(wrong)} wrongly in a test of a few tokens"
    warnings.warn(
        f"pplmon: the kernels that count on {device} {why}. Its batches are counted by PyTorch's operators instead: the "
        "same numbers, with some 180 launches for each micro-batch instead of four.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def differences(device: torch.device, add: Any) -> list[str]:
    """Count a small batch by ``add`` and by array operations; return which states differ."""
    wrong = set()
    for shift in (False, True):
        stats, given = _example(device, shift)
        table = torch.arange(_VOCAB - 1, device=device) if shift else None
        settings = Settings(2, _CONTEXT, whole_sequences=True, token_bytes=table, wants_valid=True)
        states = _empty(device), _empty(device)
        for state, count in zip(states, (add, by_arrays.add)):
            for packed in (given, given._replace(documents=None)):
                count(state, stats, packed, settings)
        one, two = ({name: part.tolist() for name, part in state._asdict().items()} for state in states)
        for cell in _INEXACT:
            one["sums"][cell] = two["sums"][cell] = 0
        wrong |= {name for name in one if one[name] != two[name]}
    return sorted(wrong)


def _example(device: torch.device, shift: bool) -> tuple[TokenStats, Given]:
    """Losses with ties, NaN, inf and beyond the cap; targets ignored and impossible; two documents in a row."""
    index = torch.arange(_ROWS * _LENGTH)
    nll = (index * 37 % 11) / 3
    nll[5], nll[50], nll[51], nll[100] = torch.nan, torch.inf, 2000.0, 2e-7
    targets = index * 5 % (_VOCAB + 1)
    targets[::9] = -100
    stats = TokenStats.from_losses(
        nll.view(_ROWS, _LENGTH).to(device),
        targets.view(_ROWS, _LENGTH).to(device),
        predicted=(index % _VOCAB).view(_ROWS, _LENGTH).to(device),
        top_probability=((index * 13 % 20) / 20).view(_ROWS, _LENGTH).to(device),
        vocab_size=_VOCAB,
    )
    documents = (torch.arange(_LENGTH) > _LENGTH // 2).long().expand(_ROWS, _LENGTH).contiguous()
    position_ids = index.flip(0).to(device) if shift else None
    given = Given(3, 1, 2, documents.to(device), torch.arange(_ROWS, device=device), position_ids)
    return TokenStats(**{**stats.__dict__, "shift": shift}), given


def _empty(device: torch.device) -> State:
    def cells_of(value: int, *shape: int) -> Tensor:
        return torch.full(shape, value, dtype=torch.int64, device=device)

    return State(
        sums=cells_of(0, len(cells.SUMS)),
        maxima=cells_of(-1, len(cells.MAXIMA)),
        histogram=cells_of(0, cells.BUCKETS),
        token_rows=cells_of(-1, _KEEP, cells.TOKEN_COLUMNS + 2 * _CONTEXT + 1),
        sequence_rows=cells_of(-1, _KEEP, cells.SEQUENCE_COLUMNS),
        extra_sums=cells_of(0, 0),
    )
