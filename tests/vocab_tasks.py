"""Functions that the ranks of ``test_vocab_parallel`` run. Each makes the same whole logits, and passes its part only.

Shapes: N = 3·7 tokens, V vocabulary, R ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pplmon
from pplmon import TokenStats, TokenTally, VocabShard, token_stats

ROWS, LENGTH = 3, 7
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EXACT = ("predicted", "correct", "scored", "invalid", "targets")
INF, NAN = torch.inf, torch.nan


def flat_mesh() -> DeviceMesh:
    """All ranks in a row."""
    return init_device_mesh("cpu", (dist.get_world_size(),))


def whole(vocab: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of the size that training makes, and targets: half likely, half anywhere."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(ROWS, LENGTH, vocab, generator=generator) * 3).to(dtype)
    targets = torch.randint(vocab, (ROWS, LENGTH), generator=generator)
    likely = torch.rand(ROWS, LENGTH, generator=generator) < 0.5
    return logits, torch.where(likely, logits.argmax(-1), targets)


def planted(vocab: int, dtype: torch.dtype, ranks: int) -> tuple[Tensor, Tensor]:
    """All that can go wrong where a vocabulary is cut, one token each."""
    logits, targets = whole(vocab, dtype)
    x, y = logits.view(-1, vocab), targets.view(-1)
    chunk = -(-vocab // ranks)
    left, right = min(chunk, vocab) - 1, min(chunk, vocab - 1)  # the last id of the first rank, the first of the second
    x[0, [left, right]], y[0] = 20.0, right  # a tie across a border: the lower id is predicted
    x[1, [0, -1]], y[1] = 20.0, 0  # a tie across all of them
    x[2], y[2] = 0.0, vocab - 1
    x[3, -1], y[3] = NAN, 0
    x[4, 0], y[4] = INF, vocab - 1
    x[5], y[5] = -INF, 0
    x[6, chunk:] = -INF  # nothing is possible but on the first rank
    y[6] = left
    x[7, :-1], y[7] = -INF, vocab - 1  # one id is possible: loss 0
    x[8, right], y[8] = -INF, right  # an impossible target
    x[9, :chunk], y[9] = -INF, 0  # … on a rank that has nothing else
    x[10, [0, -1]] = NAN  # two: the first is predicted
    x[11, -1], y[11] = -200.0, vocab - 1
    x[12, [0, -1]], y[12] = INF, 0
    x[13] = -30.0
    x[13, right], y[13] = 0.0, right  # a small loss, whose sum lies on all ranks
    y[14], y[15], y[16], y[17] = -100, -1, vocab, vocab + chunk
    x[18] = -60000.0 if dtype == torch.float16 else -1e30  # far from zero, all alike
    return logits, targets


def uneven(logits: Tensor) -> tuple[Tensor, VocabShard]:
    """Cut V in a way that torch never does: the last ranks first, unlike sizes, padding full of NaN and +inf."""
    rank, ranks, vocab = dist.get_rank(), dist.get_world_size(), logits.shape[-1]
    edges = [vocab * k * k // ranks**2 for k in range(ranks)] + [vocab + 5]
    place = ranks - 1 - rank
    padding = torch.tensor([INF, NAN, 1e4, -INF, NAN], dtype=logits.dtype).expand(*logits.shape[:-1], 5)
    padded = torch.cat([logits, padding], dim=-1)
    start, stop = edges[place], edges[place + 1]
    return padded[..., start:stop], VocabShard(None, start, stop, vocab)


class Truth:
    """What float64 says of logits [..., V]: log Σ exp and entropy of each row, and its loss for any target."""

    def __init__(self, logits: Tensor) -> None:
        self._x = logits.double().flatten(0, -2)
        self.total = self._x.logsumexp(-1)
        log_p = self._x.log_softmax(-1)  # x − total has no digits left at 1e30
        self.entropy = -torch.where(log_p == -INF, 0.0, log_p.exp() * log_p).sum(-1)
        self.healthy = self._x.amax(-1).isfinite()

    def nll(self, targets: Tensor) -> Tensor:
        return self.total - self._x.gather(1, targets.unsqueeze(1)).squeeze(1)


def check(got: TokenStats, want: TokenStats, truth: Truth, where: object = None) -> None:
    """The unsharded result: all but the sums exactly, and those as near to float64 as one rank's are asked to be."""
    for name in EXACT:
        assert torch.equal(getattr(got, name), getattr(want, name)), (where, name)
    assert (got.batch_shape, got.vocab_size, got.shift) == (want.batch_shape, want.vocab_size, want.shift), where
    valid = want.scored & want.nll.isfinite()
    nll = truth.nll(torch.where(want.scored, want.targets, 0))
    scale = torch.stack([torch.ones_like(nll), truth.total.abs(), nll.abs()]).amax(0)
    assert ((got.nll - nll).abs() <= 2e-6 * scale)[valid].all(), (where, got.nll - nll)
    assert torch.equal(got.nll[~valid].nan_to_num(-7.0, 9.0), want.nll[~valid].nan_to_num(-7.0, 9.0)), where
    # Relative, so that losses of 1e-13 count, too: exp itself is good to 1e-7 a nat, and these lie 30 nats down.
    torch.testing.assert_close(got.nll, want.nll, rtol=4e-6, atol=1e-30, equal_nan=True)
    torch.testing.assert_close(got.top_probability, want.top_probability, rtol=1e-6, atol=0, equal_nan=True)
    if want.entropy is None:
        assert got.entropy is None
        return
    torch.testing.assert_close(got.entropy, want.entropy, rtol=3e-6, atol=1e-6, equal_nan=True)
    found = got.entropy.double()[truth.healthy]
    torch.testing.assert_close(found, truth.entropy[truth.healthy], rtol=3e-6, atol=1e-6)


