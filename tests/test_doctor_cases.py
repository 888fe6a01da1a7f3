"""A fast selection of ``python -m benchmarks.doctor``: mistakes planted in models of transformers, and right set-ups."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pplmon.doctor import KINDS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are no part of the package

from benchmarks.doctor.examples import Example, Size, examples, in_dtype  # noqa: E402
from benchmarks.doctor.held_out import HELD_OUT, RIGHT_HELD_OUT  # noqa: E402
from benchmarks.doctor.mistakes import MISTAKES, Cross  # noqa: E402
from benchmarks.doctor.right import ALONE, RIGHT  # noqa: E402
from benchmarks.doctor.table import rows_of, summary  # noqa: E402
from benchmarks.doctor.trial import PRECISIONS, findings, outcome  # noqa: E402

PLANTED = {**MISTAKES, **HELD_OUT}
PLAIN = {**RIGHT, **RIGHT_HELD_OUT}
PAGE = (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
# Three neighbours of every mistake: another model, another state, another precision.
WHERE = {
    "Llama, fresh, fp32": ("Llama", False, "fp32"),
    "GPT-2, trained, bf16": ("GPT-2", True, "bf16"),
    "T5, fresh, fp32": ("T5", False, "fp32"),
}


def mostly(quick: str) -> list[Any]:
    """The neighbours, of which ``make test`` tries one."""
    return [pytest.param(where, marks=[pytest.mark.slow] * (where != quick)) for where in WHERE]


@cache
def made(where: str) -> list[Example]:
    """Three batches of a model."""
    model, trained, precision = WHERE[where]
    return [in_dtype(e, PRECISIONS[precision][0]) for e in examples(model, Size(), 5, trained, 3)]


@pytest.mark.parametrize("mistake", PLANTED)
@pytest.mark.parametrize("where", mostly("Llama, fresh, fp32"))
def test_a_planted_mistake_is_named(where: str, mistake: str) -> None:
    """On the first batch, or the second or third, and to the end; never as something else."""
    model, trained, precision = WHERE[where]
    cross = Cross(PRECISIONS[precision][1])
    result = outcome(
        mistake,
        PLANTED[mistake].kinds,
        model,
        trained,
        precision,
        [PLANTED[mistake].plant(e, cross) for e in made(where)],
    )
    assert result.found_at and not result.misnamed_at, [str(f) for f in result.said]


@pytest.mark.parametrize("setup", PLAIN)
@pytest.mark.parametrize("where", mostly("GPT-2, trained, bf16"))
def test_nothing_is_said_of_a_right_set_up(where: str, setup: str) -> None:
    """Neither on one batch nor on more."""
    cross = Cross(PRECISIONS[WHERE[where][2]][1])
    assert findings([PLAIN[setup][1](e, cross) for e in made(where)]) == [[], [], []]


@pytest.mark.parametrize("setup", ALONE)
def test_nothing_is_said_of_another_right_set_up(setup: str) -> None:
    """Dropout, wrappers, packing, odd heads and odd data."""
    assert findings(ALONE[setup][1]()) == [[], [], []]


def test_there_are_enough() -> None:
    """Eighteen mistakes and twenty-four right set-ups at least; every mistake's name is a kind."""
    assert len(MISTAKES) >= 18 and len(RIGHT) + len(ALONE) >= 24
    assert {kind for mistake in MISTAKES.values() for kind in mistake.kinds} <= set(KINDS)


def test_the_page_has_the_table_and_every_kind() -> None:
    """A row for each planted mistake, in order, and a paragraph for each kind of finding."""
    rows = re.findall(r"^\| ([^|]+) \| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)
    assert rows == [(m.text, ", ".join(f"`{kind}`" for kind in m.kinds)) for m in PLANTED.values()]
    assert re.findall(r"^\| `(\w+)` \| [^|]+ \|$", PAGE, re.MULTILINE) == list(KINDS)
    for text, _ in [*PLAIN.values(), *ALONE.values()]:
        assert text in " ".join(PAGE.split()), text


def test_the_table_counts_what_it_shows() -> None:
    """A mistake that is named at once, one that is named later, one that is not, and one that gets another name."""
    cross = Cross()
    right = [RIGHT["usual"][1](e, cross) for e in made("Llama, fresh, fp32")]
    wrong = [MISTAKES["summed"].plant(e, cross) for e in made("Llama, fresh, fp32")]
    cases = {"summed": wrong, "in_bits": wrong, "leakage": right, "z_loss": right}
    outcomes = [outcome(name, MISTAKES[name].kinds, "Llama", False, "fp32", given) for name, given in cases.items()]
    assert [o.sign for o in outcomes] == ["1", "×", "−", "−"]
    assert next(summary(outcomes)).startswith(
        "fp32: 4 mistakes, 1 named on the first batch, 0 on the second or third, 2 not named, 1 named"
    )
    mixed = outcome("summed", MISTAKES["summed"].kinds, "Llama", False, "fp32", [right[0], *wrong[1:]])
    assert mixed.sign == "×"  # what does not hold in every batch is not named
    everything = [
        outcome(name, m.kinds, "Llama", t, p, wrong[:1])
        for name, m in MISTAKES.items()
        for t in (False, True)
        for p in ("fp32", "bf16")
    ]
    assert len(list(rows_of(everything, ["Llama"], MISTAKES))) == len(MISTAKES) + 2
