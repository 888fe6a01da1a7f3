"""``Monitor.observe(..., loss=)``: the shift that nobody stated is that of the loss, and what stops agreeing is told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pplmon
from tests.observe_tasks import LENGTH, PLAIN, ROWS, SHIFTED, VOCAB, Keep, Told, made, mean, told


def run(of_loss: int, steps: int = 5, scales: tuple[float, ...] = (), **how: Any) -> tuple[list[Any], Told]:
    """Train on a loss of this shift and validate; return what is shown, by its stage, and said."""
    keep = Keep()
    monitor = pplmon.Monitor(every_n_steps=1, alerts=[], sinks=[keep], tally=how.pop("tally", None))
    with told() as lines:
        for step in range(steps):
            logits, targets = made(step, scales[step] if step < len(scales) else 3.0)
            monitor.observe(logits, targets, loss=mean(logits, targets, of_loss), **how)
            monitor.step()
        with monitor.stage("val"):
            logits, targets = made(100)
            monitor.observe(logits, targets, **how)
        monitor.close()
    return keep.shown, lines


def true(shift: int, seed: int) -> float:
    """The loss of a step."""
    return mean(*made(seed), shift).item()


@pytest.mark.parametrize("shift", [0, 1])
def test_a_shift_that_nobody_stated_is_that_of_the_loss(shift: int, caplog: pytest.LogCaptureFixture) -> None:
    """Every window from the first step on, and a pass without a loss of its own, which counts as training does."""
    with caplog.at_level(logging.INFO, "pplmon"):
        shown, lines = run(shift)
    assert [(r.stage, r.step) for r in shown] == [
        *(("train", step) for step in range(5)),
        ("val", 4),
    ]
    assert [r.cross_entropy for r in shown] == pytest.approx([true(shift, s) for s in (0, 1, 2, 3, 4, 100)], abs=1e-5)
    if shift:
        (line,) = lines
        assert line.startswith("pplmon: train counts with shift=True: its cross-entropy of ")
        assert "equals the loss of " in line and line.endswith("Write observe(..., shift=True)")
    else:
        assert not lines and "counts with shift=False: its cross-entropy equals the loss" in caplog.text


@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("by", ["observe", "the tally"])
def test_a_shift_that_was_stated_is_never_changed(stated: bool, by: str) -> None:
    """It is told of, with the line to write. A tally of shift=False states nothing: it is the default."""
    if by == "the tally" and not stated:
        return
    how: dict[str, Any] = {"shift": stated} if by == "observe" else {"tally": pplmon.TokenTally(shift=True)}
    shown, lines = run(int(not stated), **how)
    assert {r.tokens for r in shown} == {SHIFTED if stated else PLAIN}
    assert any("train: shift: " in line and f"shift={not stated}" in line for line in lines), lines


def test_a_stated_shift_needs_no_loss() -> None:
    """Call by call, whatever the tally says."""
    monitor = pplmon.Monitor(every_n_steps=None, alerts=[])
    for shift in (False, True, None):
        monitor.observe(*made(0), shift=shift)
    assert monitor.tally.local_totals()["tokens"] == 2 * PLAIN + SHIFTED


def test_where_several_shifts_fit_nothing_is_decided_until_one_does() -> None:
    """A head that starts at zero: the default holds, and a later window, whose loss tells, chooses."""
    shown, lines = run(1, steps=6, scales=(0.0, 0.0))
    assert [r.tokens for r in shown[:2]] == [PLAIN, PLAIN]
    assert shown[5].tokens == shown[6].tokens == SHIFTED and shown[5].cross_entropy == pytest.approx(
        true(1, 5), abs=1e-5
    )
    assert any("train counts with shift=True" in line for line in lines)


def test_nothing_is_shown_before_the_choice() -> None:
    """Two losses of the other shift are not enough; with the third all three steps are read out, each at its own."""
    keep = Keep()
    monitor = pplmon.Monitor(every_n_steps=1, alerts=[], sinks=[keep])
    with told():
        for step in range(5):
            logits, targets = made(step)
            monitor.observe(logits, targets, loss=mean(logits, targets, 1))
            report = monitor.step()
            assert len(keep.shown) == (0 if step < 3 else step)
    assert report is not None and report.step == 3 and report.tokens_seen == 4 * SHIFTED
    assert [w.step for r in keep.shown for w in r.worst[:1]] == [0, 1, 2, 3]


def test_the_end_of_a_run_chooses_by_what_there_is() -> None:
    """One step of the other shift, then close; or an exception; or a checkpoint, from which a run goes on."""
    logits, targets = made(0)
    for end in ("close", "checkpoint", "flush"):
        monitor = pplmon.Monitor(every_n_steps=1, alerts=[])
        with told():
            monitor.observe(logits, targets, loss=mean(logits, targets, 1))
            if end != "checkpoint":
                monitor.step()
            if end == "flush":
                monitor.flush()
            state = monitor.state_dict()
            other = pplmon.Monitor(every_n_steps=1, alerts=[])
            other.load_state_dict(state)
            report = monitor.close()
            other.observe(logits, targets, shift=True)
            other.step()
            again = other.close()
        assert report is not None and report.tokens == SHIFTED, end
        assert report.cross_entropy == pytest.approx(true(1, 0), abs=1e-5)
        assert again is not None and again.tokens_seen == 2 * SHIFTED


def test_an_interrupted_run_loses_no_token(tmp_path: Path) -> None:
    """What was held back stands in the rank's own journal, under the shift that its loss says."""
    monitor = pplmon.Monitor(every_n_steps=4, alerts=[], sinks=[pplmon.sinks.Journal(tmp_path)])
    logits, targets = made(0)
    for _ in range(2):
        monitor.observe(logits, targets, loss=mean(logits, targets, 1))
        monitor.step()
    monitor.abandon()
    rows = [row for path in tmp_path.glob("*.jsonl") for row in pplmon.sinks.read_journal(path)]
    assert sum(row["numbers"]["tokens"] for row in rows if row["kind"] in ("report", "local")) == 2 * SHIFTED