def bits(stats: TokenStats) -> list[Any]:
    """Every number, bit-identical."""
    values = (stats.nll, stats.top_probability, stats.entropy)
    floats = [value.view(torch.int32).tolist() for value in values if value is not None]
    return [*floats, stats.predicted.tolist(), stats.correct.tolist(), stats.scored.tolist()]


def grid(rank: int, vocabularies: tuple[int, ...]) -> list[Any]:
    """Every V, dtype and option from a DTensor and from plain shards; returns the bits."""
    mesh, ranks, found = flat_mesh(), dist.get_world_size(), []
    for vocab, dtype, hard in product(vocabularies, DTYPES, (True, False)):
        logits, targets = planted(vocab, dtype, ranks) if hard else whole(vocab, dtype, seed=vocab)
        mask = torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.7
        options: list[dict[str, Any]] = [{}, {"mask": mask, "shift": True, "entropy": True}]
        if hard:
            options += [{"ignore_index": None, "entropy": True}, {"mask": torch.zeros_like(mask)}]
        shards = distribute_tensor(logits, mesh, [Shard(-1)])
        (part, place), truth = uneven(logits), Truth(logits)
        for how in options:
            want = token_stats(logits, targets, **how)
            on_flat = token_stats(logits.flatten(0, 1), targets.flatten(), **flat(how))
            for name, got in (
                ("DTensor", token_stats(shards, targets, **how)),
                ("shard", token_stats(part, targets, vocab_shard=place, **how)),
                ("flat", token_stats(part.flatten(0, 1), targets.flatten(), vocab_shard=place, **flat(how))),
            ):
                check(got, on_flat if name == "flat" else want, truth, (name, vocab, dtype, how, hard))
                assert got.shared_by == tuple(range(ranks))
                found.append(bits(got))
    return found


def flat(how: dict[str, Any]) -> dict[str, Any]:
    """The same options for [N, V]."""
    mask = how.get("mask")
    return {**how, "shift": False, "mask": None if mask is None else mask.flatten()}


def small_losses(rank: int) -> list[tuple[float, float]]:
    """The loss of a target that is almost sure, from 1e-9 to 1e-3, its sum spread over the ranks; beside float64."""
    mesh, found = flat_mesh(), []
    for exponent, dtype in product(range(-9, -2), DTYPES):
        size = 10.0**exponent / 999
        logits = (torch.full((1, 1000), size).log() + torch.rand(1, 1000)).to(dtype)
        at = 321 + 200 * (exponent % 4)
        logits[0, at] = 0.0
        others = logits.double().exp().sum() - 1.0 if exponent > -4 else None
        if others is None:  # 1 + 1e-9 has lost digits even in float64
            others = torch.cat([logits[0, :at], logits[0, at + 1 :]]).double().exp().sum()
        got = token_stats(distribute_tensor(logits, mesh, [Shard(-1)]), torch.tensor([at])).nll.item()
        found.append((got, torch.log1p(others).item()))
    return found


