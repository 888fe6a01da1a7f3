"""Models and tasks of the tests of probes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import pplmon

VOCAB, HORIZON = 23, 8
LENGTHS = (12, 20, 9, 15, 30, 12, 11)


class Recurrent(nn.Module):
    """A small model with dropout, whose greedy text leaves the correct one at unlike places."""

    def __init__(self, vocab: int = VOCAB) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.embed, self.read = nn.Embedding(vocab, 16), nn.GRU(16, 16, batch_first=True)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(16, vocab)
        self.calls = 0

    def forward(self, ids: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.head(self.drop(self.read(self.embed(ids))[0])) * 6
        return logits


def sequences(model: nn.Module, lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    """Prompts with continuations of which the model itself wrote the first few tokens, so that some match for a while."""
    model.eval()
    rows = []
    for number, length in enumerate(lengths):
        row = torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(number))
        for place in range(length - HORIZON, length - HORIZON + number):
            if place < length:
                row[place] = step_by_step(model, row[:place], 1)[0]
        rows.append(row)
    model.train()
    return rows


@torch.no_grad()
def step_by_step(model: nn.Module, prompt: Tensor, count: int) -> Tensor:
    """Greedy generation, one token after the other."""
    ids = prompt[None]
    for _ in range(count):
        output = model(ids)
        logits = getattr(output, "logits", output)
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt) :]


def on_rank(rank: int, count: int, fails: bool = False) -> Any:
    """A validation pass with a probe, on one of two ranks; rank 1 fails if asked to."""
    model = Recurrent()
    probe = pplmon.FreeRunningProbe(sequences(model)[:count], HORIZON, forward=failing if fails and rank else None)
    monitor = pplmon.Monitor(alerts=[])
    ids = torch.randint(0, VOCAB, (2, 9))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with monitor.stage("val") as val:
            monitor.observe(model(ids[:, :-1]).detach(), ids[:, 1:])
            monitor.probe(probe, model)
        monitor.close()
    assert val.report is not None
    numbers = {name: repr(value) for name, value in val.report.numbers.items() if name.startswith("free_running/")}
    return numbers, [str(warning.message) for warning in told if "pplmon" in str(warning.message)], model.calls


class Layers(nn.Module):
    """A model of layers that can be sharded: each token is read with the one before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.mix, self.head = nn.Embedding(VOCAB, 16), nn.Linear(32, 16), nn.Linear(16, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        logits: Tensor = self.head(self.mix(torch.cat([x, before], -1)).tanh()) * 6
        return logits


def on_sharded_rank(rank: int, count: int, shards: bool) -> dict[str, str]:
    """The probe's numbers on one of two ranks, each of which holds a half of every weight if ``shards``."""
    model = Layers()
    given = sequences(model)[:count]
    if shards:
        mesh = init_device_mesh("cpu", (2,))
        for layer in (model.embed, model.mix, model.head, model):
            fully_shard(layer, mesh=mesh)
        assert all(isinstance(weight, DTensor) for weight in model.parameters())
    monitor = pplmon.Monitor(alerts=[])
    with monitor.stage("val") as val:
        monitor.observe(model(given[0][None, :-1]).detach(), given[0][None, 1:])
        monitor.probe(pplmon.FreeRunningProbe(given, HORIZON, batch_size=2), model)
    monitor.close()
    assert val.report is not None
    return {name: repr(value) for name, value in val.report.numbers.items() if name.startswith("free_running/")}


def failing(model: nn.Module, ids: Tensor) -> Tensor:
    """A forward that cannot be run."""
    raise RuntimeError("out of memory, say")
