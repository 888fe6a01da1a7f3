"""benchmarks/blame/trials: a frozen model's losses, faults at three doses, and any function of the rows is scored."""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import pplmon

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are no part of the package

from benchmarks.blame import frozen, peers, trials  # noqa: E402
from benchmarks.blame.faults import Model  # noqa: E402

PAGE = (ROOT / "docs/alerts-evidence.md").read_text(encoding="utf-8")
CALM = [1.9, 2.0, 2.1] * 20  # median 2.0, MAD 0.1


def alarms(rule: peers.Rule, series: list[float]) -> list[int]:
    """Where a rule fires on a series of losses."""
    return [step for step, x in enumerate(series) if rule(pplmon.Report(step, numbers={"cross_entropy": x}))]


def test_a_cumulative_sum_of_robust_deviations() -> None:
    """Less 1 a step, beyond 6, either way, after 30 values, and it begins anew: z is 1 / 0.14826 for 0.1 above 2.0."""
    z = 0.1 / 0.14826
    assert alarms(peers.Cusum(), [*CALM, 2.0 + 0.1 * 6.9 / z]) == []  # 6.9 - 1 < 6
    assert alarms(peers.Cusum(), [*CALM, 2.0 + 0.1 * 7.1 / z]) == [60]
    assert alarms(peers.Cusum(), [*CALM, 2.0 - 0.1 * 7.1 / z]) == [60]
    assert alarms(peers.Cusum(), [*CALM[:29], 9.0]) == []
    assert alarms(peers.Cusum(), [*CALM, *[2.0 + 0.1 * 3.1 / z] * 5]) == [62]  # 2.1, 4.2, 6.3, then from 0 again


def test_twice_the_median_of_twenty() -> None:
    """Strictly, after three values; what is not finite fires at once and stays out of the median."""
    assert alarms(peers.Rewind(), [2.0, 2.0, 9.0]) == []
    assert alarms(peers.Rewind(), [2.0, 2.0, 2.0, 4.0, 4.1]) == [4]
    assert alarms(peers.Rewind(), [math.nan, 2.0, 2.0, 2.0, math.inf, 4.1]) == [0, 4, 5]


def test_the_numbers_of_a_line_are_pplmons() -> None:
    """They are computed for many steps at once, and equal those of a tally."""
    torch.manual_seed(0)
    model, ids = Model(frozen.VOCAB), torch.randint(256, (8, frozen.LENGTH + 1))
    line = frozen.line(3, *frozen.tokens(model, ids[:, :-1], ids[:, 1:]))
    tally = pplmon.TokenTally()
    with torch.no_grad():
        tally.update(model(ids[:, :-1]), ids[:, 1:])
    report = tally.report(step=3)
    for name in frozen.NUMBERS:
        assert float(line[name]) == pytest.approx(report.numbers[name], rel=1e-2 if name == "worst_1pct_loss" else 1e-3)
    worst = report.worst_sequences[0]
    assert float(line["loss@{}.{}.{}".format(*frozen.PLACES[worst.sequence])]) == pytest.approx(worst.loss, rel=1e-3)


@pytest.mark.parametrize("kind", frozen.SEQUENCE_KINDS)
def test_a_dose_is_the_share_of_a_sequence_that_is_wrong(kind: str) -> None:
    """What lies before it is untouched, at every dose."""
    ids = torch.tensor(list(b"A tail of words that are read, and of vowels, to be spoilt by degrees. " * 2)[:129])
    for dose in frozen.DOSES[kind]:
        inputs, targets = frozen.spoilt(kind, ids, dose, 7)
        changed = ((inputs != ids[:-1]) | (targets != ids[1:])).nonzero().flatten()
        kept = round((1 - dose) * frozen.LENGTH)
        assert inputs.shape == targets.shape == (frozen.LENGTH,) and len(changed) and int(changed[0]) >= kept - 1


@pytest.fixture(scope="module")
def bed() -> trials.Bed:
    return trials.read_bed()


def test_the_bed_is_what_its_readme_says(bed: trials.Bed) -> None:
    """At least 60 held-out trials of each whole-sequence kind and dose, in blocks of steps that no tuning trial touches."""
    held_out = Counter((fault.kind, fault.dose) for fault in bed.faults if fault.split == "held-out")
    assert set(held_out) == {(kind, dose) for kind, doses in frozen.DOSES.items() for dose in doses}
    assert all(count >= (60 if kind in frozen.SEQUENCE_KINDS else 30) for (kind, _), count in held_out.items())
    for fault in bed.faults:
        first, last = fault.step - frozen.HISTORY, fault.step + fault.steps
        own = frozen.blocks(len(bed.clean[fault.domain]), fault.split)
        assert any(begin <= first and last < end for begin, end in own)
        rows = bed.trial(fault)
        assert [row.step for row in rows] == list(range(first, last + 1))
    assert sum(path.stat().st_size for path in trials.BED.glob("*")) < 6e6


def test_a_function_of_ones_own_is_scored(bed: trials.Bed) -> None:
    """One that names the worst sequence wherever it is above 5 nats, and pages above 7."""

    def make() -> trials.Judge:
        def judge(row: trials.Row) -> trials.Verdict | None:
            place = max(row.sequences, key=row.sequences.__getitem__)
            if row.sequences[place] < 5:
                return None
            return trials.Verdict("page" if row.sequences[place] > 7 else "notice", place)

        return judge

    some = trials.Bed(bed.clean, bed.faulty, [fault for fault in bed.faults if fault.kind in ("garbage", "halves")])
    found = trials.score(make, some, "held-out")
    assert found.share("garbage", 1.0) == found.share("garbage", 1.0, 2) > 0.9
    assert found.share("halves", 1.0) < 0.1
    assert found.steps == sum(b - a for rows in bed.clean.values() for a, b in frozen.blocks(len(rows), "held-out"))


@pytest.mark.slow
def test_scoring_gives_the_numbers_of_the_page(bed: trials.Bed) -> None:
    """The tables stand in docs/alerts-evidence.md as they are printed."""
    scores = {name: trials.score(make, bed, "held-out") for name, make in trials.judges().items()}
    assert trials.table(scores) in PAGE
    assert trials.naming(scores[trials.OURS]) in PAGE
