"""A trainer that pplmon does not know, and the wire that a second framework would need: hooks only, from ``Session`` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pplmon
from pplmon.monitor.publish import Places
from pplmon.report.report import Report
from pplmon.trainers.session import Session
from pplmon.trainers.settings import Settings
from tests.models import VOCAB

Batch = dict[str, Tensor]


class Model(nn.Module):
    """A table of logits, which shows what it predicts from inside."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.lr = nn.Embedding(VOCAB, VOCAB), lr

    def forward(self, batch: Batch) -> Tensor:
        logits = self.table(batch["x"])
        pplmon.observe(self, logits, batch["labels"])
        return F.cross_entropy(logits.view(-1, VOCAB), batch["labels"].view(-1))


class Net(nn.Module):
    """What the trainer is given: the model is a part of it."""

    def __init__(self, lr: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.model, self.factor = Model(lr), factor

    def forward(self, batch: Batch) -> Tensor:
        return self.model(batch) * self.factor


class OtherTrainer:
    """Accumulates, validates, saves and resumes, has a history of numbers, and tells its callback of all of it."""

    accumulation, validate_every, log_every = 3, 4, 2

    def __init__(self, directory: Path, net: Net) -> None:
        self.directory, self.net, self.step, self.stop = directory, net, 0, False
        self.history: list[dict[str, float]] = []
        self.callback: Any = None

    def fit(self, batches: list[Batch], held_out: list[Batch], until: int, resume: bool = False) -> None:
        optimizer = torch.optim.SGD(self.net.parameters(), self.net.model.lr)
        self.callback.train_begin()
        if resume:
            self._load()
        try:
            while self.step < until and not self.stop:
                for batch in batches[self.step * self.accumulation :][: self.accumulation]:
                    self.callback.batch_begin(batch)
                    loss = self.net(batch) / self.accumulation
                    loss.backward()
                    self.callback.batch_end(loss)
                optimizer.step()
                optimizer.zero_grad()
                self.step += 1
                self.callback.step_end()
                if self.step % self.validate_every == 0:
                    self._validate(held_out)
        except Exception:
            self.callback.error()
            raise
        self.callback.train_end()

    @torch.no_grad()
    def _validate(self, held_out: list[Batch]) -> None:
        self.callback.validate_begin()
        for batch in held_out:
            self.callback.batch_begin(batch)
            self.callback.batch_end(self.net(batch))
        self.callback.validate_end()

    def save(self) -> None:
        torch.save({"step": self.step, "callback": self.callback.state()}, self.directory / "saved.pt")

    def _load(self) -> None:
        saved = torch.load(self.directory / "saved.pt", weights_only=True)
        self.step = saved["step"]
        self.callback.load(saved["callback"])


class History(Places):
    """The trainer's own place for numbers."""

    def __init__(self, trainer: OtherTrainer) -> None:
        self.trainer, self.log_dir = trainer, str(trainer.directory)

    def show(self, report: Report, head: str, tail: str) -> None:
        numbers = {f"{head}{name}{tail}": value for name, value in report.finite().items()}
        self.trainer.history.append({"step": report.step, **numbers})


class Wire:
    """The whole wire."""

    def __init__(self, trainer: OtherTrainer, **settings: Any) -> None:
        self._trainer, self._settings = trainer, Settings(**settings)
        self.session: Session
        trainer.callback = self

    def train_begin(self) -> None:
        trainer = self._trainer
        sinks = [pplmon.sinks.Journal(trainer.directory)]
        self.session = Session(self._settings, trainer.net, sinks, trainer.log_every, places=History(trainer))

    def batch_begin(self, batch: Batch) -> None:
        self.session.begin_batch(batch)

    def batch_end(self, loss: Tensor) -> None:
        self.session.end_batch(loss, self._trainer.accumulation)

    def step_end(self) -> None:
        self.session.step_to(self._trainer.step - 1)
        self._trainer.stop = self.session.should_stop

    def validate_begin(self) -> None:
        self.session.begin_pass("val")

    def validate_end(self) -> None:
        self.session.end_pass()

    def state(self) -> dict[str, Any]:
        return self.session.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        self.session.load_state_dict(state)

    def error(self) -> None:
        self.session.abandon()

    def train_end(self) -> None:
        self.session.close()
        self.session.release()
