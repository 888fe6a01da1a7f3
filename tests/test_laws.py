"""The laws of the design that one process can show: split-invariance, no lost token, exact worst, no host sync, nothing kept."""

from __future__ import annotations

import gc
import io
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import pplmon
from pplmon import Report, TokenStats, TokenTally, Totals, token_stats
from pplmon.tally.count.numpy_or_torch import OnTorch
from tests.reference import rows_of

LENGTH = 9
# Losses that a token may have: non-finite, beyond the cap, at a bucket's edge, half a unit, subnormal, and many ties among them.
LOSSES = [0.0, 1e-42, 2.0**-33, 2.0**-20, 0.1, 1.0, 1.0, 2.5, 2.5, 17.3, 1023.9999, 1024.0, 3e38, math.nan, math.inf]


@st.composite
def stats(draw: st.DrawFn, rows: int) -> tuple[TokenStats, Tensor]:
    """A batch of any losses with ignored, masked and impossible targets, and document ids."""
    size = rows * LENGTH

    def column(values: st.SearchStrategy[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(draw(st.lists(values, min_size=size, max_size=size)), dtype=dtype).view(rows, LENGTH)

    seed = draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)
    nll = column(st.sampled_from(LOSSES), torch.float32)
    usual = torch.rand(rows, LENGTH, generator=generator) * 10
    nll = torch.where(torch.rand(rows, LENGTH, generator=generator) < 0.5, usual, nll)
    targets = column(st.sampled_from([0, 1, 2, 3, 4, 5, -100, 6, -1]), torch.int64)
    predicted = torch.randint(6, (rows, LENGTH), generator=generator)
    top = torch.rand(rows, LENGTH, generator=generator)
    mask = torch.rand(rows, LENGTH, generator=generator) < 0.9
    documents = (torch.rand(rows, LENGTH, generator=generator) < 0.2).cumsum(1)
    return TokenStats.from_losses(
        nll, targets, predicted=predicted, top_probability=top, vocab_size=6, mask=mask
    ), documents


def new() -> TokenTally:
    """A tally that keeps few rows, so that which ones matters, and short sequences."""
    return TokenTally(top_k=3, context=2, min_sequence_tokens=3, token_bytes=[1, 2, 3, 4, 0, 6])


def seen(report: Report) -> tuple[str, list[str], list[str]]:
    """Return all that must be bit-identical for any cut: every number, and the losses of the worst in order."""
    numbers = repr(sorted(report.as_dict().items()))
    return numbers, [repr(w.loss) for w in report.worst], [repr((s.loss, s.tokens)) for s in report.worst_sequences]


def feed(
    tally: TokenTally, batch: TokenStats, documents: Tensor | None, rows: list[int], step: int, micro: int
) -> None:
    """Count some rows of a batch."""
    tally.update(
        rows_of(batch, rows), document_ids=None if documents is None else documents[rows], step=step, micro_batch=micro
    )


def saved_and_loaded(tally: TokenTally) -> TokenTally:
    """What a resumed run has in hand: a new tally with the state that went through a file."""
    file = io.BytesIO()
    torch.save(tally.state_dict(), file)
    file.seek(0)
    fresh = new()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


# 12 rows cut into 1 to 12 parts in any order: all sizes from one batch to single sequences. 100 cases take four seconds.
ROWS = 12


@given(data=st.data())
def test_law_1_the_cut_does_not_matter(data: st.DataObject) -> None:
    """The same token stats give the same bits in any micro-batches, steps, order, tallies, windows, and across a resume."""
    batch, documents = data.draw(stats(ROWS))
    if data.draw(st.booleans(), "whole rows"):
        documents = None
    whole = new()
    feed(whole, batch, documents, list(range(ROWS)), 0, 0)
    order = data.draw(st.permutations(range(ROWS)), "order")
    cuts = sorted(data.draw(st.sets(st.integers(1, ROWS - 1), max_size=ROWS), "cuts"))
    tallies, windows = [new(), new()], [Totals()]
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, ROWS])):
        which = data.draw(st.integers(0, 1), "tally")
        feed(tallies[which], batch, documents, order[start:stop], data.draw(st.integers(0, 3), "step"), number)
        after = data.draw(st.sampled_from(["go on", "resume", "read out"]), "after")
        if after == "resume":
            tallies[which] = saved_and_loaded(tallies[which])
        elif after == "read out":
            windows.append(tallies[which].totals())
            tallies[which].reset()
    window = sum(windows, start=Totals())
    assert Totals.sum(windows) == window
    cut = tallies[0].totals() + (window + tallies[1].totals())
    assert seen(cut.report()) == seen(whole.report())


