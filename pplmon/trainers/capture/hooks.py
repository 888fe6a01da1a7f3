"""Hook the calls of a module, outside the graph of a compiled step, and not while backward recomputes a forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from pplmon.measure.outside_graphs import outside_graphs
from pplmon.measure.private_names import graph_task

Call = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]  # module, args, kwargs, output


def listen_to(module: nn.Module, take: Call) -> RemovableHandle:
    """Call ``take`` after each call of the module, until the handle is removed.

    It has to be set before the module's first compiled call.
    """

    @outside_graphs
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # Activation checkpointing runs the forward again during backward; that is no new batch.
        if graph_task() == -1:
            take(module, args, kwargs, output)

    return module.register_forward_hook(hook, with_kwargs=True)
