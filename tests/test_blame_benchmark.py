"""benchmarks/blame: the peers do what their sources say, the shipped data give the numbers of docs/alerts-evidence.md, and more can be made."""

from __future__ import annotations

import gzip
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pplmon

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are no part of the package

from benchmarks.blame import faults, peers, public, score, simulate  # noqa: E402
from pplmon.demo.text import language_reference  # noqa: E402

PAGE = (ROOT / "docs/alerts-evidence.md").read_text(encoding="utf-8")
CALM = [1.9, 2.1] * 100  # mean 2, standard deviation 0.1


def alarms(rule: peers.Rule, series: list[float]) -> list[int]:
    """Where a rule fires on a series of losses."""
    return [step for step, x in enumerate(series) if rule(pplmon.Report(step, numbers={"cross_entropy": x}))]


# The peers, on series whose answers can be worked out by hand.


def test_olmo_core_is_six_deviations_over_a_full_window() -> None:
    """Nothing before 128 values; a spike widens its own window; NaN blinds it until it has left."""
    assert alarms(peers.OlmoCore(), [*CALM[:128], 2.59]) == []
    assert alarms(peers.OlmoCore(), [*CALM[:128], 2.61]) == [128]
    assert alarms(peers.OlmoCore(), [*CALM[:127], 9.0]) == []
    assert alarms(peers.OlmoCore(), [*CALM[:128], 4.0, 2.61]) == [128]
    assert alarms(peers.OlmoCore(), [*CALM[:128], math.nan, *[9.0] * 2]) == []
    assert alarms(peers.OlmoCore(), [*CALM[:128], math.nan, *CALM[:128], 2.61]) == [257]


def test_olmo_2_is_seven_deviations_in_either_direction() -> None:
    assert alarms(peers.Olmo2(), [*CALM[:128], 2.69]) == []
    assert alarms(peers.Olmo2(), [*CALM[:128], 2.71]) == [128]
    assert alarms(peers.Olmo2(), [*CALM[:128], 1.29]) == [128]


def test_kill_loss_spike_wants_five_outliers_in_a_row() -> None:
    assert alarms(peers.KillLossSpike(), [2.0] * 100 + [5.0] * 4 + [2.0] + [5.0] * 4) == []
    assert alarms(peers.KillLossSpike(), [2.0] * 100 + [5.0] * 5) == [104]
    assert alarms(peers.KillLossSpike(), [11.0] * 201) == [200]  # half the window above 10 nats
    assert alarms(peers.KillLossSpike(), [2.0] * 100 + [math.nan] + [50.0] * 10) == []  # the mean is NaN


def test_spike_detection_is_three_times_the_mean_of_ten() -> None:
    assert alarms(peers.SpikeDetection(), [2.0] * 20 + [5.99]) == []
    assert alarms(peers.SpikeDetection(), [2.0] * 20 + [6.0, 6.0, 2.0]) == [20, 21]  # a spike stays out of its mean
    assert alarms(peers.SpikeDetection(), [2.0, math.nan, 2.0]) == [1]


def test_the_watchdog_counts_to_three() -> None:
    assert alarms(peers.LossWatchdog(), [5.0, 10.1, 10.1, 9.9, 10.1, 10.1, 10.1]) == [6]


@pytest.mark.parametrize(("rule", "limit"), [(peers.ZClip, 2.5), (peers.EmaZScore, 6.0)])
def test_an_exponential_mean_and_its_deviations(rule: type[peers.ZClip], limit: float) -> None:
    """Its first 25 values are the warm-up: 12 pairs and a 1.9."""
    first = CALM[:25]
    mean = sum(first) / 25
    deviation = math.sqrt(sum((x - mean) ** 2 for x in first) / 25)
    assert alarms(rule(), [*first, mean + 0.99 * limit * deviation]) == []
    assert alarms(rule(), [*first, mean + 1.01 * limit * deviation]) == [25]


def test_a_clipped_spike_enters_as_it_was_clipped() -> None:
    """z = 10 at a limit of 2.5 enters as mean + 2.5 sd / 4, an EMA of everything as z = 10."""
    clipped, plain = peers.ZClip(), peers.EmaZScore()
    for rule in (clipped, plain):
        alarms(rule, [*CALM[:25], 3.0])
    start = sum(CALM[:25]) / 25
    assert clipped._mean - start < 0.03 * 0.1 and plain._mean - start == pytest.approx(0.03 * (3.0 - start))