def test_law_1_sees_a_difference() -> None:
    """The comparison of law 1 can fail: one loss that is off by a unit in the last place shows."""
    nll = torch.rand(2, LENGTH) + 1
    reports = []
    for value in (nll, torch.where(torch.arange(LENGTH) == 4, torch.nextafter(nll, nll + 1), nll)):
        tally = new()
        tally.update(TokenStats.from_losses(value, torch.zeros(2, LENGTH, dtype=torch.int64)))
        reports.append(seen(tally.report()))
    assert reports[0] != reports[1]


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31), cuts=st.sets(st.integers(1, 5)), dtype=st.sampled_from([torch.float32, torch.bfloat16])
)
def test_law_1_from_logits(seed: int, cuts: set[int], dtype: torch.dtype) -> None:
    """From logits the counts are equal however they are cut, and the losses within 1e-6·max(1, lse)."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(6, LENGTH, 777, generator=generator) * 6).to(dtype)
    targets = torch.randint(777, (6, LENGTH), generator=generator)
    targets[:, 0] = logits[:, 0].argmax(-1)
    whole, parts = TokenTally(), TokenTally()
    whole.update(logits, targets)
    edges = [0, *sorted(cuts), 6]
    for start, stop in zip(edges, edges[1:]):
        parts.update(logits[start:stop], targets[start:stop], micro_batch=start)
    a, b = whole.report(), parts.report()
    limit = 1e-6 * max(1.0, logits.double().logsumexp(-1).abs().max().item())
    for name in ("tokens", "sequences", "token_accuracy", "nonfinite_tokens", "overconfident_error_rate"):
        assert a.numbers[name] == b.numbers[name], name
    for name in ("cross_entropy", "max_token_loss"):
        assert abs(a.numbers[name] - b.numbers[name]) <= limit, name


@given(
    st.floats(18, 1e4),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.integers(2, 300),
)
def test_law_2_one_token_cannot_ruin_the_number(depth: float, dtype: torch.dtype, vocab: int) -> None:
    """However far down the target is, its loss reads that far, and the run's cross-entropy rises by its share alone."""
    logits = torch.zeros(1, 20, vocab, dtype=dtype)
    logits[0, 7, 1] = -depth
    targets = torch.ones(1, 20, dtype=torch.int64)
    tally = TokenTally()
    tally.update(logits, targets)
    report = tally.report()
    down = -logits[0, 7, 1].item() + math.log(vocab - 1)
    assert report.max_token_loss == report.worst[0].loss == pytest.approx(down, rel=1e-6)
    assert report.cross_entropy == pytest.approx((19 * math.log(vocab) + min(down, 1024)) / 20, rel=1e-6)


def rank_of(loss: float) -> float:
    """NaN above inf above finite."""
    return math.inf if math.isnan(loss) else (1e300 if math.isinf(loss) else loss)


@given(batch=stats(6), keep=st.integers(1, 70), parts=st.integers(1, 6))
def test_law_3_the_worst_are_the_true_top_k(batch: tuple[TokenStats, Tensor], keep: int, parts: int) -> None:
    """The worst tokens are the first of all scored ones, sorted by loss and then by address."""
    measured, _ = batch
    tally = TokenTally(top_k=keep, context=0)
    every = []
    for number, rows in enumerate(torch.arange(6).tensor_split(parts)):
        part = rows_of(measured, rows.tolist())
        tally.update(part, step=number)
        for index in range(part.nll.numel()):
            if part.scored[index]:
                every.append((-rank_of(part.nll[index].item()), number, index // LENGTH, index % LENGTH))
    got = [(-rank_of(w.loss), w.step, w.sequence, w.position) for w in tally.report().worst]
    assert got == sorted(every)[:keep]


# Law 4. What waits for the device, or sends it something the host has just made: on CUDA each of these stalls the queue.
FORBIDDEN = (
    "local_scalar_dense",
    "nonzero",
    "masked_select",
    "lift_fresh",
    "item",
    "is_nonzero",
    "equal",
    "unique",
    "bincount",
)


class Watch(TorchDispatchMode):
    """Counts operators, and notes those that would make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.count = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Look at one operator and run it."""
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        self.count[name] += 1
        out = func(*args, **kwargs)
        if name.strip("_").startswith(FORBIDDEN):
            self.waits.append(name)
        if name.startswith(("index", "_index")) and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)
            for i in (args[1] if isinstance(args[1], (list, tuple)) else ())
        ):
            self.waits.append(f"{name} with bool indices")
        if (
            name in ("_to_copy", "copy_")
            and len({t.device for t in (args[0], args[-1], out) if isinstance(t, Tensor)}) > 1
        ):
            self.waits.append(f"{name} to another device")
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.waits.append(name)
        return out


