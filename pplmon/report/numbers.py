"""pplmon's own numbers, each with its unit, range and formula, and as an attribute of every report.

A derived number is one entry of ``BuiltInNumbers``: it is then logged, judged, replayed and known to a type checker.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast, overload

from pplmon.report.formulas import INF, Window, exp, ratio

Value = float | int | None
T = TypeVar("T")


@dataclass(frozen=True)
class Number:
    """The description of one number, for log keys, checks of thresholds, summaries and the docs.

    Attributes:
        name: as it stands in reports and log keys. In a name with "/" a part in braces stands for any text without "/",
            as in "group/{name}/perplexity".
        unit: "nats", "count", …; "" where it has none.
        meaning: its formula or its meaning, in a few words.
        core: logged with ``numbers="core"``. (The numbers of extras always are, whatever stands here.)
        low: the least value that it can take.
        high: the largest value that it can take.
        best: "min" or "max", where that extreme over the run is worth a summary of its own.
        drawn: True for a point of a picture. It stands in reports and journals, where rules find it, and is logged as a curve
            of its own only where it is asked for by its whole name.
    """

    name: str
    unit: str
    meaning: str
    core: bool = False
    low: float = 0.0
    high: float = INF
    best: str | None = None
    drawn: bool = False

    def __post_init__(self) -> None:
        if self.best not in (None, "min", "max"):
            raise ValueError(f'best of {self.name} must be "min", "max" or None, got {self.best!r}')


class BuiltIn(Generic[T]):
    """One of pplmon's own numbers, with its formula. On the class it is a ``Number``, on a report its value."""

    def __init__(
        self,
        unit: str,
        meaning: str,
        formula: Callable[[Window], T] | None,
        *,
        core: bool = False,
        low: float = 0.0,
        high: float = INF,
        best: str | None = None,
    ) -> None:
        """Keep the number and its formula, which takes one window; ``None`` for a number that the monitor sets."""
        self.formula = formula
        self._unit, self._meaning = unit, meaning
        self._more: dict[str, Any] = {"core": core, "low": low, "high": high, "best": best}

    def __set_name__(self, owner: type, name: str) -> None:
        self.number = Number(name, self._unit, self._meaning, **self._more)

    @overload
    def __get__(self, instance: None, owner: type) -> Number: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T | None: ...

    def __get__(self, instance: Any, owner: type) -> Number | T | None:
        if instance is None:
            return self.number
        return cast("T | None", instance.numbers[self.number.name])


