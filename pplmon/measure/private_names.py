"""Give public names to what pplmon uses of torch's private ones, so that a release that moves one breaks a single file."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch import nn

__all__ = [
    "compiled_module",
    "default_store",
    "graph_task",
    "is_flat_shard",
    "norm_each",
    "timeout_of",
]

norm_each = torch._foreach_norm  # (tensors, order, dtype): the norm of each of a list, in few launches on a GPU
graph_task = torch._C._current_graph_task_id  # (): the backward pass that this thread is in, −1 outside one


def compiled_module(module: nn.Module) -> Any:
    """Return what a torch.compile wrapper wraps, else the module itself."""
    return getattr(module, "_orig_mod", module)


def default_store(c10d: Any) -> Any:
    """Return the store by which the ranks of the run found each other, from torch's module of process groups."""
    return c10d._get_default_store()


def is_flat_shard(parameter: Any) -> bool:
    """Return True for a part of a parameter that FullyShardedDataParallel (FSDP1) has flattened and cut over ranks."""
    return hasattr(parameter, "_fsdp_flattened")


def timeout_of(group: Any) -> timedelta | None:
    """Return how long a collective of a process group may take; ``None`` where its backends do not say."""
    options = [getattr(group._get_backend(device), "options", None) for device in group._device_types]
    return max((each._timeout for each in options if each is not None), default=None)
