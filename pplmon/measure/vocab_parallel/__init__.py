"""Logits whose vocabulary is cut over ranks are measured where they lie: one small collective, and no gathered logits."""

from pplmon.measure.vocab_parallel.dtensor import held_rows, is_dtensor, local
from pplmon.measure.vocab_parallel.merge import measure
from pplmon.measure.vocab_parallel.shard import Place, VocabShard

__all__ = ["Place", "VocabShard", "held_rows", "is_dtensor", "local", "measure"]