def watched(call: Callable[[], object]) -> Watch:
    """Run a call under watch."""
    with Watch() as watch:
        call()
    return watch


def calls() -> dict[str, Callable[[], object]]:
    """Each way to count a batch."""
    logits, targets = torch.randn(4, 20, 50, dtype=torch.bfloat16), torch.randint(-1, 52, (4, 20))
    mask, documents = torch.rand(4, 20) < 0.9, (torch.rand(4, 20) < 0.1).cumsum(1)
    ready = token_stats(logits, targets)
    plain, full = TokenTally(), TokenTally(shift=True, token_bytes=torch.ones(50, dtype=torch.int64))
    collection = pplmon.Perplexity()
    monitor = pplmon.Monitor(every_n_steps=10**6)
    return {
        "logits": lambda: plain.update(logits, targets),
        "flat": lambda: plain.update(logits.flatten(0, 1), targets.flatten()),
        "all": lambda: full.update(
            logits, targets, mask=mask, document_ids=documents, sample_ids=torch.arange(4), step=3, micro_batch=2
        ),
        "stats": lambda: plain.update(ready),
        "view": lambda: collection.update(logits, targets),
        "stats alone": lambda: token_stats(logits, targets, mask=mask, shift=True, entropy=True),
        "losses": lambda: TokenStats.from_losses(ready.nll, targets.flatten(), predicted=ready.predicted),
        "observe": lambda: monitor.observe(logits, targets, mask=mask),
    }


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count CPU tensors as those of a device are counted: with torch's operators, which can be watched."""
    monkeypatch.setattr(pplmon.tally.count.by_arrays, "arrays_on", OnTorch)


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("name", calls())
def test_law_4_no_host_sync(name: str) -> None:
    """No operator of a measurement or an update waits for the device, on the first call and later."""
    call = calls()[name]
    for _ in range(2):
        watch = watched(call)
        assert watch.waits == [] and sum(watch.count.values()) > 5


def test_law_4_the_watch_can_fail() -> None:
    """The watch notices every kind of wait that it is there for."""
    x = torch.arange(6.0)
    meta = torch.empty(6, device="meta")
    offences: list[Callable[[], object]] = [
        lambda: x.sum().item(),
        lambda: bool(x.sum() > 3),
        lambda: x[x > 2],
        lambda: x.nonzero(),
        lambda: x.masked_select(x > 2),
        lambda: x.index_put_((x > 2,), torch.zeros(())),
        lambda: torch.tensor([1, 2, 3]),
        lambda: x.to("meta"),
        lambda: meta.copy_(x),
        lambda: torch.equal(x, x),
        lambda: x.unique(),
        lambda: x.long().bincount(),
        lambda: torch.repeat_interleave(x, x.long()),
        lambda: float(x.max()),
    ]
    for number, offence in enumerate(offences):
        assert watched(offence).waits, f"offence {number} passed unseen"


# Law 7.


@pytest.mark.parametrize("what", ["tally", "forward", "monitor", "stats"])
def test_law_7_nothing_logits_sized_is_kept(what: str) -> None:
    """When the caller lets go of the logits, they are gone: neither an update nor a read-out under way holds them."""
    logits, targets = torch.randn(3, 8, 100, requires_grad=True) * 1.0, torch.randint(100, (3, 8))
    storage = StorageWeakRef(
        logits.untyped_storage()
    )  # not a reference to the tensor: a view would keep the memory, too
    tally, monitor = TokenTally(), pplmon.Monitor(every_n_steps=1)
    if what == "tally":
        tally.update(logits, targets, document_ids=torch.zeros_like(targets))
    elif what == "forward":
        tally(logits, targets)
    elif what == "monitor":
        monitor.observe(logits, targets)
        monitor.step()
    else:
        held = token_stats(logits, targets, entropy=True)
        assert held.nll.untyped_storage().nbytes() <= 4 * 24
    view = logits.detach()[:1]
    del logits
    gc.collect()
    assert not storage.expired()  # the measurement can fail: a view of one row holds them all
    del view
    gc.collect()
    assert storage.expired()


def test_law_7_states_do_not_grow() -> None:
    """A thousand tokens or ten thousand: the tally stays below 20 KiB, buffers and all."""
    tally = TokenTally()
    sizes = []
    for count in (1, 9):
        for _ in range(count):
            tally.update(torch.randn(8, 125, 30), torch.randint(30, (8, 125)))
        sizes.append(sum(value.untyped_storage().nbytes() for value in tally.state_dict().values()))
    assert sizes[0] == sizes[1] < 20 * 1024
