"""Functions that the ranks of distributed tests run, at the top of a module so that other processes can import them."""

from __future__ import annotations

import random
from typing import Any

import torch

import pplmon
from pplmon.measure.tokens import TokenStats
from pplmon.report.totals import Totals
from pplmon.tally import TokenTally

VOCAB, LENGTH = 11, 20


def random_stats(seed: int, rows: int = 12) -> TokenStats:
    """Losses with everything that hurts: ignored rows, ties, NaN, inf, beyond the cap, zero."""
    generator = torch.Generator().manual_seed(seed)
    nll = torch.rand(rows, LENGTH, generator=generator) * 12
    special = torch.rand(rows, LENGTH, generator=generator)
    nll[special < 0.02] = torch.nan
    nll[(special > 0.02) & (special < 0.04)] = torch.inf
    nll[(special > 0.04) & (special < 0.06)] = 5000.0
    nll[(special > 0.06) & (special < 0.12)] = 3.25
    targets = torch.randint(0, VOCAB, (rows, LENGTH), generator=generator)
    targets[torch.rand(rows, LENGTH, generator=generator) < 0.2] = -100
    predicted = torch.randint(0, VOCAB, (rows, LENGTH), generator=generator)
    return TokenStats.from_losses(
        nll,
        targets,
        predicted=predicted,
        top_probability=torch.rand(rows, LENGTH, generator=generator),
        vocab_size=VOCAB,
    )


def facts(totals: Totals) -> dict[str, Any]:
    """What no cut may change."""
    rows = {"worst": [row[0] for row in totals.token_rows], "sequences": [row[0] for row in totals.sequence_rows]}
    return {name: repr(value) for name, value in totals.numbers().items()} | {f"worst {k}": v for k, v in rows.items()}


def split_cases(rank: int, seeds: list[int], size: int) -> list[dict[str, Any]]:
    """Count each case's batch, cut over ranks, steps, micro-batches and a save and load in between."""
    found = []
    for seed in seeds:
        stats, chance = random_stats(seed), random.Random(seed)
        rows = stats.batch_shape[0]
        owner = [chance.randrange(size) for _ in range(rows)]  # a rank may well have none
        steps = [chance.randrange(3) for _ in range(rows)]
        monitor = pplmon.Monitor(every_n_steps=None, alerts=[])
        save_at = chance.randrange(3)
        for step in range(3):
            for row in range(rows):
                if owner[row] == rank and steps[row] == step:
                    monitor.observe(stats.rows(row, row + 1))
            if step == save_at:  # in the middle of a step: what was not read out is in the state, too
                state = monitor.state_dict()
                monitor = pplmon.Monitor(every_n_steps=None, alerts=[])
                monitor.load_state_dict(state)
            monitor.step()
        monitor.flush()
        found.append(facts(monitor._link.gather(monitor._windows.window)))
    return found


def save_states(rank: int, seed: int) -> dict[str, Any]:
    """Count some rows on each rank, save in the middle, and return the state."""
    stats = random_stats(seed)
    monitor = pplmon.Monitor(every_n_steps=None, alerts=[pplmon.Above("max_token_loss", 3.0)])
    monitor.observe(stats.rows(rank * 3, rank * 3 + 3))
    monitor.step()
    monitor.observe(stats.rows(6 + rank * 3, 9 + rank * 3))
    return monitor.state_dict()


def load_states(rank: int, state: dict[str, Any]) -> dict[str, Any]:
    """Go on from a state on this many ranks, and return the run's totals."""
    monitor = pplmon.Monitor(every_n_steps=None, alerts=[pplmon.Above("max_token_loss", 3.0)])
    monitor.load_state_dict(state)
    monitor.step()
    monitor.flush()
    seen = facts(monitor._link.gather(monitor._windows.window))
    return {**seen, "tokens_seen": monitor._windows.tokens_seen, "fired": monitor._judge.rules[0]._fired}


def leave_early(rank: int, steps: list[int], judge_every: int) -> tuple[Any, list[int]]:
    """A plain loop with unlike numbers of steps; returns the last report's numbers and the steps of logged windows."""
    stats = random_stats(5)
    reports = []

    class Keeps(pplmon.sinks.Sink):
        def report(self, report: Any, scalars: Any) -> None:
            reports.append((report.step, report.tokens))

    monitor = pplmon.Monitor(every_n_steps=4, judge_every_n_steps=judge_every, alerts=[], sinks=[Keeps()])
    for step in range(steps[rank]):
        monitor.observe(stats.rows(step, step + 1))
        monitor.step()
    last = monitor.close()
    return (None if last is None else last.tokens_seen), reports


def vote(rank: int, voter: int, at: int) -> int | None:
    """One rank wishes to stop; returns the step at which this rank learns of it."""
    monitor = pplmon.Monitor(alerts=[])
    for step in range(10):
        monitor.observe(random_stats(step))
        if rank == voter and step == at:
            monitor.request_stop()
        monitor.step()
        if monitor.should_stop:
            monitor.close()
            return step
    return None


def stop_on_alert(rank: int) -> tuple[int | None, int]:
    """``Stop`` stops every rank at one step, though only rank 1 saw the bad token."""
    seen: list[pplmon.Alert] = []
    monitor = pplmon.Monitor(alerts=[pplmon.Above("max_token_loss", 100.0)], on_alert=[seen.append, pplmon.Stop()])
    for step in range(10):
        nll = torch.full((2, LENGTH), 2.0)
        if rank == 1 and step == 4:
            nll[1, 3] = 500.0
        monitor.observe(TokenStats.from_losses(nll, torch.zeros(2, LENGTH, dtype=torch.int64)))
        monitor.step()
        if monitor.should_stop:
            monitor.close()
            return step, len(seen)
    return None, len(seen)


def count_collectives(rank: int, steps: int) -> dict[str, int]:
    """Count collectives and their bytes over some judged, not logged steps, and one logged window."""
    import torch.distributed as dist

    calls: dict[str, int] = {"all_reduce": 0, "bytes": 0, "all_gather": 0}

    def counted(name: str) -> Any:
        inner = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            if name == "all_reduce":
                calls["bytes"] += args[0].numel() * args[0].element_size()
            return inner(*args, **kwargs)

        return call

    for name in ("all_reduce", "all_gather"):
        setattr(dist, name, counted(name))
    monitor = pplmon.Monitor(every_n_steps=steps, alerts=[pplmon.Spike("cross_entropy")])
    for step in range(steps):
        monitor.observe(random_stats(step))
        monitor.step()
    monitor.collect()
    return calls


def tally_counts(rank: int) -> dict[str, int]:
    """A rank without tokens, metrics that compute again without news, sync and unsync."""
    tally = TokenTally()
    if rank == 0:
        tally.update(random_stats(1))
    first = tally.compute()["tokens"].item()
    if rank == 0:
        tally.update(random_stats(2))
    second = tally.compute()["tokens"].item()
    tally.sync()
    state = tally.state_dict()
    tally.sync(should_sync=False)
    again = all(torch.equal(tally.state_dict()[name], part) for name, part in state.items())
    tally.unsync()
    fresh = TokenTally()
    fresh.load_state_dict(state)  # on all ranks, as Lightning does
    return {
        "as after one sync": again,
        "first": first,
        "second": second,
        "loaded": fresh.compute()["tokens"].item(),
        "rows": len(fresh.report().worst),
    }