@pytest.mark.parametrize("shift", [0, 1])
def test_a_pass_chooses_for_itself(shift: int) -> None:
    """Its losses are of all its batches; a local one chooses alone; one that is interrupted keeps what it has."""
    for local in (False, True):
        monitor = pplmon.Monitor(every_n_steps=None, alerts=[])
        with told() as lines, monitor.stage("val", local=local) as opened:
            for seed in range(4):
                logits, targets = made(seed)
                monitor.observe(logits, targets, loss=mean(logits, targets, shift).item())
        assert opened.report is not None and opened.report.tokens == 4 * (SHIFTED if shift else PLAIN)
        assert local or bool(lines) == bool(shift)


def test_a_loss_that_stops_agreeing_is_told_and_looked_into() -> None:
    """One window late, with both values; the next batch says why."""
    monitor = pplmon.Monitor(every_n_steps=1, alerts=[])
    with told() as lines:
        for step in range(12):
            logits, targets = made(step)
            loss = mean(logits, targets, 0)
            monitor.observe(logits, targets, loss=loss if step < 3 else loss / 4)
            monitor.step()
        monitor.close()
    assert len(lines) == 2
    assert (
        "over a logged window the measured cross-entropy is" in lines[0] and "observe was given a loss of" in lines[0]
    )
    assert "train: scaled_loss: " in lines[1] and "1/4" in lines[1]


def test_a_pass_whose_loss_does_not_agree_is_told() -> None:
    """At its end, which is waited for."""
    monitor = pplmon.Monitor(every_n_steps=None, alerts=[])
    with told() as lines, monitor.stage("val"):
        for seed in range(2):
            logits, targets = made(seed)
            monitor.observe(logits, targets, shift=False, loss=mean(logits, targets, 0) / 4)
    assert any("val: scaled_loss: " in line for line in lines)
    assert any("over a pass of val" in line for line in lines)


def test_what_a_loss_may_well_hold_is_only_noted(caplog: pytest.LogCaptureFixture) -> None:
    """A further term is no mistake."""
    monitor = pplmon.Monitor(every_n_steps=1, alerts=[])
    with told() as lines, caplog.at_level(logging.INFO, "pplmon"):
        for step in range(3):
            logits, targets = made(step)
            monitor.observe(logits, targets, loss=mean(logits, targets, 0) + 0.03)
            monitor.step()
        monitor.close()
    assert not lines and "further_term" in caplog.text


def test_a_mask_moves_with_the_targets() -> None:
    """The candidates are of the tokens that count."""
    monitor = pplmon.Monitor(every_n_steps=1, alerts=[])
    with told() as lines:
        for step in range(4):
            logits, targets = made(step)
            mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [5], [3]])
            loss = mean(logits, targets.masked_fill(~mask, -100), 1)
            monitor.observe(logits, targets, mask=mask, loss=loss)
            monitor.step()
        report = monitor.close()
    assert report is not None and report.tokens == LENGTH + 5 + 3 - ROWS
    assert report.cross_entropy == pytest.approx(loss.item(), abs=1e-5) and len(lines) == 1


