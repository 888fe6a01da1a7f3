"""The numbers: their names, units and ranges, and every formula, once.

A formula reads integer totals (see ``cells``) and returns a Python float, so nothing overflows and nothing is rounded
before the last operation. ``None`` means that a number cannot be had; NaN that there was no valid token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from pplmon import cells
from pplmon.histogram import Histogram, Losses

NAN = math.nan
INF = math.inf


@dataclass(frozen=True)
class Number:
    """What one number is: for the docs, for checks of thresholds, and for what is logged by default."""

    name: str
    unit: str
    meaning: str
    core: bool = False  # logged by default
    low: float = 0.0  # the least value it can take
    high: float = INF
    best: str | None = None  # "min" or "max": which extreme over the run is worth a summary of its own


CATALOGUE: dict[str, Number] = {
    n.name: n
    for n in (
        Number("cross_entropy", "nats per token", "Σ nll / tokens", True, best="min"),
        Number("perplexity", "", "exp(cross_entropy); inf where it overflows", True, low=1.0, best="min"),
        Number("bits_per_token", "bits", "cross_entropy / ln 2", best="min"),
        Number("bits_per_byte", "bits", "Σ nll / (ln 2 · Σ bytes); needs token_bytes", best="min"),
        Number("relative_cross_entropy", "", "cross_entropy / ln V: 1 is a uniform guess", best="min"),
        Number("token_accuracy", "", "tokens whose argmax is the target / tokens", True, high=1.0, best="max"),
        Number("mean_target_probability", "", "mean of p(target)", high=1.0, best="max"),
        Number("inverse_perplexity", "", "1 / perplexity: the geometric mean of p(target)", True, high=1.0, best="max"),
        Number("max_token_loss", "nats", "max nll over tokens", True, best="max"),
        Number(
            "max_sequence_loss",
            "nats per token",
            "max over sequences of ≥ min_sequence_tokens valid tokens of their mean nll",
            True,
            best="max",
        ),
        Number("token_loss_p50", "nats", "the ⌈0.5·n⌉-th smallest nll"),
        Number("token_loss_p90", "nats", "the ⌈0.9·n⌉-th smallest nll"),
        Number("token_loss_p99", "nats", "the ⌈0.99·n⌉-th smallest nll", True),
        Number("token_loss_p999", "nats", "the ⌈0.999·n⌉-th smallest nll"),
        Number("worst_1pct_loss", "nats", "mean nll of the ⌈tokens/100⌉ worst tokens", True),
        Number("worst_1pct_share", "", "the share of Σ nll that these hold", high=1.0),
        Number("perplexity_without_worst_1pct", "", "the perplexity of the others", low=1.0),
        Number("above_uniform_rate", "", "tokens with nll > ln V / tokens", high=1.0),
        Number("max_token_excess", "nats", "max_token_loss − ln V − ln tokens", low=-INF),
        Number("overconfident_error_rate", "", "wrong tokens whose argmax has p ≥ 0.9 / tokens", high=1.0),
        Number("nonfinite_tokens", "count", "scored tokens whose nll is NaN or ±inf", True),
        Number("capped_tokens", "count", "tokens with nll ≥ 2^10 nats, which count as 2^10"),
        Number("invalid_targets", "count", "targets outside the vocabulary: not scored"),
        Number("duplicate_sequences", "count", "sequences that a sampler repeated, where known"),
        Number("tokens", "count", "valid tokens in the window"),
        Number("sequences", "count", "sequences with at least one valid token"),
        Number("tokens_seen", "count", "valid tokens in the run (train)", True),
    )
}
CORE = tuple(n.name for n in CATALOGUE.values() if n.core)
OPTIONAL = {"mean_entropy": Number("mean_entropy", "nats per token", "mean of −Σ p ln p; needs the extra Entropy")}


def check_name(name: str) -> None:
    """Raise ``ValueError`` for a name that no measurement has. A name with "/" may come from an extra of one's own."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a number is a str, got {type(name).__name__}")
    if name not in CATALOGUE and name not in OPTIONAL and "/" not in name:
        near = get_close_matches(name, CATALOGUE, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"unknown number {name!r}: {hint}known are {', '.join(CATALOGUE)}")


def select(numbers: str | Sequence[str]) -> tuple[str, ...] | None:
    """Resolve ``numbers="core" | "all" | [names]`` to names; ``None`` stands for all."""
    if numbers == "all":
        return None
    if numbers == "core":
        return CORE
    if isinstance(numbers, str):
        raise ValueError(f'numbers must be "core", "all" or a list of names, got {numbers!r}; write [{numbers!r}]')
    for name in numbers:
        check_name(name)
    return tuple(numbers)


