"""ACCUMULATE: ``TokenTally``, a ``torchmetrics.Metric`` whose states are integers on the device.

Shapes: B sequences, T positions, N = B·T tokens, V vocabulary, K worst rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric

from pplmon import cells
from pplmon.graphs import outside_graphs
from pplmon.report import Derives, Report, Totals
from pplmon.tally import inputs
from pplmon.tally.batch import add
from pplmon.tally.given import Given, Settings, State
from pplmon.tally.group import Group
from pplmon.tally.layout import merge_counts, merge_maxima, merge_rows, merge_sums
from pplmon.tally.readout import ALONE, ReadOut, gather_rows, state_of
from pplmon.tokens import TokenStats, VocabShard, is_dtensor, token_stats

_SETTINGS = ("ignore_index", "shift", "top_k", "context", "min_sequence_tokens", "context_parallel", "kernel")


class Extra(Derives, Protocol):
    """An optional measurement: ``size`` integers that are summed, and the numbers that they give.

    An extra with ``needs_entropy = True`` finds ``stats.entropy`` where the tally measures logits.
    """

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        """Return this batch's non-negative integers [size], int64, on the device of the stats, without a host sync.

        ``logits`` are None where stats came without them, and where ranks hold parts of them.
        """
        ...


class TokenTally(Metric):
    """Exact, mergeable totals of every token: the same numbers however the tokens are cut and in whatever order.

    Args:
        ignore_index: targets of this value are not scored; ``None`` ignores nothing.
        shift: logits at t predict the target at t+1 (see ``token_stats``).
        top_k: how many worst tokens, and worst sequences, are kept with their address.
        context: neighbours kept on each side of a worst token.
        min_sequence_tokens: shorter sequences do not enter ``max_sequence_loss``.
        context_parallel: a rank holds a part of each sequence: numbers that need whole ones are None.
        token_bytes: [V] ints, the bytes that each id stands for (0 for special ones); gives ``bits_per_byte``.
        process_group: the ranks whose tokens are counted together; ``None`` is all of them.
        extras: optional measurements (see ``Extra``).
        kernel: which way to measure logits (see ``token_stats``).
        kwargs: what ``torchmetrics.Metric`` takes.

    Memory: about 17 KiB of int64 states, whatever the number of tokens.
    """

    full_state_update = False
    is_differentiable = False
    sums: Tensor
    maxima: Tensor
    histogram: Tensor
    token_rows: Tensor
    sequence_rows: Tensor
    extra_sums: Tensor
    token_bytes: Tensor | None

    def __init__(
        self,
        ignore_index: int | None = -100,
        shift: bool = False,
        top_k: int = 8,
        context: int = 8,
        min_sequence_tokens: int = 16,
        token_bytes: Sequence[int] | Tensor | None = None,
        process_group: Any = None,
        extras: Sequence[Extra] = (),
        context_parallel: bool = False,
        kernel: str | None = None,
        **kwargs: Any,
    ) -> None:
        # A cached result would let a rank without news return early while the others wait for it.
        kwargs.setdefault("compute_with_cache", False)
        super().__init__(process_group=process_group, **kwargs)
        for name, value in (("top_k", top_k), ("min_sequence_tokens", min_sequence_tokens)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if not isinstance(context, int) or context < 0:
            raise ValueError(f"context must be an integer of at least 0 (neighbours on each side), got {context!r}")
        if context_parallel and shift:
            raise ValueError(
                "shift=True cannot reach the next column when it is on another rank; under context_parallel shift the "
                "targets where the sequences are still whole"
            )
        self.ignore_index, self.shift, self.context_parallel = ignore_index, shift, context_parallel
        self.top_k, self.context, self.min_sequence_tokens = top_k, context, min_sequence_tokens
        self.extras, self.kernel = tuple(extras), kernel
        self.needs_entropy = any(getattr(extra, "needs_entropy", False) for extra in self.extras)
        self._for_numbers = False
        self.register_buffer("token_bytes", inputs.byte_table(token_bytes), persistent=False)
        self._columns = cells.TOKEN_COLUMNS + 2 * context + 1
        self._add("sums", (len(cells.SUMS),), 0, merge_sums)
        self._add("maxima", (len(cells.MAXIMA),), -1, merge_maxima)
        if self.token_bytes is None:  # known before the first batch
            self.maxima[cells.MAXIMA.index("bytes_missing")] = 1
            self._defaults["maxima"] = self.maxima.clone()
        self._add("histogram", (cells.BUCKETS,), 0, merge_counts)
        self._add("token_rows", (top_k, self._columns), -1, merge_rows)
        self._add("sequence_rows", (top_k, cells.SEQUENCE_COLUMNS), -1, merge_rows)
        self._add("extra_sums", (sum(extra.size for extra in self.extras),), 0, merge_counts)
        # A MetricCollection shares one update among metrics whose states look alike after the first batch. This empty
        # state is named after the settings, so that only metrics that measure the same are ever grouped.
        self.add_state(self._settings(), torch.zeros(0, dtype=torch.int64), dist_reduce_fx="sum")

    @torch.no_grad()
    @outside_graphs
    def update(
        self,
        logits: Tensor | TokenStats,
        targets: Tensor | None = None,
        mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        sample_ids: Tensor | None = None,
        step: int = 0,
        micro_batch: int = 0,
        position_ids: Tensor | None = None,
        vocab_shard: VocabShard | None = None,
        **batch_data: Tensor,
    ) -> None:
        """Count one batch. Never waits for the device.

        Args:
            logits: [B, T, V] or [N, V], or ``TokenStats``, which need no targets.
            targets: [B, T] or [N] int ids.
            mask: bool like targets, True = scored.
            document_ids: int like targets: runs of equal ids are sequences (packing).
            sample_ids: [B] int64, the dataset's row of each sequence.
            step: optimizer step, for the addresses of the worst tokens.
            micro_batch: within the step.
            position_ids: int like targets: reported as positions instead of the column (a part of a longer sequence).
            vocab_shard: which part of the vocabulary plain logits hold (see ``token_stats``).
            batch_data: what extras read.

        Raises:
            ValueError: shapes that do not fit each other; ranks that share a vocabulary, and so the tokens, would each
                count them. TypeError: a dtype that cannot be right.
        """
        stats, raw = self._measure(logits, targets, mask, vocab_shard)
        inputs.check_counted_once(stats, self.group)
        if stats.nll.device != self.sums.device:
            self.to(stats.nll.device)
        if not stats.nll.numel():
            return
        given = Given(
            step=inputs.natural("step", step, 63 - cells.MICRO_BITS),
            micro_batch=inputs.natural("micro_batch", micro_batch, cells.MICRO_BITS),
            rank=self.group.global_rank,
            documents=inputs.check_documents(document_ids, stats),
            sample_ids=inputs.check_samples(sample_ids, stats),
            position_ids=inputs.check_positions(position_ids, stats),
        )
        settings = Settings(
            self.min_sequence_tokens, self.context, not self.context_parallel, self.token_bytes, bool(self.extras)
        )
        state = self._writable()
        valid = add(state, stats, given, settings)
        if self.extras:
            parts = [extra.update(stats, valid, raw, **batch_data) for extra in self.extras]
            state.extra_sums.add_(torch.cat(parts)).clamp_max_(cells.CEILING)

    def compute(self) -> Any:
        """Return the numbers of §2 of the contract, as 0-dim tensors by name, over all ranks (every rank calls it).

        Counts are int64, the others float64 (float32 on devices without it). Numbers that cannot be had are left out.
        """
        report = self.local_totals().report()
        return {name: self._tensor(value) for name, value in report.as_dict().items()}

    def totals(self) -> Totals:
        """Return host integers, merged over ranks (every rank calls it), that add to those of other windows."""
        if self._is_synced:
            return self.local_totals()
        return self.gather(self.read_out().totals())

    def report(self, step: int = 0, stage: str = "train") -> Report:
        """Return the report of what was accumulated, merged over ranks (every rank calls it)."""
        return self.totals().report(step, stage)

    def read_out(self) -> ReadOut:
        """Start the reduction over ranks without waiting (every rank calls it at the same step)."""
        return ReadOut(self._state(), self.group, self.extras)

    def gather(self, totals: Totals) -> Totals:
        """Return totals of a read-out with the worst rows of all ranks (every rank calls it)."""
        return gather_rows(totals, self.group, self.sums.device, self._columns)

    @property
    def group(self) -> Group:
        """The ranks whose tokens are counted together."""
        return Group(self.process_group)

    def add_duplicates(self, sequences: int | Tensor) -> None:
        """Count sequences that a sampler repeated to fill the last batch, on one rank only."""
        sums = self._writable().sums
        sums[cells.SUMS.index("duplicates_known")] += 1
        sums[cells.SUMS.index("duplicate_sequences")] += sequences

    def signal(self, cell: str) -> None:
        """Add 1 to "stop_votes" or "leaving": what a rank tells all others with the next read-out."""
        self._writable().sums[cells.SUMS.index(cell)] += 1

    def add_totals(self, totals: Totals) -> None:
        """Add host totals, as from a checkpoint. Of a group's ranks one does, or they would count W times."""
        own = self._writable()
        for name, part in state_of(totals, own)._asdict().items():
            state: Tensor = getattr(own, name)
            state.copy_(self._reductions[name](torch.stack([state, part])))  # type: ignore[operator,misc]

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Put the group's totals in place of this rank's (``torchmetrics.Metric.sync``), with three collectives."""
        super().sync(*args, **kwargs)
        if self._is_synced and not self._for_numbers:
            self._set_state(gather_rows(self.local_totals(), self.group, self.sums.device, self._columns))

    @contextmanager
    def sync_context(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Sync for the sake of numbers, as ``compute`` does: two collectives; the worst rows stay this rank's own."""
        self._for_numbers = True
        try:
            with super().sync_context(*args, **kwargs):
                yield
        finally:
            self._for_numbers = False

    def get_extra_state(self) -> Tensor:
        """Say whose totals a ``state_dict`` holds: one rank's, or after ``sync`` the whole group's."""
        return torch.tensor([self.group.rank, self.group.size, int(self._is_synced)])

    def set_extra_state(self, state: Tensor) -> None:
        """Keep loaded totals on the one rank that they belong to, so that loading on all ranks counts nothing twice."""
        rank, ranks, synced = state.tolist()
        same_ranks = ranks == self.group.size and not synced
        if self.group.rank != (rank if same_ranks else 0):
            self.reset()

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenTally:
        """Copy everything but the process group, which cannot be copied: both count over the same."""
        twin: TokenTally = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(deepcopy(self.__getstate__(), memo))
        twin.process_group = self.process_group
        return twin

    def reset(self) -> None:
        """Begin anew, with the states where they were (``torchmetrics.Metric.reset`` makes new ones)."""
        own = self._writable()
        super().reset()
        for name, tensor in own._asdict().items():
            setattr(self, name, tensor)
        self.clear()

    def clear(self) -> None:
        """Forget what was counted, and nothing else."""
        defaults = [self._defaults[name] for name in State._fields]
        torch._foreach_copy_(list(self._writable()), defaults)  # type: ignore[arg-type]  # one launch

    def clone(self) -> TokenTally:
        """Return a copy that counts over the same group."""
        return deepcopy(self)

    def set_dtype(self, dst_type: str | torch.dtype) -> TokenTally:
        """Do nothing: the states are integers, and stay so."""
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # torchmetrics takes what it finds, of any shape, and does not miss the rest.
        *_, missing, _, errors = args
        for name in State._fields:
            own, found = getattr(self, name), state_dict.get(prefix + name)
            if found is None:
                missing += [prefix + name] if self._persistent[name] else []
            elif found.shape != own.shape:
                state_dict.pop(prefix + name)
                errors.append(
                    f"{prefix}{name} was saved with shape {tuple(found.shape)}, and this tally has {tuple(own.shape)}: "
                    "load it with the top_k, context and extras that it was saved with"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name in State._fields:  # what was loaded stays as it is, also when this tally counts on
            setattr(self, name, getattr(self, name).clone(memory_format=torch.contiguous_format))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "process_group": None}  # a ProcessGroup cannot be pickled

    def _measure(
        self,
        logits: Tensor | TokenStats,
        targets: Tensor | None,
        mask: Tensor | None,
        vocab_shard: VocabShard | None,
    ) -> tuple[TokenStats, Tensor | None]:
        if not isinstance(logits, TokenStats):
            if targets is None:
                raise TypeError("update needs targets beside logits; only TokenStats come without")
            how = (self.ignore_index, mask, self.shift, self.needs_entropy, self.kernel, vocab_shard)
            # A part of the logits would be taken for the whole of them.
            whole = vocab_shard is None and not is_dtensor(logits)
            return token_stats(logits, targets, *how), logits if whole else None
        if targets is not None or mask is not None or vocab_shard is not None:
            raise TypeError(
                "TokenStats already hold targets and mask, and are whole: give those, and vocab_shard, to token_stats"
            )
        return logits, None

    def _writable(self) -> State:
        """Return the states, to be changed in place, so that a captured graph finds them where they were."""
        for name in State._fields:
            tensor: Tensor = getattr(self, name)
            if tensor.is_inference() and not torch.is_inference_mode_enabled():
                setattr(self, name, tensor.clone())  # made under inference_mode, it could not be changed outside
        return self._state()

    def _state(self) -> State:
        return State(*(getattr(self, name) for name in State._fields))

    def _set_state(self, totals: Totals) -> None:
        for name, part in state_of(totals, self._state())._asdict().items():
            setattr(self, name, part)

    def local_totals(self) -> Totals:
        """Return this rank's own host integers. No collective."""
        return ReadOut(self._state(), ALONE, self.extras).totals()

    def _tensor(self, value: float) -> Tensor:
        wide = torch.float32 if self.sums.device.type == "mps" else torch.float64
        return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else wide, device=self.sums.device)

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any = None) -> None:
        """Put the group's numbers in place of this rank's: two collectives instead of two for each state."""
        group = Group(process_group or self.process_group)
        self._set_state(ReadOut(self._state(), group, self.extras).totals())

    def _add(self, name: str, shape: tuple[int, ...], fill: int, merge: Callable[[Tensor], Tensor]) -> None:
        default = torch.full(shape, fill, dtype=torch.int64)
        self.add_state(name, default, dist_reduce_fx=merge, persistent=True)

    def _settings(self) -> str:
        table = None if self.token_bytes is None else self.token_bytes.tolist()
        extras = [repr(extra) for extra in self.extras]
        group = None if self.process_group is None else id(self.process_group)
        settings = (group, *(getattr(self, name) for name in _SETTINGS), table, extras)
        return "settings_" + hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
