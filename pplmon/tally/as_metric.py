"""The states of a tally as those of a ``torchmetrics.Metric``: held in one tensor, whoever resets, syncs, saves, copies or moves them.

All private names of torchmetrics stand here. Shapes: K worst rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

from pplmon.extras import Measures
from pplmon.report import layout, saved
from pplmon.report.totals import Totals
from pplmon.tally import checkpoint
from pplmon.tally.cells import Cells
from pplmon.tally.doing import Doing
from pplmon.tally.merge import merge_counts, merge_maxima, merge_rows, merge_sums
from pplmon.tally.own_numbers import Block
from pplmon.tally.ranks import Group
from pplmon.tally.readout import ReadOut, gather_rows, state_of
from pplmon.tally.records import State
from pplmon.tally.waiting import Counted, Waiting

if TYPE_CHECKING:
    from typing_extensions import Self


class AsMetric(Metric):
    """Integer states, one per sum, maximum, bucket and worst row (see ``report.layout``)."""

    full_state_update = False
    is_differentiable = False
    sums = Counted()
    maxima = Counted()
    histogram = Counted()
    token_rows = Counted(rows=True)
    sequence_rows = Counted(rows=True)
    extra_sums = Counted()
    extra_maxima = Counted()

    def __init__(self, keep: int, context: int, extras: tuple[Measures, ...], **kwargs: Any) -> None:
        """Make the states, with K = ``keep``."""
        # A cached result would let a rank without news return early while the others wait for it.
        kwargs.setdefault("compute_with_cache", False)
        super().__init__(**kwargs)
        self._waiting = Waiting()
        self.extras = extras
        self._for_numbers = False
        self._before_sync: State | None = None
        self._held: Cells | None = None
        self._columns = layout.TOKEN_COLUMNS + 2 * context + 1
        self._add("sums", (len(layout.SUMS),), 0, merge_sums)
        self._add("maxima", (len(layout.MAXIMA),), -1, merge_maxima)
        self._add("histogram", (layout.BUCKETS,), 0, merge_counts)
        self._add("token_rows", (keep, self._columns), -1, merge_rows)
        self._add("sequence_rows", (keep, layout.SEQUENCE_COLUMNS), -1, merge_rows)
        sizes = [saved.size_of(extra) for extra in extras]
        self._add("extra_sums", (sum(size.sums for size in sizes),), 0, merge_counts)
        self._add("extra_maxima", (sum(size.maxima for size in sizes),), -1, merge_maxima)
        self._gather_cells()

    @property
    def group(self) -> Group:
        """Return the ranks whose tokens are counted together."""
        raise NotImplementedError

    def local_totals(self) -> Totals:
        """Return this rank's own host integers. No collective."""
        raise NotImplementedError

    def _read_out(self, group: Group, doing: Doing, own: Block | None = None) -> ReadOut:
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Return the device of the states."""
        return self.__dict__["sums"].device  # type: ignore[no-any-return]

    def settle(self, rows: bool = True) -> None:
        """Count the batches that wait, and unless it is said otherwise find their worst rows."""
        if self._waiting:
            (self._waiting.settle if rows else self._waiting.count)(self._writable().state)

    @property
    def synced(self) -> bool:
        """Return True while the group's totals stand in place of this rank's own."""
        return bool(self._is_synced)

    def add_totals(self, totals: Totals) -> None:
        """Add host totals, as from a checkpoint, on one rank of a group only: on W ranks they would count W times."""
        self.settle()
        own = self._writable().state
        for name, part in state_of(totals, own)._asdict().items():
            state: Tensor = getattr(own, name)
            state.copy_(self._reductions[name](torch.stack([state, part])))  # type: ignore[operator,misc]

    def reset(self) -> None:
        """Begin anew, with the states where they were (``torchmetrics.Metric.reset`` makes new ones)."""
        self._waiting.drop()
        own = self._writable().state
        super().reset()
        self._move_to(own)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Put the group's totals in place of this rank's (``torchmetrics.Metric.sync``), with three collectives."""
        own, already = self._writable().state, self._is_synced
        super().sync(*args, **kwargs)
        if already or not self._is_synced:
            return
        self._before_sync = own
        if not self._for_numbers:
            self._set_state(gather_rows(self.local_totals(), self.group, self.device, self._columns))

    def unsync(self, *args: Any, **kwargs: Any) -> None:
        """Put this rank's totals back in place of the group's, where they were."""
        super().unsync(*args, **kwargs)
        if self._before_sync is not None and not self._is_synced:
            self._move_to(self._before_sync)
            self._before_sync = None

    @contextmanager
    def sync_context(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Sync for the sake of numbers, as ``compute`` does: two collectives; the worst rows stay this rank's own."""
        self._for_numbers = True
        try:
            with super().sync_context(*args, **kwargs):
                yield
        finally:
            self._for_numbers = False

    def state_dict(  # type: ignore[override]  # torchmetrics' own
        self, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Return the states (as ``torch.nn.Module.state_dict``), and the names of their integers."""
        state = super().state_dict(destination, prefix, keep_vars)
        if self._persistent["sums"]:
            for name in State._fields:
                if not keep_vars:  # each by itself: a view would be saved with all that it is a view of
                    state[prefix + name] = state[prefix + name].clone()
            state[prefix + checkpoint.KEY] = checkpoint.names_of(self.extras)
        return state

    def get_extra_state(self) -> Tensor:
        """Say whose totals a ``state_dict`` holds: one rank's, or after ``sync`` the whole group's."""
        return torch.tensor([self.group.rank, self.group.size, int(self._is_synced)])

    def set_extra_state(self, state: Tensor) -> None:
        """Keep loaded totals on the one rank that they belong to, so that loading on all ranks counts nothing twice."""
        rank, ranks, synced = state.tolist()
        same_ranks = ranks == self.group.size and not synced
        if self.group.rank != (rank if same_ranks else 0):
            self.reset()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy everything but the process group, which cannot be copied: both count over the same."""
        twin: Self = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(deepcopy(self.__getstate__(), memo))
        twin.process_group = self.process_group
        return twin

    def clone(self) -> Self:
        """Return a copy that counts over the same group."""
        return deepcopy(self)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw what ``compute`` returns, or ``val``: (figure, axes), as torchmetrics does. It needs matplotlib."""
        return self._plot(val, ax)

    def __prepare_scriptable__(self) -> Any:
        """Refuse ``torch.jit.script`` in words."""
        raise TypeError(
            f"torch.jit.script cannot compile {type(self).__name__}: it counts outside of graphs. Script the model alone: "
            "where the metric is an attribute of it, set that to None first, or keep the metric outside of the model"
        )

    def set_dtype(self, dst_type: str | torch.dtype) -> Self:
        """Do nothing: the states are integers, and stay so."""
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = self._writable().state
        *_, missing, _, errors = args
        checkpoint.translate(state_dict, prefix, own, self._defaults, self.extras)
        # torchmetrics takes what it finds, of any shape, and does not miss the rest.
        for name in State._fields:
            shape, found = getattr(own, name).shape, state_dict.get(prefix + name)
            if found is None:
                missing += [prefix + name] if self._persistent[name] else []
            elif found.shape != shape:
                state_dict.pop(prefix + name)
                errors.append(
                    f"{prefix}{name} was saved with shape {tuple(found.shape)}, and this tally has {tuple(shape)}: "
                    "load it with the top_k and context that it was saved with"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._move_to(own)  # what was loaded stays as it is, also when this tally counts on

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        # A ProcessGroup cannot be pickled, and a copy's states are no longer views of one tensor.
        return {**super().__getstate__(), "process_group": None, "_held": None, "_waiting": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_waiting": Waiting()})
        self._gather_cells()

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self.settle()  # by what stands on the device that it waits on
        super()._apply(*args, **kwargs)
        self._gather_cells()  # now, not in the next update, which may be captured in a graph
        return self

    def _writable(self) -> Cells:
        """Return the states, to be changed in place, so that a captured graph finds them where they were."""
        held = self.cells()
        if held.flat.is_inference() and not torch.is_inference_mode_enabled():
            held = self._gather_cells()  # made under inference_mode, they could not be changed outside
        return held

    def cells(self) -> Cells:
        """Return the one tensor whose views the states are. Where some were made anew they are moved to a new one."""
        held = self._held
        if held is not None and held.holds(self.__dict__):
            return held
        return self._gather_cells()

    def _gather_cells(self) -> Cells:
        self._held = held = Cells.of(self._state(), self._defaults)
        self.__dict__.update(held.state._asdict())
        return held

    def _move_to(self, own: State) -> None:
        """Copy the states that torchmetrics made anew to where they were."""
        for name, tensor in own._asdict().items():
            if getattr(self, name) is not tensor:
                tensor.copy_(getattr(self, name))
                setattr(self, name, tensor)

    def _state(self) -> State:
        return State(*(self.__dict__[name] for name in State._fields))

    def _set_state(self, totals: Totals) -> None:
        for name, part in state_of(totals, self._state())._asdict().items():
            setattr(self, name, part)

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any = None) -> None:
        """Put the group's numbers in place of this rank's: two collectives instead of two for each state."""
        self._set_state(self._read_out(Group(process_group or self.process_group), Doing()).totals())

    def _begin_with(self, name: str, state: Tensor) -> None:
        """Set what a state holds before the first batch, now and after each reset."""
        setattr(self, name, state)
        self._defaults[name] = state.clone()
        self._gather_cells()

    def _add(self, name: str, shape: tuple[int, ...], fill: int, merge: Callable[[Tensor], Tensor]) -> None:
        default = torch.full(shape, fill, dtype=torch.int64)
        self.add_state(name, default, dist_reduce_fx=merge, persistent=True)
