"""Law 4 on a real device: nothing waits. Skipped where there is none; ``test_laws`` watches the operators everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import pplmon
from pplmon import TokenTally
from pplmon.doctor.overwritten import LOOKS, Overwritten
from pplmon.tally.count.choose import differences
from tests.counting_tasks import KINDS
from tests.extras_cases import feed, tally_of
from tests.extras_reference import random_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="torch.cuda.is_available() is False: there is no GPU here"
    ),
]


@contextmanager
def no_sync() -> Iterator[None]:
    """Make every wait of the host for the device an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def batch() -> tuple[Tensor, Tensor]:
    """Logits [4, 32, 1000] in bfloat16, and targets of which some are ignored or impossible."""
    targets = torch.randint(-1, 1001, (4, 32), device="cuda")
    targets[:, :3] = -100
    return torch.randn(4, 32, 1000, device="cuda", dtype=torch.bfloat16), targets


def test_the_mode_can_fail() -> None:
    """It notices a wait."""
    value = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="synchroniz"), no_sync():
        value.sum().item()


def test_update_and_the_start_of_a_read_out_wait_for_nothing() -> None:
    """With everything that a batch may bring, on the second call as on the first."""
    logits, targets = batch()
    mask, documents = torch.rand(4, 32, device="cuda") < 0.9, (torch.rand(4, 32, device="cuda") < 0.1).cumsum(1)
    samples = torch.arange(4, device="cuda")
    tally = TokenTally().to("cuda")
    tally.update(logits, targets)  # the first call moves states and compiles kernels
    tally.read_out().totals()
    with no_sync():
        for step in range(2):
            tally.update(logits, targets, mask=mask, document_ids=documents, sample_ids=samples, step=step)
        under_way = tally.read_out()
    totals = under_way.totals()
    assert totals == tally.local_totals() and totals["tokens"] > 0


def test_observe_and_step_wait_for_nothing_but_the_step_before() -> None:
    """A monitor that judges every step starts its read-out without a wait."""
    logits, targets = batch()
    targets = targets.clamp(0, 999)
    monitor = pplmon.Monitor(alerts=[], tally=TokenTally().to("cuda"))
    monitor.observe(logits, targets)
    monitor.step()
    monitor.collect()
    with no_sync():
        monitor.observe(logits, targets)
        monitor.step()
    report = monitor.close()
    assert report is not None and report.tokens == 2 * targets.numel()


def test_the_first_step_may_stand_where_every_wait_is_an_error() -> None:
    """A tally moves to the device, and kernels are compared with the reference, whatever the mode; without a warning."""
    from pplmon.measure.triton import launch as triton

    logits, targets = batch()
    monitor = pplmon.Monitor(alerts=[])
    with no_sync():
        for _ in range(2):
            monitor.observe(logits.half(), targets.clamp(0, 999))  # a dtype that no other test here has proved
            monitor.step()
    assert triton.fits(logits.half()) and monitor.close().tokens == 2 * targets.numel()


def test_a_default_device_of_the_user_s_is_no_harm() -> None:
    """Tensors that belong on the host are made there."""
    logits, targets = batch()
    with torch.device("cuda"):
        monitor = pplmon.Monitor(alerts=[])
        for _ in range(LOOKS + 1):
            monitor.observe(logits, targets.clamp(0, 999))
            monitor.step()
        assert monitor.close().tokens > 0


def test_looking_for_overwritten_logits_waits_for_nothing() -> None:
    """The counts of the first micro-batches come to the host by themselves, and are judged when they are there."""
    logits = torch.full((4, 32, 1000), 0.001, device="cuda")
    logits[..., 7] = -0.999
    targets, looking = torch.full((4, 32), 7, device="cuda"), Overwritten()

    def look(times: int) -> None:
        with no_sync():
            for _ in range(times):
                looking.look(logits, targets, -100, shift=False)
        torch.cuda.synchronize()

    with pytest.warns(RuntimeWarning, match="64 of 64 rows"):  # the last of the four may find the counts there already
        [look(times) for times in (LOOKS, 1)]


def test_update_is_captured_in_a_cuda_graph() -> None:
    """Capture refuses every wait; what a replay counts is what an update counts."""
    logits, targets = batch()
    expected, tally = TokenTally().to("cuda"), TokenTally().to("cuda")
    expected.update(logits, targets)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        tally.update(logits, targets)  # warm up
    torch.cuda.current_stream().wait_stream(side)
    tally.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tally.update(logits, targets)
    for replays in (1, 3):  # after a reset it counts on where it was captured
        tally.reset()
        expected.reset()
        for _ in range(replays):
            graph.replay()
            expected.update(logits, targets)
        torch.cuda.synchronize()
        assert tally.local_totals() == expected.local_totals()


def test_an_update_is_at_most_six_launches_and_allocates_nothing_new() -> None:
    """After the first ones: measuring, and counting with documents in the rows."""
    logits, targets = batch()
    documents = (torch.rand(4, 32, device="cuda") < 0.1).cumsum(1)
    tally = TokenTally(shift=True).to("cuda")
    for _ in range(3):
        tally.update(logits, targets, document_ids=documents)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["num_device_alloc"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        tally.update(logits, targets, document_ids=documents)
        torch.cuda.synchronize()
    launched = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert 1 <= len(launched) <= 6, launched
    assert torch.cuda.memory_stats()["num_device_alloc"] == before


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_and_array_operations_count_alike(kind: str) -> None:
    """The proof that is made before the kernels are trusted holds on this device."""
    from pplmon.tally.count.triton import launch as triton  # needs Triton

    assert differences(KINDS[kind], triton.add) == []


@pytest.mark.parametrize("shift", [False, True])
def test_extras_wait_for_nothing_and_count_as_on_a_cpu(shift: bool) -> None:
    """All of them: of the same stats the same integers, and from logits the same numbers, without a wait after the first call."""
    given = random_batch(1, shift)
    data = {name: value.cuda() for name, value in given.data.items()}
    stats = pplmon.token_stats(given.logits, given.targets, mask=given.data["mask"], shift=shift, entropy=True)
    columns = {name: value.cuda() for name, value in vars(stats).items() if isinstance(value, Tensor)}
    more = {name: value for name, value in given.data.items() if name != "mask"}
    here, there, read = tally_of(given), tally_of(given).to("cuda"), tally_of(given).to("cuda")
    here.update(stats, **more)
    there.update(replace(stats, **columns), **{name: data[name] for name in more})
    assert there.totals().integers() == here.totals().integers()
    logits, targets = given.logits.cuda(), given.targets.cuda()
    read.update(logits, targets, **data)  # the first call copies the table of classes
    with no_sync():
        read.update(logits, targets, **data)
    whole = tally_of(given)
    for _ in range(2):
        feed(whole, given, slice(None))
    expected = whole.report().numbers
    for name, value in read.report().numbers.items():
        want = expected[name]
        assert value is want or value == pytest.approx(want, rel=1e-5, abs=1e-5, nan_ok=True), name
