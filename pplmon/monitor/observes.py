"""``Monitor.observe``: count one micro-batch of training, or of the pass under way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pplmon.measure.called import name_call
from pplmon.measure.tokens import TokenStats, VocabShard
from pplmon.monitor.evaluation import Pass
from pplmon.monitor.readouts import Engine
from pplmon.monitor.repeated_rows import RepeatedRows


class Observes(Engine):
    """Counts the micro-batches that a monitor is given."""

    _repeated: RepeatedRows | None = None  # of the pass under way

    def observe(
        self,
        logits: Tensor | TokenStats,
        targets: Tensor | None = None,
        mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        sample_ids: Tensor | None = None,
        vocab_shard: VocabShard | None = None,
        *,
        shift: bool | None = None,
        loss: Tensor | float | None = None,
        **batch_data: Tensor,
    ) -> None:
        """Count one micro-batch (other arguments as ``TokenTally.update``). Never waits for the device.

        One thread calls ``observe`` and ``step``: RuntimeError where another is inside.

        Args:
            logits: [B, T, V] or [N, V], or ``TokenStats``.
            targets: [B, T] or [N] int ids.
            mask: bool like targets, True = scored.
            document_ids: int like targets: runs of equal ids are sequences (packing).
            sample_ids: [B] int64, the sample (row of the dataset) of each row.
            vocab_shard: the part of the vocabulary that plain logits hold.
            shift: True where logits at t predict the target at t+1, False where the target at t. What is stated is never
                changed. ``None`` is the tally's own; where that is False and there is a ``loss``, the losses of a stage's
                first batches choose, and nothing is shown before.
            loss: the loss of this micro-batch, before it is divided by accumulated batches. It is compared with the
                cross-entropy again and again; what does not agree is a warning.
            batch_data: further tensors of the batch that extras read, by name. ``input_ids`` and ``attention_mask`` help
                to tell why a loss does not agree.
        """
        if not self._link.takes_part:
            return
        data = {"mask": mask, "document_ids": document_ids, "sample_ids": sample_ids, **batch_data}
        with self._one_thread:
            try:
                self._count(logits, targets, data, vocab_shard, shift, loss)
            except (TypeError, ValueError) as error:
                name_call(error, "monitor.observe(logits, targets) in the loop")
                raise

    def _count(
        self,
        logits: Tensor | TokenStats,
        targets: Tensor | None,
        data: dict[str, Any],
        vocab_shard: VocabShard | None,
        shift: bool | None,
        loss: Tensor | float | None,
    ) -> None:
        opened = self._pass
        if opened is None:
            stage, tally, step, micro_batch = "train", self._link.tally, self._step, self._micro_batch
            self._micro_batch += 1
            if self._delivery.watchers:
                self.see(step, micro_batch, _batch(logits, targets, data))
        else:
            stage, tally, step = opened.counted_as, opened.tallies[0], self.last_step
            micro_batch = opened.begin_batch()
            data = self._once(opened, data, targets)
        data = {**data, "step": step, "micro_batch": micro_batch, "vocab_shard": vocab_shard}
        counted = self._shifts.count(stage, tally, logits, targets, data, shift, loss)
        if opened is None and isinstance(logits, Tensor) and targets is not None:
            self._overwritten.look(logits, targets, tally.ignore_index, counted)

    def _once(self, opened: Pass, data: dict[str, Any], targets: Tensor | None) -> dict[str, Any]:
        """Mask the rows of a pass that were given before, where it can be told which they are."""
        repeated = self._repeated.in_batch(opened, 0) if self._repeated is not None else None
        if self._repeated is not None and repeated is not None and targets is not None:
            data, left_out = repeated.left_out(targets, data)
            self._repeated.note(0, left_out)
        return data

    def see(self, step: int, micro_batch: int, batch: object) -> None:
        """Pass a micro-batch of training to the handlers that have a ``see``."""
        self._delivery.see(step, micro_batch, batch)


def _batch(logits: Tensor | TokenStats, targets: Tensor | None, data: Mapping[str, Any]) -> dict[str, Tensor | None]:
    """Return the arguments of ``observe`` for a micro-batch, without its logits."""
    if isinstance(logits, TokenStats):
        targets = logits.targets.view(logits.batch_shape)
    return {"targets": targets, **data}
