"""Tasks of ranks for ``test_liger``: a model whose loss makes no logits, cut over the ranks by FSDP2."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.modeling_outputs import CausalLMOutputWithPast

import pplmon
from tests.hf_kit import Sums, build, collate


def sharded_head(rank: int, lengths: Sequence[int]) -> dict[str, float]:
    """Train two steps on two rows of this rank's length, and return the numbers of all ranks."""
    model, plain = build(), build().double().eval()
    forward = model.forward

    def hides_logits(self: Any, *args: Any, **given: Any) -> Any:
        return CausalLMOutputWithPast(loss=forward(*args, **given).loss, logits=None)

    model.forward = MethodType(hides_logits, model)
    mesh = init_device_mesh("cpu", (len(lengths),))
    fully_shard(model.lm_head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    batches = [[torch.arange(3, 3 + length)] * 2 for length in lengths]
    with pplmon.Monitor(every_n_steps=1, alerts=[]).hook(model, recompute_logits=True) as monitor:
        for _ in range(2):
            model(**collate(batches[rank])).loss.backward()
            monitor.step()
        report = monitor.close()
    assert report is not None
    with torch.no_grad():
        parts = [Sums.of(plain(row[None]).logits, row[None]) for batch in batches for row in batch]
    true = sum(part.nll for part in parts) / sum(part.tokens for part in parts)
    return {"tokens": report.tokens, "cross_entropy": report.cross_entropy, "float64": true}
