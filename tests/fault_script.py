"""Run by the tests of faults: small runs that are killed, interrupted, starved of disk, or fail on one rank."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import pplmon
from pplmon.sinks import Journal, Sink
from tests.launch import launch

TOKENS = (10, 1000)  # per step on ranks 0 and 1, so that a sum tells whose tokens are in it


class Told(Sink):
    """Stands after the journal, and notes at once, past all buffers, what the monitor told of."""

    def __init__(self, where: Path) -> None:
        self._path = where / "told.txt"

    def report(self, report: pplmon.Report, scalars: Any) -> None:
        self._note("report", report.step)

    def alert(self, alert: pplmon.Alert) -> None:
        self._note("alert", alert.step)

    def _note(self, kind: str, step: int | None) -> None:
        with open(self._path, "ab", buffering=0) as file:
            file.write(f"{kind} {step}\n".encode())


def stats(tokens: int, worst: float) -> pplmon.TokenStats:
    """Tokens of 2 nats, and one of ``worst``."""
    nll = torch.full((1, tokens), 2.0)
    nll[0, tokens // 2] = worst
    return pplmon.TokenStats.from_losses(nll, torch.zeros(1, tokens, dtype=torch.int64), vocab_size=100)


def plain(where: Path, steps: int) -> None:
    """A plain loop on one of several ranks, with an alert every tenth step."""
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    (where / f"pid{rank}").write_text(str(os.getpid()))
    monitor = pplmon.Monitor(
        every_n_steps=4, sinks=[Journal(where), Told(where)], alerts=[pplmon.Above("max_token_loss", 40.0)]
    )
    for step in range(steps):
        monitor.observe(stats(TOKENS[rank], 50.0 if step % 10 == 3 else 3.0))
        monitor.step()
        time.sleep(0.005)
    monitor.close()
    (where / f"done{rank}").touch()
    os._exit(0)  # the other may be gone, and gloo's own farewell would wait for it


def full_disk(where: Path) -> None:
    """No file of this process may grow beyond 30 kB: the journal of 60 steps is larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    monitor = pplmon.Monitor(every_n_steps=1, sinks=[Journal(where), Told(where)], alerts=[])
    for _ in range(60):
        monitor.observe(stats(10, 3.0))
        monitor.step()
    monitor.close()
    print("trained to the end")


def bad_disk(where: Path, sink: str, limit: str) -> None:
    """Train with a sink whose files may not grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    sinks: dict[str, Any] = {
        "TensorBoard": lambda: pplmon.sinks.TensorBoard(where),
        "WandB": lambda: pplmon.sinks.WandB(project="p", dir=str(where), mode="offline"),
        "Journal": lambda: Journal(where),
    }
    heard: list[int | None] = []
    alerts = [pplmon.Above("max_token_loss", 40.0)]
    on_alert = lambda alert: heard.append(alert.step)  # noqa: E731
    monitor = pplmon.Monitor(every_n_steps=1, sinks=[sinks[sink]()], alerts=alerts, on_alert=on_alert)
    for step in range(60):
        monitor.observe(stats(10, 50.0 if step % 20 == 3 else 3.0))
        monitor.step()
    last = monitor.close()
    assert last is not None
    print(f"trained to step {last.step}, alerts at {heard}", flush=True)


def trainer_of(where: Path, **more: Any) -> Any:
    """A quiet trainer with our callback."""
    import pytorch_lightning as pl

    monitor = pplmon.PerplexityMonitor(every_n_steps=4, alerts=[pplmon.Above("max_token_loss", 1.0)])
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "callbacks": [monitor],
        "logger": pl.loggers.CSVLogger(where, name="run", version=0),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
    }
    return pl.Trainer(**settings | more)


def module_of(where: Path, on_batch: Any = None) -> Any:
    """A tiny language model that notes every token that it measured, and calls ``on_batch(rank, index)`` after it."""
    import pytorch_lightning as pl

    from tests.models import make_module

    class Noting(type(make_module(pl.LightningModule))):  # type: ignore[misc]
        def training_step(self, batch: Any, index: int) -> Any:
            loss = super().training_step(batch, index)
            with open(where / f"seen{self.global_rank}", "ab", buffering=0) as file:
                file.write(b"." * int((batch["labels"] != -100).sum()))
            if on_batch is not None:
                on_batch(self.global_rank, index)
            return loss

    return Noting()


def one_rank_fails(where: Path) -> None:
    """Under DDP rank 1 raises in its sixth step."""
    from tests.models import loader

    def on_batch(rank: int, index: int) -> None:
        if (rank, index) == (1, 5):
            raise ValueError("planned")

    trainer_of(where, devices=2, strategy="ddp").fit(module_of(where, on_batch), loader(64))


def wait_for_a_signal(where: Path) -> None:
    """Train slowly until someone ends us."""
    from tests.models import loader

    def on_batch(rank: int, index: int) -> None:
        time.sleep(0.05)

    trainer_of(where, max_epochs=100).fit(module_of(where, on_batch), loader(64))


def fork(where: Path) -> None:
    """W&B in children of a fork: nobody but them can end the run."""
    import pytorch_lightning as pl

    from tests.models import loader

    logger = pl.loggers.WandbLogger(save_dir=where, project="p")
    trainer_of(where, devices=2, strategy="ddp_fork", logger=logger).fit(module_of(where), loader(64))


if __name__ == "__main__":
    name, root, *rest = sys.argv[1:]
    if name == "plain":
        launch(plain, 2, Path(root), int(rest[0]), timeout_s=40.0)
    elif name == "one_rank_fails":
        codes = launch(one_rank_fails, 2, Path(root), timeout_s=60.0)
        sys.exit(0 if all(code == 1 for code in codes) else f"exit codes {codes}")
    else:
        globals()[name](Path(root), *rest)
