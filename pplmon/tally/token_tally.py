"""``TokenTally``: a ``torchmetrics.Metric`` whose states are integers on the device.

Shapes: B rows, T positions, N = B·T tokens, V vocabulary, K worst rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pplmon.extras import Measures
from pplmon.measure.outside_graphs import outside_graphs
from pplmon.measure.tokens import TokenStats, VocabShard, check_kernel, is_dtensor, token_stats
from pplmon.measure.waiting import waiting_allowed
from pplmon.report import layout
from pplmon.report.checks import at_least
from pplmon.report.report import Report
from pplmon.report.totals import Totals
from pplmon.tally import checks
from pplmon.tally.count.choose import add
from pplmon.tally.records import Given, Settings, State
from pplmon.tally.states import States

_ALIKE = ("ignore_index", "shift", "context", "min_sequence_tokens", "context_parallel")  # on all ranks
_SETTINGS = ("ignore_index", "shift", "top_k", "context", "min_sequence_tokens", "context_parallel", "kernel")


class TokenTally(States):
    """Exact totals over all tokens: the same numbers however the tokens are cut into batches, and in any order.

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
        kernel: the implementation that measures logits (see ``token_stats``).
        kwargs: the arguments of ``torchmetrics.Metric``.

    Memory: about 17 KiB of int64 states, whatever the number of tokens, and on a CPU up to 140 KB of batches that wait to be counted.
    """

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
        extras: Sequence[Measures] = (),
        context_parallel: bool = False,
        kernel: str | None = None,
        **kwargs: Any,
    ) -> None:
        at_least("top_k", top_k)
        at_least("min_sequence_tokens", min_sequence_tokens)
        at_least("context", context, 0, note="neighbours on each side")
        if context_parallel and shift:
            raise ValueError(
                "shift=True cannot reach the next column when it is on another rank; under context_parallel shift the "
                "targets where the sequences are still whole"
            )
        check_kernel(kernel)
        super().__init__(
            top_k, context, checks.check_extras(extras, context_parallel), process_group=process_group, **kwargs
        )
        self.ignore_index, self.shift, self.kernel = ignore_index, shift, kernel
        self.context_parallel = context_parallel
        self.top_k, self.context, self.min_sequence_tokens = top_k, context, min_sequence_tokens
        self.needs_entropy = any(getattr(extra, "needs_entropy", False) for extra in self.extras)
        self.register_buffer("token_bytes", checks.byte_table(token_bytes), persistent=False)
        if self.token_bytes is None:  # known before the first batch
            maxima = self.maxima.clone()
            maxima[layout.place("bytes_missing")] = 1
            self._begin_with("maxima", maxima)
        # A MetricCollection shares one update among metrics whose states look alike after the first batch. This empty
        # state is named after the settings, so that only metrics that measure the same are ever grouped.
        self.add_state(self._settings(), torch.zeros(0, dtype=torch.int64), dist_reduce_fx="sum")
        self.agree_on({name: getattr(self, name) for name in _ALIKE} | {"token_bytes": _digest(self.token_bytes)})

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
            sample_ids: [B] int64, the sample (row of the dataset) of each row.
            step: optimizer step, for the addresses of the worst tokens.
            micro_batch: the micro-batch within the step, for the addresses.
            position_ids: int like targets: reported as positions instead of the column (a part of a longer sequence).
            vocab_shard: the part of the vocabulary that plain logits hold (see ``token_stats``).
            batch_data: further tensors of the batch that extras read, by name.

        Raises:
            ValueError: shapes do not fit each other, or ranks of the group share a vocabulary, so that each would count
                the same tokens. TypeError: a dtype is wrong.
        """
        stats, raw = self._measure(logits, targets, mask, vocab_shard)
        group = self.group
        checks.check_counted_once(stats, group)
        if stats.nll.device != self.device:
            with waiting_allowed(stats.nll.device):
                self.to(stats.nll.device)
        if not stats.nll.numel():
            return
        given = Given(
            step=checks.natural("step", step, 63 - layout.MICRO_BITS),
            micro_batch=checks.natural("micro_batch", micro_batch, layout.MICRO_BITS),
            rank=group.global_rank,
            documents=checks.check_documents(document_ids, stats),
            sample_ids=checks.check_samples(sample_ids, stats),
            position_ids=checks.check_positions(position_ids, stats),
        )
        settings = Settings(
            self.min_sequence_tokens, self.context, not self.context_parallel, self.token_bytes, bool(self.extras)
        )
        if self._waiting.takes(stats, given, settings):
            self._waiting.add(self._writable, stats, given, settings)
            return
        self.settle()
        state = self._writable().state
        valid = add(state, stats, given, settings)
        if self.extras:
            self._add_extras(state, stats, valid, raw, {**batch_data, **checks.for_extras(given, stats)})

    def compute(self) -> Any:
        """Return every number as a 0-dim tensor, by name, over all ranks (every rank calls it).

        Counts are int64, the others float64 (float32 on devices without it). Numbers that cannot be had are left out.
        """
        report = self.local_totals().report()
        return {name: self._tensor(value) for name, value in report.as_dict().items()}

    def totals(self) -> Totals:
        """Return host integers, merged over ranks (every rank calls it), that add to those of other windows."""
        self.settle()  # the rows are shown: found here, they are not looked for again in the next totals
        if self.synced:
            return self.local_totals()
        return self.gather(self.read_out().totals())

    def report(self, step: int = 0, stage: str = "train") -> Report:
        """Return the report of everything counted so far, merged over ranks (every rank calls it)."""
        return self.totals().report(step, stage)

    def add_duplicates(self, sequences: int | Tensor) -> None:
        """Count sequences that a sampler repeated to fill the last batch, on one rank only."""
        sums = self._writable().state.sums
        sums[layout.place("duplicates_known")] += 1
        sums[layout.place("duplicate_sequences")] += sequences

    def signal(self, cell: str) -> None:
        """Add 1 to "stop_votes" or "leaving": it reaches all other ranks with the next read-out."""
        self._writable().state.sums[layout.place(cell)] += 1

    @torch.no_grad()
    def _add_extras(
        self, state: State, stats: TokenStats, valid: Tensor, raw: Tensor | None, data: dict[str, Tensor]
    ) -> None:
        parts = [checks.split(extra, extra.update(stats, valid, raw, **data)) for extra in self.extras]
        state.extra_sums.add_(torch.cat([sums for sums, _ in parts])).clamp_max_(layout.CEILING)
        if state.extra_maxima.numel():
            found = torch.cat([maxima for _, maxima in parts])
            torch.maximum(state.extra_maxima, found, out=state.extra_maxima)

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
        checks.check_stats(logits)
        return logits, None

    def _tensor(self, value: float) -> Tensor:
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else wide, device=self.device)

    def _settings(self) -> str:
        table = None if self.token_bytes is None else self.token_bytes.tolist()
        extras = [repr(extra) for extra in self.extras]
        group = None if self.process_group is None else id(self.process_group)
        settings = (group, *(getattr(self, name) for name in _SETTINGS), table, extras)
        return "settings_" + hashlib.sha256(repr(settings).encode()).hexdigest()[:16]


def _digest(table: Tensor | None) -> str:
    """Return a short text that differs where tables do."""
    return "none" if table is None else hashlib.sha256(repr(table.tolist()).encode()).hexdigest()[:8]