class BuiltInNumbers:
    """pplmon's own numbers, in the order in which they are listed everywhere.

    In the formulas ``w`` is one window; nll = −ln p(target), in nats, and all but the counts of trouble are over valid tokens.
    """

    cross_entropy = BuiltIn("nats per token", "Σ nll / tokens", lambda w: w.cross_entropy, core=True, best="min")
    perplexity = BuiltIn(
        "", "exp(cross_entropy); inf where it overflows", lambda w: exp(w.cross_entropy), core=True, low=1.0, best="min"
    )
    bits_per_token = BuiltIn("bits", "cross_entropy / ln 2", lambda w: w.cross_entropy / math.log(2), best="min")
    bits_per_byte = BuiltIn(
        "bits",
        "Σ nll / (ln 2 · Σ bytes); needs token_bytes",
        lambda w: None if w.lacks("bytes") else ratio(w.nll / math.log(2), w.sums["bytes"]),
        best="min",
    )
    relative_cross_entropy = BuiltIn(
        "",
        "cross_entropy / ln V: 1 is a uniform guess",
        lambda w: w.cross_entropy / math.log(w.vocab) if w.vocab and w.vocab > 1 else None,
        best="min",
    )
    token_accuracy = BuiltIn(
        "",
        "tokens whose argmax is the target / tokens",
        lambda w: w.rate("correct", "correct"),
        core=True,
        high=1.0,
        best="max",
    )
    mean_target_probability = BuiltIn(
        "", "mean of p(target)", lambda w: ratio(w.nats("probability"), w.tokens), high=1.0, best="max"
    )
    inverse_perplexity = BuiltIn(
        "",
        "1 / perplexity: the geometric mean of p(target)",
        lambda w: math.exp(-w.cross_entropy),
        core=True,
        high=1.0,
        best="max",
    )
    max_token_loss = BuiltIn("nats", "max nll over tokens", lambda w: w.max_loss, core=True, best="max")
    max_sequence_loss = BuiltIn(
        "nats per token",
        "max over sequences of ≥ min_sequence_tokens valid tokens of their mean nll",
        Window.max_sequence_loss,
        core=True,
        best="max",
    )
    token_loss_p50 = BuiltIn("nats", "the ⌈0.5·n⌉-th smallest nll", lambda w: w.losses.quantile(0.5))
    token_loss_p90 = BuiltIn("nats", "the ⌈0.9·n⌉-th smallest nll", lambda w: w.losses.quantile(0.9))
    token_loss_p99 = BuiltIn("nats", "the ⌈0.99·n⌉-th smallest nll", lambda w: w.losses.quantile(0.99), core=True)
    token_loss_p999 = BuiltIn("nats", "the ⌈0.999·n⌉-th smallest nll", lambda w: w.losses.quantile(0.999))
    worst_1pct_loss = BuiltIn(
        "nats", "mean nll of the ⌈tokens/100⌉ worst tokens", lambda w: ratio(w.worst_sum, w.worst_count), core=True
    )
    worst_1pct_share = BuiltIn(
        "", "the share of Σ nll that the ⌈tokens/100⌉ worst tokens hold", Window.worst_share, high=1.0
    )
    perplexity_without_worst_1pct = BuiltIn(
        "", "the perplexity of all tokens but the ⌈tokens/100⌉ worst", lambda w: exp(w.mean_of_the_rest()), low=1.0
    )
    above_uniform_rate = BuiltIn(
        "",
        "tokens with nll > ln V / tokens",
        lambda w: None if w.vocab is None and not w.tokens else w.rate("above_uniform", "vocab"),
        high=1.0,
    )
    max_token_excess = BuiltIn("nats", "max_token_loss − ln V − ln tokens", Window.max_token_excess, low=-INF)
    overconfident_error_rate = BuiltIn(
        "",
        "wrong tokens whose argmax has p ≥ 0.9 / tokens",
        lambda w: w.rate("overconfident_errors", "correct", "top_probability"),
        high=1.0,
    )
    nonfinite_tokens = BuiltIn(
        "count", "scored tokens whose nll is NaN or ±inf", lambda w: w.sums["nonfinite_tokens"], core=True
    )
    capped_tokens = BuiltIn(
        "count", "tokens with nll ≥ 2^10 nats, which count as 2^10", lambda w: w.sums["capped_tokens"]
    )
    invalid_targets = BuiltIn(
        "count", "targets outside the vocabulary: not scored", lambda w: w.sums["invalid_targets"]
    )
    duplicate_sequences = BuiltIn(
        "count",
        "sequences that a sampler repeated, where known",
        lambda w: w.sums["duplicate_sequences"] if w.sums["duplicates_known"] else None,
    )
    tokens = BuiltIn("count", "valid tokens in the window", lambda w: w.tokens)
    sequences = BuiltIn(
        "count",
        "sequences with at least one valid token",
        lambda w: None if w.lacks("sequences") else w.sums["sequences"],
    )
    tokens_seen = BuiltIn[int](
        "count", "valid tokens that the run has trained on so far, in every stage: an x axis", None, core=True
    )


_ALL: dict[str, BuiltIn[Any]] = {n: b for n, b in vars(BuiltInNumbers).items() if isinstance(b, BuiltIn)}
FORMULAS: dict[str, Callable[[Window], Value]] = {
    name: built_in.formula for name, built_in in _ALL.items() if built_in.formula is not None
}
CATALOGUE: dict[str, Number] = {name: built_in.number for name, built_in in _ALL.items()}
CORE = tuple(name for name, number in CATALOGUE.items() if number.core)


def numbers_as_attributes() -> str:
    """Return the numbers as lines for the "Attributes:" of a docstring."""
    units = {name: f" ({number.unit})" if number.unit else "" for name, number in CATALOGUE.items()}
    return "".join(f"    {name}{units[name]}: {number.meaning}.\n    " for name, number in CATALOGUE.items())
