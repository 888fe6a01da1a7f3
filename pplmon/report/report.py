"""``Report``: one window's numbers and its worst tokens, as plain Python values that every rule and sink reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pplmon.report.declared import find
from pplmon.report.formulas import Window
from pplmon.report.histogram import Histogram
from pplmon.report.numbers import CATALOGUE, FORMULAS, BuiltInNumbers, Value, numbers_as_attributes
from pplmon.report.texts import Texts
from pplmon.report.worst import WorstSequence, WorstToken


class Numbers(Mapping[str, Value]):
    """The numbers of a report by name. A known name that was not given reads ``None``, and ``in`` is False for it.

    Attributes:
        given: the names of the numbers that were given, not computed.
    """

    def __init__(self, given: Mapping[str, Value], window: Window | None = None) -> None:
        """Take numbers. Of a window each formula is computed when its number is first asked for, unless that was given."""
        self.given = tuple(given)
        self._known = dict(given)
        self._window = window

    def __getitem__(self, name: str) -> Value:
        if name in self._known:
            return self._known[name]
        if self._window is not None and name in FORMULAS:
            value = self._known[name] = FORMULAS[name](self._window)
            return value
        if find(name) is None:
            raise KeyError(name)
        return None

    def get(self, name: str, default: Any = None) -> Any:
        """Return a number as ``[]`` does, and ``default`` for an unknown name."""
        if name in self._known:  # most are read many times in a step
            return self._known[name]
        try:
            return self[name]
        except KeyError:
            return default

    def __contains__(self, name: object) -> bool:
        return name in self._known or (self._window is not None and name in FORMULAS)

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __reduce__(self) -> tuple[Any, ...]:
        return Numbers, (dict(self),)

    def __repr__(self) -> str:
        return repr(dict(self))

    def _names(self) -> dict[str, None]:
        return dict.fromkeys((*(() if self._window is None else FORMULAS), *self.given))


@dataclass(frozen=True)
class Report(BuiltInNumbers):
    """The numbers of one window (train) or pass (val, test), and its worst tokens.

    Every number is an attribute; for a type checker those of extras are ``report.numbers["mean_entropy"]``. A number
    that could not be computed is ``None``; in a window without valid tokens ratios, maxima and quantiles are NaN.

    Attributes:
        step: the optimizer step, 0-based; a window's last.
        stage: "train", "val" or "test"; of one of several loaders "val/dataloader_idx_0".
        numbers: every number by its name.
        worst: the tokens with the largest losses over all ranks, the worst first.
        worst_sequences: the sequences with the largest mean losses, likewise.
        saturated: a sum reached its ceiling of 2^62 − 1, so the numbers are no longer right.
        histogram: valid tokens by their loss; empty where the report was not made from totals.
        ranks_missing: how many ranks of the group are not in the numbers, because they were lost.
        own: the names of those numbers that the user logged (``Monitor.log``).
    """

    step: int
    stage: str = "train"
    numbers: Mapping[str, Value] = field(default_factory=dict)
    worst: tuple[WorstToken, ...] = ()
    worst_sequences: tuple[WorstSequence, ...] = ()
    saturated: bool = False
    histogram: Histogram = field(default=Histogram(), repr=False)
    ranks_missing: int = 0
    own: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.numbers, Numbers):
            object.__setattr__(self, "numbers", Numbers(self.numbers))

    if not TYPE_CHECKING:  # to a type checker a name that is no number is an error

        def __getattr__(self, name: str) -> Value:
            """Return an extra's number."""
            numbers = self.__dict__.get("numbers")  # absent while a copy or a pickle is being rebuilt
            if numbers is not None and not name.startswith("__"):
                try:
                    return numbers[name]
                except KeyError:
                    pass
            names = dict.fromkeys((*CATALOGUE, *(numbers or ())))
            raise AttributeError(f"a Report has no {name!r}; its numbers are {', '.join(names)}")

    @property
    def given(self) -> tuple[str, ...]:
        """Return the names of the numbers that no formula of pplmon's own gave: among them all of extras and of the user's."""
        return self.numbers.given if isinstance(self.numbers, Numbers) else tuple(self.numbers)

    def as_dict(self) -> dict[str, float | int]:
        """Return every number that is not ``None``, by name."""
        return {name: value for name, value in self.numbers.items() if value is not None}

    def key(self, name: str, head: str, tail: str = "") -> str:
        """Return the log key of a number, ``{head}{name}{tail}``; the user's own have no stage in theirs."""
        return f"{head.removesuffix(f'{self.stage}/')}{name}" if name in self.own else f"{head}{name}{tail}"

    def finite(self) -> dict[str, float | int]:
        """Return the finite numbers, for loggers: one NaN or ±inf would spoil a logger's summaries for good."""
        return {name: value for name, value in self.as_dict().items() if math.isfinite(value)}

    def decoded(self, texts: Texts) -> Report:
        """Return this report with the text of its worst tokens."""
        return replace(self, worst=tuple(token.decoded(texts) for token in self.worst))


if Report.__doc__:  # python -OO leaves none
    Report.__doc__ += numbers_as_attributes()
