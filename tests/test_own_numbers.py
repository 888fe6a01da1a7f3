"""Numbers of one's own: logged by name, merged exactly over micro-batches and ranks, and then like any number of pplmon's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pplmon
from pplmon import replay
from pplmon.report import own
from pplmon.sinks import read_journal
from pplmon.tally.own_numbers import digits_of
from tests import own_number_tasks as tasks
from tests.models import loader, make_module
from tests.own_number_tasks import Keeps, some
from tests.ranks import Ranks
from tests.test_monitor import Memory

FINITE = st.floats(allow_nan=False)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Two ranks for all tests of this module."""
    with Ranks(2, tmp_path_factory.mktemp("ranks")) as both:
        yield both


@given(FINITE, FINITE)
def test_a_key_has_the_order_of_its_value_and_gives_it_back(one: float, two: float) -> None:
    """To the last bit; NaN is above all, and a slot without a value below."""
    keys = own.ordered(one), own.ordered(two)
    assert own.from_ordered(keys[0]) == one
    assert (one < two) <= (keys[0] < keys[1])
    assert own.EMPTY < keys[0] < own.ordered(math.nan) and math.isnan(own.from_ordered(own.NAN))


@given(st.lists(st.floats(0.0, 2.0**250, allow_subnormal=False), min_size=1, max_size=8))
def test_squares_add_up_exactly_in_any_order(squares: list[float]) -> None:
    """The digits of several ranks give the root of the exact sum, as far as 2**-160 reaches."""
    cells = torch.stack([digits_of(torch.tensor(square, dtype=torch.float64)) for square in squares]).sum(0).tolist()
    unit = Fraction(1, 2**160)
    exact = sum((Fraction(square) // unit * unit for square in squares), Fraction(0))
    assert own.norm(cells) == pytest.approx(math.sqrt(exact), rel=1e-15)
    assert cells[own.PRESENT] == len(squares)


def test_a_square_that_is_not_finite_makes_the_norm_so() -> None:
    """NaN above inf above all finite ones; nothing at all is no number."""

    def norm(*squares: float) -> float | None:
        cells = torch.stack([digits_of(torch.tensor(square, dtype=torch.float64)) for square in squares]).sum(0)
        return own.norm(cells.tolist())

    assert norm(4.0, math.inf) == math.inf
    assert math.isnan(norm(math.inf, 4.0, math.nan) or 0.0)
    assert norm(9.0, 16.0) == 5.0
    assert own.norm([0] * own.CELLS) is None


def test_the_largest_value_counts_and_is_logged_journalled_and_judged(tmp_path: Path) -> None:
    """In a step, in a window, and in each place that a number of pplmon's has."""
    sink = Memory()
    sinks = [sink, pplmon.sinks.Journal(tmp_path)]
    rules = [pplmon.Above("optim/lr", 0.25)]
    monitor = pplmon.Monitor(every_n_steps=3, sinks=sinks, alerts=rules, prefix="a/")
    for step in range(6):
        for part in (0.1, 0.05):
            monitor.observe(some())
            monitor.log("optim/lr", step * part)
            monitor.log("optim/steps", torch.tensor(step))
        monitor.step()
    monitor.close()
    judged = [report.numbers["optim/lr"] for kind, report in sink.seen if kind == "judged"]
    assert judged == [step * 0.1 for step in range(6)]
    assert [scalars["a/optim/lr"] for _, scalars in sink.scalars] == [0.2, 0.5]
    assert [scalars["a/optim/steps"] for _, scalars in sink.scalars] == [2.0, 5.0]
    assert sink.steps("alert") == [3]
    rows = read_journal(tmp_path)
    assert [row["numbers"]["optim/lr"] for row in rows if row["kind"] == "judged"] == judged
    assert [row["numbers"]["optim/lr"] for row in rows if row["kind"] == "report"] == [0.2, 0.5]
    series = replay.read(tmp_path)
    result = replay.run(series, replay.Rules(["live"], series))
    assert result.differs == (0, 0) and len(result.fired) == 1
    drawn = pplmon.page(tmp_path)
    assert {"optim/lr", "optim/steps"} <= set(drawn.runs[0].own_numbers)


def test_a_log_of_another_tool_has_the_gradient_norm_under_its_name(tmp_path: Path) -> None:
    """Without a mapping; other names of one's own are mapped."""
    log = tmp_path / "metrics.csv"
    log.write_text("step,train/cross_entropy,optim/grad_norm,lr\n0,2,0.5,1\n1,2,90,1\n", encoding="utf-8")
    series = replay.read(log, {"lr": ("train", "optim/lr")})
    assert series.numbers() == {("train", name) for name in ("cross_entropy", "optim/grad_norm", "optim/lr")}
    result = replay.run(series, replay.Rules(["Above('optim/grad_norm', 10)"], series))
    assert [fired.alert.step for fired in result.fired] == [1]


def test_a_number_that_is_not_finite_is_critical() -> None:
    """A NaN is above every other value of the step, and a rule says it."""
    alerts: list[pplmon.Alert] = []
    monitor = pplmon.Monitor(every_n_steps=None, alerts=[pplmon.Spike("optim/x")], on_alert=alerts.append)
    for step in range(3):
        monitor.observe(some())
        for value in (1.0, math.nan if step == 1 else 2.0, math.inf if step == 1 else 3.0):
            monitor.log("optim/x", torch.tensor(value))
        monitor.step()
    monitor.close()
    assert [(alert.step, alert.severity) for alert in alerts] == [(1, "critical")]
    assert math.isnan(alerts[0].value or 0.0)


def test_a_checkpoint_keeps_what_was_logged_and_not_read_out() -> None:
    """A value of a step that was interrupted, and the open window's largest one."""
    monitor = pplmon.Monitor(every_n_steps=4, alerts=[])
    monitor.observe(some())
    monitor.log("optim/x", 7.0)
    monitor.step()
    monitor.observe(some())
    monitor.log("optim/x", 3.0)
    monitor.log("optim/y", 1.0)
    state = monitor.state_dict()
    sink = Keeps()
    after = pplmon.Monitor(every_n_steps=4, alerts=[], sinks=[sink])
    after.load_state_dict(state)
    after.observe(some())
    after.log("optim/x", 2.0)
    after.step()
    last = after.close()
    assert last is not None and last.numbers["optim/x"] == 7.0
    assert sink.reports[0].numbers["optim/x"] == 3.0


def test_a_name_or_a_value_that_cannot_be_is_an_error() -> None:
    """It says what was expected and what came."""
    monitor = pplmon.Monitor(alerts=[])
    for name, text in {
        "lr": 'named like "optim/lr"',
        "train/lr": "choose another beginning",
        "optim/ü": "letters, digits",
        "a/" + "b" * 80: "at most 64 characters",
    }.items():
        with pytest.raises(ValueError, match=text):
            monitor.log(name, 1.0)
    with pytest.raises(ValueError, match=r"optim/x must be one real number, got a tensor of shape \(2,\)"):
        monitor.log("optim/x", torch.ones(2))
    with pytest.raises(TypeError, match="optim/x must be a number or a tensor of one, got str"):
        monitor.log("optim/x", "1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Monitor\(grad_norm=True\)"):
        monitor.log_grad_norm([])


def test_a_number_logged_in_a_pass_is_left_out_with_one_warning() -> None:
    """Numbers of one's own are of training."""
    monitor = pplmon.Monitor(alerts=[])
    with monitor.stage("val") as val:
        monitor.observe(some())
        with pytest.warns(UserWarning, match="'optim/x' was logged in a pass of val and is left out"):
            monitor.log("optim/x", 1.0)
        monitor.log("optim/x", 1.0)
    assert val.report is not None and "optim/x" not in val.report.numbers


def test_the_seventeenth_name_is_left_out_with_one_warning() -> None:
    """There are 16 slots."""
    sink = Keeps()
    monitor = pplmon.Monitor(every_n_steps=None, alerts=[], sinks=[sink])

    def train() -> None:
        for _ in range(3):
            monitor.observe(some())
            for index in range(17):
                monitor.log(f"n/{index}", float(index))
            monitor.step()
        monitor.close()

    with pytest.warns(RuntimeWarning, match=r"room for 16 numbers of one's own; left out: n/16$") as caught:
        train()
    assert len(caught) == 1
    assert [len(report.own) for report in sink.reports] == [16] * 3


def test_a_run_that_logs_nothing_has_no_such_number() -> None:
    """No name, and the same numbers as ever."""
    sink = Keeps()
    monitor = pplmon.Monitor(every_n_steps=None, alerts=[], sinks=[sink])
    monitor.observe(some())
    monitor.step()
    monitor.close()
    assert sink.reports[0].own == () and not any("/" in name for name in sink.reports[0].numbers)


def test_the_norm_before_clipping_is_logged_under_lightning(tmp_path: Path) -> None:
    """``grad_norm=True`` and ``pplmon.log`` in the module, with accumulation; and the default set has a rule on it."""
    pl = pytest.importorskip("pytorch_lightning")
    module = make_module(pl.LightningModule)
    true: list[float] = []
    step = module.training_step

    def training_step(self: Any, batch: Any, index: int) -> Any:
        pplmon.log(self.head, "optim/batch", index)
        return step(batch, index)

    def on_before_optimizer_step(self: Any, optimizer: Any) -> None:
        true.append(float(nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])))

    kind = type(module)
    kind.training_step, kind.on_before_optimizer_step = training_step, on_before_optimizer_step
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        accumulate_grad_batches=2,
        gradient_clip_val=1e-3,
        callbacks=[pplmon.PerplexityMonitor(grad_norm=True, every_n_steps=4)],
    )
    trainer.fit(module, loader(32))
    rows = read_journal(tmp_path / "pplmon.jsonl")
    judged = [row["numbers"] for row in rows if row["kind"] == "judged"]
    assert [row["optim/grad_norm"] for row in judged] == pytest.approx(true, rel=1e-6)
    assert [row["optim/batch"] for row in judged] == [1, 3, 5, 7]
    assert "Spike('optim/grad_norm')" in rows[0]["alerts"]
    assert trainer.callback_metrics["optim/grad_norm"].item() == pytest.approx(max(true), rel=1e-6)


