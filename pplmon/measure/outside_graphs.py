"""Keep what counts tokens out of the graph of a compiled step that calls it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that breaks the graph of a compiled step which calls it, and runs outside it.

    Traced, it would be compiled anew for every step's number; and the compiler's numpy is not numpy: it reads ``x[::-1]``
    otherwise, without a word.
    """

    @wraps(function)
    def called(*arguments: P.args, **named: P.kwargs) -> R:
        if torch.compiler.is_compiling():  # not a decorator of torch's: that imports the compiler, which takes a second
            return torch.compiler.disable(function)(*arguments, **named)  # type: ignore[no-any-return, no-untyped-call]
        return function(*arguments, **named)

    return called