def test_losses_that_are_known_are_guarded_too() -> None:
    """``TokenStats`` are of one shift; a loss of another size is told."""
    monitor = pplmon.Monitor(every_n_steps=1, alerts=[])
    with told() as lines:
        for step in range(3):
            logits, targets = made(step)
            monitor.observe(pplmon.token_stats(logits, targets), loss=2 * mean(logits, targets, 0))
            monitor.step()
        monitor.close()
    assert [line for line in lines if "over a logged window" in line]
    with pytest.raises(TypeError, match="TokenStats are shifted already: give shift to token_stats"):
        monitor.observe(pplmon.token_stats(logits, targets), shift=True)


def test_flat_logits_have_no_shift_to_choose() -> None:
    """They count at once, and are guarded."""
    monitor = pplmon.Monitor(every_n_steps=1, alerts=[])
    logits, targets = made(0)
    with told() as lines:
        monitor.observe(logits.flatten(0, 1), targets.flatten(), loss=mean(logits, targets, 0))
        monitor.step()
        report = monitor.close()
    assert report is not None and report.tokens == PLAIN and not lines


@pytest.mark.parametrize(
    ("loss", "error", "words"),
    [
        (torch.ones(3), ValueError, r"loss must be one number, got shape \(3,\); give the mean that backward"),
        ("2.0", TypeError, "loss must be a number or a tensor of one number, got str; give output.loss"),
        (torch.tensor(3), TypeError, "loss must be floating point, got torch.int64"),
        (True, TypeError, "got bool"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss: Any, error: type[Exception], words: str) -> None:
    """At once, without waiting for the device."""
    with pytest.raises(error, match=words):
        pplmon.Monitor(alerts=[]).observe(*made(0), loss=loss)


def test_what_does_not_fit_is_raised_and_not_counted() -> None:
    """Also while the shift is open."""
    monitor = pplmon.Monitor(every_n_steps=1, alerts=[])
    logits, targets = made(0)
    with pytest.raises(ValueError, match="targets must have the shape of logits"):
        monitor.observe(logits, targets[:, 1:], loss=mean(logits, targets, 1))
    with told():
        monitor.observe(logits, targets, loss=mean(logits, targets, 1))
        report = monitor.close()
    assert report is not None and report.tokens == SHIFTED


def test_no_logits_are_kept() -> None:
    """Per-token losses of each candidate only, and no more than three batches of these."""
    import gc
    import weakref

    monitor = pplmon.Monitor(every_n_steps=8, alerts=[])
    seen: list[Any] = []
    for step in range(3):
        logits, targets = made(step)
        loss: Tensor = mean(logits, targets, 1)
        monitor.observe(logits, targets, loss=loss)
        seen.append(weakref.ref(logits))
    del logits
    gc.collect()
    assert all(ref() is None for ref in seen) and VOCAB
    with told():
        monitor.close()


@pytest.mark.parametrize(
    ("logits", "targets", "line"),
    [
        (
            (2, 5, 9),
            (2, 6),
            r"targets must have the shape of logits \(2, 5, 9\) without V, \(2, 5\), got \(2, 6\); if the last id",
        ),
        ((2, 5, 9), (2, 6), r"give targets\[:, 1:\]$"),
        (
            (2, 7, 9),
            (2, 6),
            r"give logits\[:, :-1\] if the targets are shifted, or logits\[:, 1:\] if a column stands before",
        ),
        ((2, 9, 9), (2, 6), r"give logits\[:, 3:\] if 3 columns stand before the text$"),
        ((12, 9), (2, 6), r"give targets.flatten\(\)$"),
        ((2, 6, 9), (12,), r"give logits.flatten\(0, 1\)$"),
        ((2, 6, 9), (3, 6), r"pass logits \[B, T, V\] with targets \[B, T\], or \[N, V\] with \[N\]$"),
    ],
)
def test_shapes_that_do_not_fit_say_what_to_write(logits: tuple[int, ...], targets: tuple[int, ...], line: str) -> None:
    """Both shapes, and the columns to cut, to ``observe`` and to ``diagnose``."""
    given = torch.zeros(logits), torch.zeros(targets, dtype=torch.int64)
    for call in (pplmon.Monitor(alerts=[]).observe, pplmon.diagnose):
        with pytest.raises(ValueError, match=line):
            call(*given, loss=1.0)