@pytest.mark.ranks
def test_ranks_agree_on_slots_and_on_the_largest_value(ranks: Ranks) -> None:
    """The first read-out has its values already, a later name its own, and then no collective but the read-outs' is left."""
    (numbers, warned, calls), (_, other_warned, _) = ranks.run(tasks.log_unlike)
    exact = [torch.tensor(0.1 + step + 0.25).item() for step in range(5)]
    assert [row["optim/a"] for row in numbers] == exact
    assert [row["optim/b"] for row in numbers] == [-float(step) for step in range(5)]
    assert [row.get("optim/late") for row in numbers][:3] == [None, None, 0.1]
    assert math.isnan(numbers[3]["optim/late"]) and numbers[4]["optim/late"] == 0.1
    lacking = [text for text in warned if "only some" in text]
    assert len(lacking) == 1 and "optim/late (logged on rank 1)" in lacking[0] and not other_warned
    # At the second step the names of the first are agreed on, at the fourth the late one; each is said and merged once.
    assert calls[2] == ["all_reduce", "all_reduce"] and calls[4][:2] == ["all_reduce", "all_reduce"]
    assert calls[1].count("all_gather") == calls[3].count("all_gather") == 1


@pytest.mark.ranks
def test_parts_of_gradients_add_up_to_their_norm(ranks: Ranks) -> None:
    """Replicated ones once, DTensors and FSDP2 from all that hold a part, and tensor parallelism outside the group."""
    for found in ranks.run(tasks.norms):
        assert set(found) >= {
            "every rank has all",
            "cut and whole DTensors",
            "cut over ranks outside the group",
            "FSDP2",
        }
        for how, (norm, true) in found.items():
            assert norm == pytest.approx(true, rel=1e-6), how
    # A rank that gives no part waits for no copy from the host.
    assert ranks.run(tasks.device_of_squares) == ["meta", "meta"]
    wanted = [3 * 2**0.5, 5 * 2**0.5]
    first, second = ranks.run(tasks.train_with_norm)
    assert first == pytest.approx(wanted) and second == []
