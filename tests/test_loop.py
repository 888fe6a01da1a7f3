"""Loops of one's own in four lines: a hook on the model takes what ``observe`` is given, and ``with`` closes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import pplmon
from pplmon.sinks import read_journal
from tests.own_number_tasks import Keeps

VOCAB = 40


class Model(nn.Module):
    """Like nanoGPT's: logits and a loss if it is given targets, else logits of the last position."""

    def __init__(self, checkpoints: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.head, self.checkpoints = nn.Embedding(VOCAB, 16), nn.Linear(16, VOCAB), checkpoints

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        hidden = self.embed(idx)
        if targets is None:
            return self.head(hidden[:, -1:]), None
        logits = checkpoint(self.head, hidden, use_reentrant=False) if self.checkpoints else self.head(hidden)
        return logits, cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


class Shifts(Model):
    """A model that shifts its labels itself."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        logits = self.head(self.embed(idx))
        assert targets is not None
        return logits, cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)


def batches(count: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Batches of 3 rows of which unlike parts are scored."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        ids = torch.randint(VOCAB, (3, 13), generator=generator)
        targets = ids[:, 1:].clone()
        targets[:, : 1 + index % 7] = -100
        found.append((ids[:, :-1], targets))
    return found


def true(parts: list[tuple[Tensor, Tensor]], model: nn.Module | None = None) -> float:
    """The cross-entropy over all tokens, in float64."""
    model = (Model() if model is None else model).double()
    with torch.no_grad():
        losses = [
            cross_entropy(model(x, y)[0].flatten(0, 1), y.flatten(), ignore_index=-100, reduction="sum")
            for x, y in parts
        ]
    model.float()
    return sum(loss.item() for loss in losses) / sum(int((y != -100).sum()) for _, y in parts)


def test_four_lines_watch_a_loop(tmp_path: Path) -> None:
    """Micro-batches, steps, an evaluation outside a pass that does not count, generation, a pass, and the end."""
    model, data, held_out = Model(), batches(12), batches(3, seed=1)
    monitor = pplmon.Monitor(every_n_steps=2, sinks=[pplmon.sinks.Journal(tmp_path)]).hook(model)
    for index, (x, y) in enumerate(data):
        model(x, y)[1].backward()
        if index % 3 == 2:
            monitor.step()
    with torch.no_grad():
        model(*held_out[0])
        model(held_out[0][0])
        with monitor.stage("val") as val:
            for x, y in held_out:
                model(idx=x, targets=y)
    last = monitor.close()
    reports = [row for row in read_journal(tmp_path) if row["kind"] == "report"]
    assert [(row["stage"], row["step"]) for row in reports] == [("train", 1), ("train", 3), ("val", 3)]
    for row, part in zip(reports, (data[:6], data[6:], held_out)):
        assert row["numbers"]["cross_entropy"] == pytest.approx(true(part), abs=1e-6)
    assert last is not None and last.cross_entropy == reports[1]["numbers"]["cross_entropy"]
    assert val.report is not None and val.report.perplexity == pytest.approx(math.exp(true(held_out)), rel=1e-6)
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_with_closes_or_abandons(tmp_path: Path) -> None:
    """After an exception the window is on the disk, and the model is left alone."""
    model, data = Model(), batches(5)
    with pplmon.Monitor(sinks=[pplmon.sinks.Journal(tmp_path / "a")]) as monitor:
        for x, y in data:
            monitor.observe(model(x, y)[0], y)
            monitor.step()
    with (
        pytest.raises(KeyboardInterrupt),
        pplmon.Monitor(sinks=[pplmon.sinks.Journal(tmp_path / "b")]).hook(model) as monitor,
    ):
        for index, (x, y) in enumerate(data):
            model(x, y)
            if index == 3:
                raise KeyboardInterrupt
            monitor.step()
    for name, part in (("a", data), ("b", data[:3])):
        (row,) = [row for row in read_journal(tmp_path / name) if row["kind"] == "report"]
        assert row["numbers"]["cross_entropy"] == pytest.approx(true(part), abs=1e-6)
    assert not model._forward_hooks


@pytest.mark.parametrize("how", ["compiled", "checkpointed"])
def test_a_call_counts_once_however_the_model_runs(how: str) -> None:
    """Compiled, and with activations that backward computes again."""
    model = Model(checkpoints=how == "checkpointed")
    called = torch.compile(model, backend="eager") if how == "compiled" else model
    monitor = pplmon.Monitor().hook(called)
    for x, y in batches(3):
        called(x, y)[1].backward()
        monitor.step()
    report = monitor.close()
    assert report is not None and report.cross_entropy == pytest.approx(true(batches(3)), abs=1e-6)
    assert report.tokens == sum(int((y != -100).sum()) for _, y in batches(3))


def test_a_resumed_loop_goes_on() -> None:
    """From a state that was saved in the middle of a window, and before the first steps were read out."""
    model, data = Model(), batches(6)

    def train(monitor: pplmon.Monitor, part: list[tuple[Tensor, Tensor]]) -> None:
        for x, y in part:
            model(x, y)
            monitor.step()

    first, second = pplmon.Monitor(every_n_steps=6).hook(model), pplmon.Monitor(every_n_steps=6)
    train(first, data[:4])
    state = first.state_dict()
    first.abandon()
    second.load_state_dict(state)
    train(second.hook(model), data[4:])
    report = second.close()
    assert report is not None and report.cross_entropy == pytest.approx(true(data), abs=1e-6)


def test_the_loss_shows_the_shift() -> None:
    """The model's labels are its input, and nothing else tells it."""
    model = Shifts()
    monitor = pplmon.Monitor(alerts=[]).hook(model)

    def train() -> list[float]:
        losses = []
        for x, _ in batches(3):
            losses.append(model(x, x)[1].item())
            monitor.step()
        return losses

    with pytest.warns(
        UserWarning, match=r"train counts Shifts, with shift=True: its cross-entropy of .* equals the loss"
    ):
        losses = train()
    report = monitor.close()
    assert report is not None and report.cross_entropy == pytest.approx(sum(losses) / 3, abs=1e-6)


def test_numbers_of_steps_that_are_held_back_are_those_of_their_own_step() -> None:
    """A loss that shows another shift holds the first steps back; their norms do not add up."""
    model, sink, wanted = Shifts(), Keeps(), [3.0, 4.0, 5.0, 2.0, 1.0]
    monitor = pplmon.Monitor(sinks=[sink], alerts=[], grad_norm=True).hook(model)
    weight, closed = nn.Parameter(torch.zeros(1)), []

    def train() -> None:
        for (x, _), norm in zip(batches(5), wanted):
            model(x, x)
            weight.grad = torch.tensor([norm])
            monitor.log_grad_norm([weight])
            monitor.log("optim/lr", norm)
            monitor.step()
            closed.append(monitor.current_step)

    with pytest.warns(UserWarning, match="with shift=True"):
        train()
    monitor.close()
    assert closed[0] == 0  # the first was held back
    for name in ("optim/grad_norm", "optim/lr"):
        assert [report.numbers[name] for report in sink.reports] == pytest.approx(wanted)


def test_other_names_of_the_targets() -> None:
    """By name, and by a callable of the arguments."""

    class Other(Model):
        def forward(self, tokens: Tensor, y: Tensor) -> Any:
            return {"logits": self.head(self.embed(tokens)), "scores": y}

    for targets in ("y", lambda given: given["y"]):
        model, data = Other(), batches(2)
        monitor = pplmon.Monitor().hook(model, targets=targets)
        for x, y in data:
            model(x, y)
            monitor.step()
        report = monitor.close()
        assert report is not None and report.cross_entropy == pytest.approx(true(data), abs=1e-6)


def test_a_pass_that_an_exception_ends_does_not_swallow_training(tmp_path: Path) -> None:
    """What follows is training again."""
    model, data = Model(), batches(2)
    monitor = pplmon.Monitor(sinks=[pplmon.sinks.Journal(tmp_path)]).hook(model)
    model(*data[0])
    monitor.step()
    with pytest.raises(ZeroDivisionError), monitor.stage("val"):
        model(*data[1])
        raise ZeroDivisionError
    model(*data[1])
    monitor.step()
    report = monitor.close()
    assert report is not None and report.cross_entropy == pytest.approx(true(data), abs=1e-6)


def test_what_cannot_be_is_told() -> None:
    """A second hook, and calls that never have targets."""
    model = Model()
    monitor = pplmon.Monitor().hook(model)
    with pytest.raises(ValueError, match="has a hook on a model already"):
        monitor.hook(model)
    for _ in range(5):
        model(batches(1)[0][0])
        monitor.step()
    with pytest.warns(
        UserWarning, match=r"(?s)no logits and targets in the first train batch.*monitor.observe\(logits, targets\)"
    ):
        monitor.close()


class Fused(Model):
    """A model that gives its loss alone."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        return super().forward(idx, targets)[1]


def test_logits_of_a_named_submodule() -> None:
    """Where the model does not return them."""
    model, data = Fused(), batches(2)
    with pplmon.Monitor(every_n_steps=2, alerts=[]).hook(model, logits="head") as monitor:
        for x, y in data:
            model(x, y).backward()
            monitor.step()
        report = monitor.close()
    assert report is not None and report.cross_entropy == pytest.approx(true(data), abs=1e-6)