def test_a_window_is_its_mean_and_deviation() -> None:
    """In constant time as by summing up."""
    window, values = peers.Window(5), [1e3 + x * x for x in range(40)]
    for place, value in enumerate(values):
        window.push(value)
        kept = torch.tensor(values[max(0, place - 4) : place + 1], dtype=torch.float64)
        mean, deviation = window.mean_and_deviation()
        assert mean == pytest.approx(float(kept.mean())) and deviation == pytest.approx(
            float(kept.std(correction=0)), abs=1e-6
        )


# The simulator.


def test_events_and_delays() -> None:
    assert simulate.events([10, 50, 210, 211, 600]) == [10, 211, 600]
    spikes = [simulate.Spike("burst", 1000, 1030, 0.1), simulate.Spike("plateau", 3000, 3100, 0.1)]
    result = simulate.Score({k: [] for k in simulate.KINDS}, {k: [] for k in simulate.KINDS})
    simulate._add(result, spikes, found=[990, 1004, 3101], false=[50, 700, 800], steps=5000)
    assert result.caught["burst"] == [True] and result.delays["burst"] == [4] and result.caught["plateau"] == [False]
    assert result.false_alarms == 1  # 50 is too early to count, 800 is the event of 700


def test_notices_tell_one_step_spikes_only() -> None:
    """And are counted apart: what lasts is for a page to tell."""
    spikes = [simulate.Spike("one-step", 1000, 1002, 20.0), simulate.Spike("burst", 3000, 3030, 0.1)]
    result = simulate.Score({k: [] for k in simulate.KINDS}, {k: [] for k in simulate.KINDS})
    simulate._add(result, spikes, [], [], 5000, noticed=[1000, 3000], false_notices=[900, 4000])
    assert result.caught["one-step"] == [True] and result.caught["burst"] == [False]
    assert (result.false_alarms, result.notices) == (0, 2)
    rows = simulate.reports(np.array([2.0] * 200 + [3.0] + [2.0] * 99 + [3.0] * 4))
    assert simulate.alarms(pplmon.Spike("cross_entropy"), rows) == ([301], [200])


# Series of other people's runs.


def write_series(folder: Path, name: str, losses: list[float], every: int = 1) -> None:
    """A file as people have them."""
    lines = [f"{place * every},{loss}" for place, loss in enumerate(losses)]
    with gzip.open(folder / f"{name}.csv.gz", "wt") as page:
        page.write("\n".join(["step,loss", *lines, lines[-1]]))  # a resumed run repeats a step


def test_public_series_are_read_and_counted(tmp_path: Path) -> None:
    """Kinds and splits from the index, rates per value and per step, and what is seen of spikes that are added."""
    chance = np.random.default_rng(0)
    noise = (3 + 0.1 * chance.standard_normal(2400)).tolist()
    hard = [loss + 3 * (place == 1000) for place, loss in enumerate(noise)]
    worse = [loss + 1 * (place >= 300) for place, loss in enumerate(noise[:600])]
    for name, losses, every in (("a", hard, 1), ("b", worse, 10)):
        write_series(tmp_path, name, losses, every)
    (tmp_path / "index.tsv").write_text("key\trepository\tfile\na\tx/modded-nanogpt\tlog\nb\tx/y\tlog\n")
    runs = public.read_runs(tmp_path)
    assert [(run.key, run.kind, run.tuned, len(run.losses), run.span) for run in runs] == [
        ("a", "one rank", False, 2400, 2400),
        ("b", "small batches", False, 600, 5991),
    ]
    assert public.read_runs(tmp_path, "tune") == []
    lines = public.raised({"Spike": simulate.ours()}, runs).splitlines()
    assert lines[2] == "| one rank | 1 | 2,400 | 2,400 | Spike | 0 | 0.0 | 0.0 | 1 | 41.7 |"
    assert re.match(r"\| small batches \| 1 \| 600 \| 5,991 \| Spike \| 2 \| 333.3 \| 33.4 \|", lines[3])
    (seen,) = public.seen({"Spike": simulate.ours()}, runs).splitlines()[2:]  # only one is long enough
    assert re.match(r"\| one rank \| Spike \| 1.00 of 4 / \d+ \| 1.00 of 4 / 1 \| 1.00 of 4 / \d+ \|", seen)


def test_a_seed_is_a_series_and_splits_are_apart() -> None:
    """The same seed gives the same table, and tuning never sees a held-out seed."""
    rules = {"Spike": simulate.ours(), "OLMo-core": peers.OlmoCore}
    tables = [simulate.table(simulate.score(rules, split, 1, 6000)) for split in ("tune", "tune", "held-out")]
    assert tables[0] == tables[1] != tables[2]
    assert simulate.FIRST_SEED["held-out"] > 5000


# The shipped data.


@pytest.fixture(scope="module")
def held_out() -> list[score.Run]:
    return score.read_runs("held-out")


