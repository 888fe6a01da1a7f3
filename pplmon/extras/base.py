"""``Extra``, the base of optional measurements, and the registration of the numbers that they declare."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from pplmon.measure.tokens import TokenStats
from pplmon.report.calls import arguments_of, call_text, example_call
from pplmon.report.declared import check_number, declare
from pplmon.report.numbers import Number, Value
from pplmon.report.saved import without_addresses
from pplmon.report.totals import Derives

if TYPE_CHECKING:
    from typing_extensions import Self

SHOWN = 60  # characters of a setting in an extra's text; a longer one is replaced by a digest


class Measures(Derives, Protocol):
    """The least that ``TokenTally(extras=[...])`` accepts: an object with these three. ``Extra`` has the rest."""

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        """Return one batch's integers; see ``Extra.update``."""
        ...


class Extra:
    """The base of an optional measurement: integers that are added up, and numbers made from them.

    A subclass sets ``size`` and ``declares``, and has ``update`` and ``numbers``::

        class Hesitation(pplmon.Extra):
            size = 2
            declares = (pplmon.Number("hesitation_rate", "", "tokens whose argmax has p < 0.1 / tokens", high=1.0),)

            def update(self, stats, valid, logits, **batch_data):
                return torch.stack([valid.sum(), (valid & (stats.top_probability < 0.1)).sum()])

            def numbers(self, integers):
                tokens, unsure = integers
                return {"hesitation_rate": unsure / tokens if tokens else math.nan}

    Its numbers are then logged, judged (``Above("hesitation_rate", 0.5)``), journalled, replayed and saved in checkpoints.
    A checkpoint identifies an extra by its class and the arguments that it was made with.

    Attributes:
        size: the count of integers that are summed over batches, ranks and resumed runs. None is ever negative.
        maxima: the count of integers behind them of which the maximum is kept; −1 where there is nothing yet.
        declares: the numbers, each a ``Number``. On the class where the names are the same for every instance; on an instance
            (an attribute or a property) where they depend on its settings, and then with a "/" in each name.
        needs_entropy: True if the tally is to measure ``stats.entropy`` where it is given logits.
        needs_sequences: it looks at a token's neighbours, so a tally with ``context_parallel`` refuses it.
    """

    size: int = 0
    maxima: int = 0
    declares: Sequence[Number] = ()
    needs_entropy: bool = False
    needs_sequences: bool = False
    _made_by: str  # the call that made it

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declares = cls.__dict__.get("declares", ())
        if isinstance(declares, Sequence):  # a property has its numbers on the instance
            declare(declares, example_call(cls), _full_name(cls))

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the call as text, because attributes may change while measuring."""
        extra = super().__new__(cls)
        made_by = call_text(cls, arguments_of(cls, args, kwargs), _brief)
        object.__setattr__(extra, "_made_by", made_by)  # also of a frozen dataclass
        return extra

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        """Return one batch's integers [size + maxima], int64, on the device of the stats, without waiting for it.

        Args:
            stats: one row per token, N in all. With ``stats.shift`` row t belongs to the target of column t+1.
            valid: [N] bool, the tokens to measure.
            logits: as the tally was given them; ``None`` where it was given stats, and where ranks hold parts of them.
            batch_data: what else the tally was given by name, ``document_ids``, ``sample_ids`` and ``position_ids`` included,
                each in the shape of the caller's targets (or [B], one for each row).
        """
        raise NotImplementedError

    def numbers(self, integers: Sequence[int]) -> Mapping[str, Value]:
        """Return the numbers from ``size`` sums and ``maxima`` maxima over all tokens: ``None`` for an unknown one."""
        raise NotImplementedError

    def compare(self, integers: Sequence[int], before: Sequence[int]) -> Mapping[str, Value]:
        """Return numbers that compare a validation or test pass with the one before it of the same stage; none by default."""
        return {}

    def __repr__(self) -> str:
        """Return the call that made it."""
        return self._made_by


def declare_all(extras: Sequence[Measures]) -> tuple[Number, ...]:
    """Make the numbers that these objects declare known everywhere, and return them.

    Raises:
        ValueError: two of them declare one name, or one declares a name that has another meaning already.
    """
    numbers: dict[str, Number] = {}
    for extra in extras:
        own = declared_by(extra)
        for number in own:
            if number.name in numbers:
                raise ValueError(f"two extras of one tally give {number.name!r}, {extra!r} among them; leave one out")
            numbers[number.name] = number
        declare(own, example_call(type(extra)), _full_name(type(extra)))
    return tuple(numbers.values())


def declared_by(extra: Measures) -> tuple[Number, ...]:
    """Return the numbers that an extra declares, checked."""
    return tuple(check_number(number) for number in getattr(extra, "declares", ()))


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _brief(value: Any) -> str:
    """Return a setting as text that is short, and the same in every process."""
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=repr)
    text = without_addresses(repr(value.tolist() if hasattr(value, "tolist") else value))
    return text if len(text) <= SHOWN else f"<{type(value).__name__} {hashlib.sha256(text.encode()).hexdigest()[:8]}>"