class Collectives(TorchDispatchMode):
    """Counts collectives of any kind, as they are dispatched, and the bytes that this rank gives."""

    def __init__(self) -> None:
        super().__init__()
        self.names = Counter[str]()
        self.given = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Look at one operator and run it."""
        space, name = func._schema.name.split("::")
        if space in ("c10d", "_c10d_functional") and not name.startswith(("wait", "_wrap")):
            self.names[name] += 1
            given = args[1] if space == "c10d" else args[0]
            self.given += sum(t.nbytes for t in (given if isinstance(given, (list, tuple)) else [given]))
        return func(*args, **kwargs or {})


def counted(call: Callable[[], object]) -> tuple[dict[str, int], int]:
    """The collectives of a call, and the bytes given."""
    with Collectives() as seen:
        call()
    return dict(seen.names), seen.given


def traffic(rank: int) -> dict[str, tuple[dict[str, int], float]]:
    """The collectives of each way to measure, and their bytes per token; of one that gathers, too."""
    mesh, found = flat_mesh(), {}
    for dtype, entropy in product((torch.bfloat16, torch.float32, torch.float64), (False, True)):
        logits, targets = whole(1000, dtype)
        shards, (part, place) = distribute_tensor(logits, mesh, [Shard(-1)]), uneven(logits)
        for name, measured, where in (("DTensor", shards, None), ("shard", part, place)):
            names, given = counted(partial(token_stats, measured, targets, entropy=entropy, vocab_shard=where))
            found[f"{name} {str(dtype)[6:]}{' entropy' * entropy}"] = names, given / targets.numel()
    replicas, rows = (distribute_tensor(logits, mesh, [how]) for how in (Replicate(), Shard(0)))
    own = rows.to_local().shape[0]
    found["replicate"] = counted(lambda: token_stats(replicas, targets))
    found["rows"] = counted(lambda: token_stats(rows, targets[:own]))
    found["no tokens"] = counted(lambda: token_stats(shards[:0], targets[:0]))
    names, given = counted(lambda: token_stats(shards.full_tensor(), targets))
    found["gathered"] = names, given / targets.numel()
    return found


def memory(rank: int) -> tuple[int, int, int]:
    """Bytes of a shard, and the most that measuring it and gathering it allocate beside it."""
    from tests.test_tokens import peak_extra_bytes

    part = torch.zeros(4, 1024, 16384, dtype=torch.bfloat16)
    shards = DTensor.from_local(part, flat_mesh(), [Shard(-1)])
    targets = torch.zeros(4, 1024, dtype=torch.int64)
    small = DTensor.from_local(part[:, :128], flat_mesh(), [Shard(-1)])
    gathered = peak_extra_bytes(small.full_tensor)
    return part.nbytes, peak_extra_bytes(lambda: token_stats(shards, targets)), gathered


def two_dimensions(rank: int) -> list[Any]:
    """Rows over two ranks, the vocabulary over two: each measures its own rows, however the targets are given."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    logits, targets = whole(1001, torch.bfloat16)
    mask = torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.7
    mine = slice(2) if mesh["dp"].get_local_rank() == 0 else slice(2, 3)  # three rows: two and one
    shards = distribute_tensor(logits, mesh, [Shard(0), Shard(-1)])
    spread = distribute_tensor(targets, mesh, [Shard(0), Replicate()])
    masks = distribute_tensor(mask, mesh, [Shard(0), Replicate()])
    want = token_stats(logits[mine], targets[mine], mask=mask[mine], shift=True)
    for got in (
        token_stats(shards, targets[mine], mask=mask[mine], shift=True),
        token_stats(shards, spread, mask=masks, shift=True),
        token_stats(shards, spread, mask=mask[mine], shift=True),
        token_stats(distribute_tensor(logits, mesh, [Shard(0), Replicate()]), targets[mine], mask=masks, shift=True),
    ):
        check(got, want, Truth(logits[mine]))
    everywhere = token_stats(distribute_tensor(logits, mesh, [Replicate(), Shard(-1)]), targets)
    check(everywhere, token_stats(logits, targets), Truth(logits))
    assert everywhere.shared_by == tuple(mesh["tp"].mesh.tolist())
    small = distribute_tensor(whole(3, torch.float32)[0][:1], mesh, [Shard(0), Shard(-1)])  # one row: none on two ranks
    assert token_stats(small, targets[:1][: small.to_local().shape[0]] % 3).nll.numel() == (0 if mine.start else LENGTH)
    return bits(got)