@pytest.mark.slow
def test_the_data_are_what_their_readme_says(held_out: list[score.Run]) -> None:
    """At least 100 faults of every kind in all, several seeds, both models, 1 and 2 ranks; small."""
    files = list(score.DATA.glob("*.csv.gz"))
    assert {path.name for path in files} == {f"{setup.name}.csv.gz" for setup in faults.setups()}
    assert sum(path.stat().st_size for path in files) < 5e6
    runs = score.read_runs("all")
    counts = score.kinds_of(runs)
    assert sum(counts.values()) >= 100
    assert set(counts) == {*faults.SEQUENCE_FAULTS, *faults.TOKEN_FAULTS, *faults.MODEL_FAULTS}
    readme = (score.DATA / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{kind}` |" in readme for kind in counts)
    for field in ("model", "seed", "ranks", "accumulate", "packed", "faulty", "split"):
        assert len({run.about[field] for run in runs}) > 1, field
    assert not {run.about["seed"] for run in held_out} & set(faults.TUNE_SEEDS)
    tuned, held = ({pair for run in runs for pair in pairs(run)} for runs in (score.read_runs("tune"), held_out))
    assert not tuned & held  # no stretch of one was drawn for the other, too


def pairs(run: score.Run) -> list[tuple[float, float]]:
    """The mean and the worst sequence of each step: six digits each, which agree only where the batches do."""
    return [(report.cross_entropy, report.max_sequence_loss) for report in run.reports]


@pytest.mark.slow
def test_scoring_gives_the_numbers_of_the_page(held_out: list[score.Run]) -> None:
    """Both tables and the promise stand in docs/alerts-evidence.md as they are printed."""
    scores = {name: score.score(make, held_out) for name, make in score.all_rules().items()}
    assert score.table(held_out, scores) in PAGE
    assert score.naming(held_out, scores[score.OURS]) in PAGE
    assert score.promise(scores[score.OURS]) in PAGE


def test_the_simulators_table_has_every_rule() -> None:
    """It takes minutes to make, so only its rows are held here."""
    names = [line.split("|")[1].strip() for line in PAGE.splitlines() if re.match(r"\| .* \| \d\.\d\d", line)]
    assert {"**pplmon Spike**", *peers.PEERS} <= set(names)
    header = next(line for line in PAGE.splitlines() if line.startswith("| fault | planted"))
    assert [name.strip() for name in header.strip("|").split("|")][2:] == [score.OURS, *peers.PEERS]


# Making more.


def tiny_text(model: str) -> tuple[torch.Tensor, int]:
    """The language reference alone: quick to read."""
    return language_reference()[0].long(), 256 + faults.NEVER


class Small(faults.Setup):
    """A setup with one row in a micro-batch, so that 300 steps take seconds."""

    rows = 1  # type: ignore[assignment]


@pytest.mark.slow
def test_a_run_can_be_made_written_read_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 steps, untrained: what was planted stands in its place, and the file gives the reports that rules saw."""
    monkeypatch.setattr(faults, "text", tiny_text)
    setup = Small("tiny", "byte", 0, "tune", accumulate=2, packed=True, steps=300, trained=0)
    lines, planted = faults.run(setup)
    run = score.read_run(faults.write(setup, lines, planted, tmp_path))
    assert len(run.reports) == 300 and run.about["rows"] == 1
    (fault,) = run.faults
    assert (fault.kind, fault.step) == (planted[0].kind, faults.FIRST)
    assert fault.address == (0, planted[0].micro_batch, planted[0].row, planted[0].document)
    assert fault.address[3] is not None and fault.address[3] // 10 == fault.address[2]  # the document is of that row
    first = run.reports[0]
    assert abs(first.cross_entropy - math.log(260)) < 0.3 and first.tokens == 512 and first.nonfinite_tokens == 0
    assert len(first.worst_sequences) == len(first.worst) == faults.KEPT
    assert score.score(pplmon.default_alerts, [run]).outcomes[fault.kind]


def test_each_data_fault_spoils_only_its_sequence() -> None:
    for kind in (*faults.SEQUENCE_FAULTS, "extreme_tokens"):
        ids = torch.randint(0, 200, (4, 41), generator=torch.Generator().manual_seed(1))
        documents = torch.arange(40).expand(4, 40) // 20 + 10 * torch.arange(4)[:, None]
        batch = faults.Batch(ids[:, :-1].clone(), ids[:, 1:].clone(), documents)
        fault = faults.spoil(batch, faults.Fault(kind, 7, 0, 0, row=2), 260)
        changed = (batch.targets != ids[:, 1:]) | (batch.inputs != ids[:, :-1])
        assert changed.any() and not changed[documents != fault.document].any(), kind
