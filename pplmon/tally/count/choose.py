"""Count one batch by the best means there is: Triton kernels on a GPU, once a self-test passed, else array operations.

A kernel that a compiler or a driver gets wrong would give wrong numbers that look plausible. So before the first
batch of a kind, a small example of that kind is counted by the kernels and by array operations, and the results are
compared. The programs of a kind are compiled once, and serve batches of all sizes.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pplmon.measure.tokens import TokenStats
from pplmon.measure.waiting import waiting_allowed
from pplmon.report import layout
from pplmon.tally.count import by_arrays
from pplmon.tally.records import Given, Settings, State

_ROWS, _LENGTH, _VOCAB = 3, 41, 7
_INEXACT = tuple(map(layout.place, ("probability_whole", "probability_fraction")))  # exp is the device's own
_KNOWN = ("correct", "top_probability", "predicted", "vocab_size")


class Kind(NamedTuple):
    """The properties of a batch that decide which programs are compiled for it."""

    device: torch.device
    shift: bool
    flat: bool
    lacks: tuple[str, ...]  # of what is known of each token
    packed: bool
    samples: bool
    positions: bool
    whole_sequences: bool
    token_bytes: bool
    wants_valid: bool
    keep: int
    context: int


_proved: dict[Kind, Any] = {}
_given_up: set[torch.device] = set()


def add(state: State, stats: TokenStats, given: Given, settings: Settings) -> Tensor:
    """Count one batch, and return which tokens were valid, [N] bool (or nothing, where ``settings`` do not ask for it)."""
    kernels = kernels_for(state, stats, given, settings)
    if kernels is not None and kernels.fits(state, stats):
        return kernels.add(state, stats, given, settings)  # type: ignore[no-any-return]
    return by_arrays.add(state, stats, given, settings)


def kernels_for(state: State, stats: TokenStats, given: Given, settings: Settings) -> Any:
    """Return the module whose kernels count a batch, ``None`` for array operations. Waits at a kind's first batch."""
    if stats.nll.device.type != "cuda" or stats.nll.device in _given_up:
        return None
    kind = kind_of(state, stats, given, settings)
    if kind not in _proved:
        if torch.cuda.is_current_stream_capturing():
            return None  # nothing can be proved within a graph
        _proved[kind] = _prove(kind)
    return _proved[kind]


def kind_of(state: State, stats: TokenStats, given: Given, settings: Settings) -> Kind:
    """Return the kind of a batch."""
    return Kind(
        device=stats.nll.device,
        shift=stats.shift,
        flat=len(stats.batch_shape) == 1,
        lacks=tuple(name for name in _KNOWN if getattr(stats, name) is None),
        packed=given.documents is not None,
        samples=given.sample_ids is not None,
        positions=given.position_ids is not None,
        whole_sequences=settings.whole_sequences,
        token_bytes=settings.token_bytes is not None,
        wants_valid=settings.wants_valid,
        keep=len(state.token_rows),
        context=settings.context,
    )


def _prove(kind: Kind) -> Any:
    try:
        from pplmon.tally.count.triton import launch as triton  # needs Triton, which is not everywhere
    except ImportError:
        _given_up.add(kind.device)
        return None
    try:
        with waiting_allowed(kind.device):
            wrong = differences(kind, triton.add)
    except Exception as error:
        why = f"could not be run: {type(error).__name__}: {error}"
    else:
        if not wrong:
            return triton
        why = f"counted {', '.join(wrong)} wrongly in a test of a few tokens"
    _given_up.add(kind.device)
    warnings.warn(
        f"pplmon: the kernels that count on {kind.device} {why}. Its batches are counted by PyTorch's operators instead: the "
        "same numbers, with some 180 launches for each micro-batch instead of four.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def differences(kind: Kind, add: Any) -> list[str]:
    """Count a small batch of a kind twice, by ``add`` and by array operations; return which states differ."""
    stats, given, settings = _example(kind)
    states = _empty(kind), _empty(kind)
    for state, count in zip(states, (add, by_arrays.add)):
        for step in (3, 2):
            count(state, stats, given._replace(step=step), settings)
    one, two = ({name: part.tolist() for name, part in state._asdict().items()} for state in states)
    for cell in _INEXACT:
        one["sums"][cell] = two["sums"][cell] = 0
    return sorted(name for name in one if one[name] != two[name])


def _example(kind: Kind) -> tuple[TokenStats, Given, Settings]:
    """Return a batch with ties, NaN, inf, losses beyond the cap, unusable targets, and two documents in a row."""
    device, shape = kind.device, (_ROWS * _LENGTH,) if kind.flat else (_ROWS, _LENGTH)
    index = torch.arange(_ROWS * _LENGTH, device=device)
    nll = (index * 37 % 11).float() / 3
    nll[5], nll[50], nll[51], nll[100] = torch.nan, torch.inf, 2000.0, 2e-7
    targets = index * 5 % (_VOCAB + 1)
    targets[::9] = -100
    stats = TokenStats.from_losses(
        nll.view(shape),
        targets.view(shape),
        predicted=(index % _VOCAB).view(shape),
        top_probability=((index * 13 % 20).float() / 20).view(shape),
        vocab_size=_VOCAB,
    )
    rows = index[: 1 if kind.flat else _ROWS]
    documents = (index % _LENGTH > _LENGTH // 2).long().view(len(rows), -1)
    given = Given(
        step=3,
        micro_batch=1,
        rank=2,
        documents=documents if kind.packed else None,
        sample_ids=rows * 7 if kind.samples else None,
        position_ids=index.flip(0) if kind.positions else None,
    )
    table = torch.arange(_VOCAB - 1, device=device) if kind.token_bytes else None
    settings = Settings(2, kind.context, kind.whole_sequences, table, kind.wants_valid)
    lacking: dict[str, Any] = dict.fromkeys(kind.lacks)
    return replace(stats, shift=kind.shift, **lacking), given, settings


def _empty(kind: Kind) -> State:
    def cells_of(value: int, *shape: int) -> Tensor:
        return torch.full(shape, value, dtype=torch.int64, device=kind.device)

    return State(
        sums=cells_of(0, len(layout.SUMS)),
        maxima=cells_of(-1, len(layout.MAXIMA)),
        histogram=cells_of(0, layout.BUCKETS),
        token_rows=cells_of(-1, kind.keep, layout.TOKEN_COLUMNS + 2 * kind.context + 1),
        sequence_rows=cells_of(-1, kind.keep, layout.SEQUENCE_COLUMNS),
        extra_sums=cells_of(0, 0),
        extra_maxima=cells_of(-1, 0),
    )
