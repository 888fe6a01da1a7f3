"""Functions that the ranks of ``test_actions`` run, at the top of a module so that other processes can import them."""

from __future__ import annotations

import torch
from torch import Tensor

import pplmon
from pplmon.measure.tokens import TokenStats

LENGTH = 20


def ids(rank: int, step: int) -> Tensor:
    """What rank ``rank`` trains on at ``step``."""
    return torch.full((2, LENGTH), 100 * rank + step)


def save_on_owner(rank: int, directory: str) -> None:
    """Rank 1 meets a bad token at step 4; the rank without data takes part."""
    monitor = pplmon.Monitor(alerts=[pplmon.Above("max_token_loss", 100.0)], on_alert=pplmon.SaveBatch(directory))
    for step in range(8):
        nll = torch.full((2, LENGTH), 2.0)
        if rank == 1 and step == 4:
            nll[1, 3] = 500.0
        stats = TokenStats.from_losses(nll, torch.zeros(2, LENGTH, dtype=torch.int64))
        monitor.observe(stats, input_ids=ids(rank, step))
        monitor.step()
    monitor.close()
