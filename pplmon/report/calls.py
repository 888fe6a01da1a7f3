"""Write the call that makes an object as text: journals name rules by it, and checkpoints name extras by it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any


def parameters_of(kind: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of a constructor, by name."""
    init: Any = kind.__init__  # type: ignore[misc]  # of the class that it is asked of
    return dict(islice(inspect.signature(init).parameters.items(), 1, None))


def arguments_of(kind: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``kind(*args, **kwargs)`` by name, defaults included; none if the call would fail."""
    try:
        bound = inspect.Signature([*parameters_of(kind).values()]).bind(*args, **kwargs)
    except TypeError:
        return {}
    bound.apply_defaults()
    return dict(bound.arguments)


def call_text(kind: type, arguments: Mapping[str, Any], shown: Callable[[Any], str]) -> str:
    """Return the call with these arguments, without those that are defaults: "Spike('cross_entropy', limit=8)"."""
    parameters = parameters_of(kind)
    parts: list[str] = []
    for name, value in arguments.items():
        parameter, usual = parameters[name], parameters[name].default
        if parameter.kind is parameter.VAR_POSITIONAL:
            parts += map(shown, value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            parts += [f"{key}={shown(part)}" for key, part in value.items()]
        elif usual is parameter.empty:
            parts.append(shown(value))
        elif not (is_literal(value) and value == usual):
            parts.append(f"{name}={shown(value)}")
    return f"{kind.__name__}({', '.join(parts)})"


def example_call(kind: type) -> str:
    """Return the call that makes an object, as a user writes it: "pplmon.Entropy()", or "Margins(edges)"."""
    home = "pplmon." if kind.__module__.startswith("pplmon.") else ""
    needed = [
        p.name
        for p in parameters_of(kind).values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return f"{home}{kind.__name__}({', '.join(needed)})"


def is_literal(value: Any) -> bool:
    """Return True for a value that can be written as text: a number, a string, True, False, None, lists of these."""
    plain = (bool, int, float, str, type(None))
    return isinstance(value, plain) or (isinstance(value, (list, tuple)) and all(map(is_literal, value)))


def literal(value: Any) -> str:
    """Return a literal that evaluates to the value, the shorter form where there are two."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return repr(value)
