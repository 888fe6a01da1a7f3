"""Facts of fixed runs as JSON that keeps every bit, and how two sets of facts differ."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

# These pass through exp or log, whose last bits are those of the processor and of the C library.
INEXACT = {
    "perplexity",
    "bits_per_token",
    "bits_per_byte",
    "relative_cross_entropy",
    "mean_target_probability",
    "inverse_perplexity",
    "perplexity_without_worst_1pct",
    "max_token_excess",
}


def exact(value: Any) -> Any:
    """Return a value as strict JSON that holds every bit: floats have as many digits as they need, NaN and ±inf are texts."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), exact(value.tolist())]
    if isinstance(value, Mapping):
        return {str(name): exact(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [exact(item) for item in value]
    if is_dataclass(value):
        return {field.name: exact(getattr(value, field.name)) for field in fields(value)}
    return value


def portable(facts: Any, inexact: bool = False) -> Any:
    """Return exact facts with six digits of the numbers that may differ on another machine."""
    if isinstance(facts, dict):
        judged = ("value", "threshold") if facts.get("metric") in INEXACT else ()  # an alert's are those of its metric
        return {
            name: portable(fact, name in judged or not INEXACT.isdisjoint(name.split("/")))
            for name, fact in facts.items()
        }
    if isinstance(facts, list):
        return [portable(fact, inexact) for fact in facts]
    return float(f"{facts:.6g}") if inexact and isinstance(facts, float) else facts


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Say what became of each fact of ``before``: where it changed or went, and what is new in ``after``."""
    if isinstance(before, dict) and isinstance(after, dict):
        yield from (f"gone: {where}/{name}" for name in before if name not in after)
        yield from (f"new: {where}/{name}: {after[name]!r}" for name in after if name not in before)
        for name in before:
            if name in after:
                yield from differences(before[name], after[name], f"{where}/{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after)):
            yield from differences(one, other, f"{where}/{index}")
    elif repr(before) != repr(after):  # 0.0 and −0.0, and 1 and 1.0, are not the same
        yield f"changed: {where}: {before!r} is now {after!r}"


def text(facts: Any, levels: int = 4) -> str:
    """Return facts as JSON in which each item of the upper levels has a line of its own."""
    if not levels or not isinstance(facts, (dict, list)) or not facts:
        return json.dumps(facts, ensure_ascii=False)
    lines = (
        [f"{json.dumps(name)}: {text(fact, levels - 1)}" for name, fact in facts.items()]
        if isinstance(facts, dict)
        else [text(fact, levels - 1) for fact in facts]
    )
    opened, closed = "{}" if isinstance(facts, dict) else "[]"
    return f"{opened}\n" + ",\n".join(lines) + f"\n{closed}"
