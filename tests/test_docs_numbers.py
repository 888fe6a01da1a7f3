"""docs/numbers.md says what ``pplmon.report.numbers`` holds: the names, units and marks, the constants, the log keys."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

import pplmon
from pplmon import extras
from pplmon.report import layout
from pplmon.report.numbers import CATALOGUE
from pplmon.tally.count.sums import OVERCONFIDENT, ROUNDING
from pplmon.trainers.session import EPOCH_NUMBERS

PAGE = (Path(__file__).parent.parent / "docs/numbers.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.split())
EXTRA_ROWS = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| ([^|]+) \| [^|]+ \|$", PAGE, re.MULTILINE)
ROWS = re.findall(r"^\| `(\w+)` \| (●?) ?\| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)


def test_every_number_stands_there_once() -> None:
    """Names and units of the catalogue, and ● where a number is logged by default; in the catalogue's order."""
    page = [(name, mark == "●", unit) for name, mark, unit, _ in ROWS]
    assert page == [(n.name, n.core, n.unit or "–") for n in CATALOGUE.values()]


def test_every_number_of_an_extra_stands_there_once() -> None:
    """With its unit, under the name of the extra or the probe."""
    measures = {**extras.ALL, "FreeRunningProbe": pplmon.FreeRunningProbe}
    declared = [(name, n.name, n.unit or "–") for name, measure in measures.items() for n in measure.declares]
    assert declared == EXTRA_ROWS


def test_formulas_are_those_of_the_catalogue() -> None:
    """The page writes n for tokens; the names that a formula uses are numbers, and those of its meaning."""
    for name, _, _, formula in ROWS:
        used = {word for word in re.findall(r"[a-z]\w+", formula) if word in CATALOGUE and word != "tokens"}
        meant = {
            word for word in re.findall(r"[a-z]\w+", CATALOGUE[name].meaning) if word in CATALOGUE and word != "tokens"
        }
        assert meant <= used, name


def test_the_constants_are_those_of_the_code() -> None:
    """Numbers that the prose gives are computed from the code's."""
    assert layout.CAP_NATS == 2**10 and "2¹⁰ = 1024 nats" in PAGE
    assert layout.FRACTION_BITS == 32 and "2⁻³² nats" in PAGE and f"{2.0**-33 * 1e10:.1f}·10⁻¹⁰" in PAGE
    assert layout.CEILING == 2**62 - 1 and "2⁶² − 1" in PAGE and f"{layout.CEILING / layout.CAP_NATS:.1e}" == "4.5e+15"
    assert 2**layout.MANTISSA_BITS == 64 and "64 buckets an octave" in PAGE
    assert layout.LOWEST_EXPONENT == -20 and layout.BUCKET_VALUES[0] == 2.0**-21 and "reads as 2⁻²¹" in PAGE
    edges = [
        layout.float_from_bits((j + layout.BUCKET_OFFSET) << layout.BUCKET_SHIFT) for j in range(1, layout.BUCKETS)
    ]
    worst = max((middle - low) / low for low, middle in zip(edges, layout.BUCKET_VALUES[1:-1]))
    assert 0.007 < worst < 0.008 and "at most 0.8 %" in PAGE
    assert OVERCONFIDENT == 0.9 and f"ln 10 = {math.log(10):.2f} nats" in PAGE
    assert ROUNDING == 1 + 2.0**-20 and "(1 + 2⁻²⁰)" in PAGE
    assert pplmon.TokenTally().min_sequence_tokens == 16 and "`min_sequence_tokens` (16)" in PAGE
    assert math.exp(709.78) < math.inf and "709.78" in PAGE
    with pytest.raises(OverflowError):
        math.exp(709.79)


def test_none_is_where_the_page_says() -> None:
    """A number without V, bytes, correctness or sequences is None, and the page has a sentence for each."""
    tally = pplmon.TokenTally()
    tally.update(pplmon.TokenStats.from_losses(torch.rand(8), torch.arange(8)))
    none = {name for name, value in tally.report().numbers.items() if value is None}
    assert none == {
        *("bits_per_byte", "relative_cross_entropy", "token_accuracy", "above_uniform_rate", "max_token_excess"),
        *("overconfident_error_rate", "max_sequence_loss", "sequences", "duplicate_sequences", "tokens_seen"),
    }
    for name in none - {"tokens_seen"}:
        told = [part for part in PAGE.split("\n- ") if f"`{name}`" in part and "`None`" in part]
        assert told, name


def test_nan_is_where_the_page_says() -> None:
    """Without a valid token counts are 0 and the rest is NaN; with one token there are no others."""
    tally = pplmon.TokenTally()
    tally.update(torch.zeros(2, 20, 4), torch.full((2, 20), -100))
    for name, value in tally.report().as_dict().items():
        assert value == 0 if CATALOGUE[name].unit == "count" else math.isnan(value), name
    tally.update(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long))
    numbers = tally.report().as_dict()
    assert [name for name, value in numbers.items() if math.isnan(value)] == ["perplexity_without_worst_1pct"]
    assert "NaN where there are no others (n = 1)" in WORDS


def test_the_log_keys() -> None:
    """The epoch's numbers are named, and every key is made of its parts."""
    row = next(line for line in PAGE.splitlines() if "_epoch`" in line)
    assert tuple(re.findall(r"`([a-z_]+)`", row)) == EPOCH_NUMBERS
    keys = set(re.findall(r"^\| (`[^|]+`) \|", PAGE.split("## Log keys")[1], re.MULTILINE))
    assert keys == {
        "`{prefix}{stage}/{name}`",
        "`{prefix}train/{name}_epoch`",
        "`{prefix}val/{name}/dataloader_idx_0`",
        "`pplmon/{key}`",
        "`{key}_min`, `{key}_max`",
    }


def test_keys_of_a_monitor_are_as_written() -> None:
    """``{prefix}{stage}/{name}``, and never a number that is not finite."""
    seen: dict[str, float] = {}

    class Keep(pplmon.sinks.Sink):
        def report(self, report: pplmon.Report, scalars: object) -> None:
            seen.update(scalars)  # type: ignore[call-overload]

    monitor = pplmon.Monitor(every_n_steps=1, numbers="all", prefix="a/", sinks=[Keep()], alerts=[])
    monitor.observe(torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.long))
    monitor.step()
    with monitor.stage("val"):
        monitor.observe(torch.full((1, 1, 4), math.nan), torch.zeros(1, 1, dtype=torch.long))
    monitor.close()
    assert {"a/train/perplexity", "a/train/tokens_seen", "a/val/nonfinite_tokens"} <= set(seen)
    assert "a/val/perplexity" not in seen  # NaN: there was no valid token
    assert all(math.isfinite(value) for value in seen.values())
    assert all(key.rsplit("/", 1)[1] in CATALOGUE for key in seen)