def flattened(rank: int) -> None:
    """A module that flattens its logits: they are fitted to targets [B, T] without a collective, or not at all."""
    from pplmon.trainers.capture.modules import fitted

    logits, targets = whole(1000, torch.bfloat16)
    want = token_stats(logits, targets)
    shards = distribute_tensor(logits.flatten(0, 1), flat_mesh(), [Shard(-1)])
    seen, given = counted(lambda: check(token_stats(fitted(shards, targets), targets), want, Truth(logits)))
    assert (seen, given) == ({"_allgather_base_": 1}, 20 * targets.numel())
    rows = distribute_tensor(logits, flat_mesh(), [Shard(0)])
    mine = targets[: rows.to_local().shape[0]] if rank == 0 else targets[-rows.to_local().shape[0] :]
    assert fitted(rows, mine) is rows
    assert fitted(rows, targets[:0]) is None


def tallies(rank: int) -> dict[str, Any]:
    """A tally, a monitor and a view over 2 × 2 ranks: each token once, though two ranks measure it."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    data, tensor = mesh["dp"].get_local_rank(), mesh["tp"].get_local_rank()
    tally = TokenTally(process_group=mesh["dp"].get_group())
    view = pplmon.Perplexity(process_group=mesh["dp"].get_group())
    monitor = pplmon.Monitor(every_n_steps=2, tally=tally.clone(), alerts=[])
    place = VocabShard(mesh["tp"].get_group(), tensor * 600, tensor * 600 + 600, 1000)
    for step in range(2):
        logits, targets = whole(1000, torch.bfloat16, seed=2 * step + data)
        shards = distribute_tensor(logits, mesh["tp"], [Shard(-1)])
        part = torch.nn.functional.pad(logits, (0, 200))[..., tensor * 600 : tensor * 600 + 600]
        tally.update(shards, targets, step=step)
        view.update(part, targets, vocab_shard=place)
        monitor.observe(part, targets, vocab_shard=place)
        monitor.step()
    report, seen = tally.report(), monitor.close()
    worst = [(w.loss, w.step, w.rank, w.sequence, w.position, w.target, w.predicted) for w in report.worst]
    return {
        "numbers": report.as_dict(),
        "worst": worst,
        "view": view.compute().item(),
        "monitor": {k: v for k, v in seen.as_dict().items() if k != "tokens_seen"},
    }


class Raw:
    """An extra that looks at the logits it is given."""

    size = 1
    saw: Any = "nothing"

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **data: Tensor) -> Tensor:
        """Keep them."""
        self.saw = logits
        return torch.zeros(1, dtype=torch.int64)

    def numbers(self, sums: Any) -> dict[str, float]:
        """Nothing."""
        return {}


def error_of(call: Callable[[], object]) -> str:
    """What a call raises."""
    try:
        call()
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def once_only(rank: int) -> dict[str, Any]:
    """Two ranks that share a vocabulary: counted by all of them it is refused, by each alone it is not."""
    logits, targets = whole(100, torch.float32)
    shards = distribute_tensor(logits, flat_mesh(), [Shard(-1)])
    calls: dict[str, Callable[[], object]] = {
        "logits": lambda: TokenTally().update(shards, targets),
        "stats": lambda: TokenTally().update(token_stats(shards, targets)),
        "rows": lambda: TokenTally().update(token_stats(shards, targets).rows(0, 2)),
        "joined": lambda: TokenTally().update(TokenStats.join([token_stats(shards, targets)] * 2)),
        "monitor": lambda: pplmon.Monitor(alerts=[]).observe(shards, targets),
    }
    found: dict[str, Any] = {name: error_of(call) for name, call in calls.items()}
    raw = Raw()
    tally = TokenTally(process_group=dist.new_subgroups(1)[0], extras=[raw])
    tally.update(shards, targets)
    found["alone"], found["raw"] = tally.report().tokens, raw.saw
    tally.update(logits, targets)
    assert raw.saw is logits
    return found


def disagree(rank: int) -> list[list[bool]]:
    """Which tokens are NaN when the ranks do not measure the same: other targets on rank 1, then another V."""
    logits, targets = whole(100, torch.float32)
    shards = distribute_tensor(logits, flat_mesh(), [Shard(-1)])
    other = targets.clone()
    other[0, 3] = (other[0, 3] + 1) % 100
    found = [token_stats(shards, targets if rank == 0 else other, entropy=True)]
    ragged = DTensor.from_local(
        logits[..., : 60 - 20 * rank].contiguous(), flat_mesh(), [Shard(-1)]
    )  # 60 of 120, 40 of 80
    found.append(token_stats(ragged, targets % 40))
    assert torch.equal(found[0].nll.isnan(), found[0].entropy.isnan())
    return [stats.nll.isnan().tolist() for stats in found]


def refused(rank: int) -> dict[str, str]:
    """What each misuse raises, on every one of two ranks."""
    mesh, square = flat_mesh(), init_device_mesh("cpu", (2, 1), mesh_dim_names=("dp", "tp"))
    logits, targets = whole(100, torch.float32)
    shards, place = distribute_tensor(logits, mesh, [Shard(-1)]), VocabShard(None, 50 * rank, 50 * rank + 50, 100)
    rows = distribute_tensor(logits, mesh, [Shard(0)])
    summed = DTensor.from_local(logits, mesh, [torch.distributed.tensor.Partial()])
    spread = distribute_tensor(targets, mesh, [Shard(0)])
    calls: dict[str, Callable[[], object]] = {
        "positions": lambda: token_stats(distribute_tensor(logits, mesh, [Shard(1)]), targets),
        "partial": lambda: token_stats(summed, targets),
        "global targets": lambda: token_stats(rows, targets),
        "spread targets": lambda: token_stats(shards, spread),
        "spread targets, plain logits": lambda: token_stats(logits, spread),
        "spread mask": lambda: token_stats(shards, targets, mask=spread > 0),
        "whole targets": lambda: token_stats(rows, distribute_tensor(targets, mesh, [Replicate()])),
        "other mesh": lambda: token_stats(rows, distribute_tensor(targets, square, [Shard(0), Replicate()])),
        "both": lambda: token_stats(shards, targets, vocab_shard=place),
        "width": lambda: token_stats(logits, targets, vocab_shard=place),
        "stats": lambda: TokenTally().update(token_stats(logits, targets), vocab_shard=place),
        "kernel": lambda: token_stats(shards, targets, kernel="triton"),
        "gap": lambda: VocabShard(None, 60 * rank, 60 * rank + 50, 100),
        "overlap": lambda: VocabShard(None, 40 * rank, 40 * rank + 60, 100),
        "short": lambda: VocabShard(None, 50 * rank, 50 * rank + 50, 101),
        "sizes": lambda: VocabShard(None, 50 * rank, 50 * rank + 50, 99 + rank),
        "no ids": lambda: VocabShard(None, 0, 0, 0),
    }
    found = {name: error_of(call) for name, call in calls.items()}
    # … and what is not: a replicated target, on the mesh of the logits or another.
    for other in (mesh, square):
        same = distribute_tensor(targets, other, [Replicate()] * other.ndim)
        check(token_stats(shards, same), token_stats(logits, targets), Truth(logits))
        check(token_stats(logits, same), token_stats(logits, targets), Truth(logits))
    found["repr"] = repr(place)
    return found


def refused_on_four(rank: int) -> list[str]:
    """A vocabulary cut twice, and a place for a group that the rank is not in."""
    mesh = init_device_mesh("cpu", (2, 2))
    logits, targets = whole(100, torch.float32)
    group = dist.new_group([0, 1])
    twice = distribute_tensor(logits, mesh, [Shard(-1), Shard(-1)])
    return [
        error_of(lambda: token_stats(twice, targets)),
        error_of(lambda: VocabShard(group, 50 * (rank % 2), 50 * (rank % 2) + 50, 100)),
    ]