def derive(sums: Mapping[str, int], maxima: Mapping[str, int], histogram: Histogram) -> dict[str, float | int | None]:
    """Return every number of the catalogue but ``tokens_seen``, from totals."""
    n = sums["tokens"]
    nll = _fixed(sums, "nll")
    vocab = _vocab(sums, maxima)
    loss_bits = maxima["token_loss_bits"]
    max_loss = cells.float_from_bits(loss_bits) if loss_bits >= 0 else NAN
    cross_entropy = _ratio(nll, n)
    worst_count = -(-n // 100)
    losses = Losses(histogram, max_loss)
    worst_sum = losses.tail(worst_count)
    sequence_units = maxima["sequence_loss_units"]

    def lacks(what: str) -> bool:
        """True where some token of the window lacked it; in a window without tokens, where some batch did."""
        return sums[f"{what}_unknown"] > 0 or (not n and maxima[f"{what}_missing"] > 0)

    def rate(cell: str, *needed: str) -> float | None:
        return None if any(map(lacks, needed)) else _ratio(sums[cell], n)

    return {
        "cross_entropy": cross_entropy,
        "perplexity": exp(cross_entropy),
        "bits_per_token": cross_entropy / math.log(2),
        "bits_per_byte": None if lacks("bytes") else _ratio(nll / math.log(2), sums["bytes"]),
        "relative_cross_entropy": cross_entropy / math.log(vocab) if vocab and vocab > 1 else None,
        "token_accuracy": rate("correct", "correct"),
        "mean_target_probability": _ratio(_fixed(sums, "probability"), n),
        "inverse_perplexity": math.exp(-cross_entropy),
        "max_token_loss": max_loss,
        "max_sequence_loss": None if lacks("sequences") else _max_sequence(n, sequence_units),
        "token_loss_p50": losses.quantile(0.5),
        "token_loss_p90": losses.quantile(0.9),
        "token_loss_p99": losses.quantile(0.99),
        "token_loss_p999": losses.quantile(0.999),
        "worst_1pct_loss": _ratio(worst_sum, worst_count),
        "worst_1pct_share": _share(worst_sum, nll, n),
        "perplexity_without_worst_1pct": exp(_ratio(_rest(nll, worst_sum, losses, n - worst_count), n - worst_count)),
        "above_uniform_rate": None if vocab is None and not n else rate("above_uniform", "vocab"),
        "max_token_excess": None if vocab is None else (max_loss - math.log(vocab) - math.log(n) if n else NAN),
        "overconfident_error_rate": rate("overconfident_errors", "correct", "top_probability"),
        "nonfinite_tokens": sums["nonfinite_tokens"],
        "capped_tokens": sums["capped_tokens"],
        "invalid_targets": sums["invalid_targets"],
        "duplicate_sequences": sums["duplicate_sequences"] if sums["duplicates_known"] else None,
        "tokens": n,
        "sequences": None if lacks("sequences") else sums["sequences"],
    }


def exp(x: float) -> float:
    """e**x, ``inf`` where it overflows."""
    try:
        return math.exp(x)
    except OverflowError:
        return INF


def share_of_jump(loss: float, tokens: int, mean: float, all_tokens: int, usual: float) -> float | None:
    """The share of a jump of the mean loss over ``usual`` that ``tokens`` tokens of mean ``loss`` explain, 0 to 1.

    All losses in nats per token. ``None`` where the mean did not rise: there is nothing to explain.
    """
    jump = (mean - usual) * all_tokens
    return min(1.0, max(0.0, (loss - usual) * tokens / jump)) if jump > 0 else None


def _fixed(sums: Mapping[str, int], name: str) -> float:
    return cells.nats((sums[f"{name}_whole"] << cells.FRACTION_BITS) + sums[f"{name}_fraction"])


def _ratio(part: float, whole: int) -> float:
    return part / whole if whole else NAN


def _share(part: float, whole: float, n: int) -> float:
    if not n:
        return NAN
    # When every loss is 0 the worst hold what any equal part holds.
    return min(1.0, part / whole) if whole else -(-n // 100) / n


def _rest(nll: float, worst: float, losses: Losses, count: int) -> float:
    """Σ of what the worst leave: of two ways the one whose 1 % is taken of the smaller part."""
    return nll - worst if worst <= nll / 2 else losses.head(count)


def _max_sequence(n: int, units: int) -> float | None:
    if units >= 0:
        return cells.nats(units)
    return None if n else NAN  # tokens, but no sequence long enough


def _vocab(sums: Mapping[str, int], maxima: Mapping[str, int]) -> int | None:
    """V, where it is known for every token and is one and the same."""
    largest, complement = maxima["vocab_size"], maxima["vocab_complement"]
    if sums["vocab_unknown"] or largest < 0 or cells.VOCAB_LIMIT - complement != largest:
        return None
    return largest
