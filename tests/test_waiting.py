"""The waits before a first batch, where ``torch.cuda.set_sync_debug_mode`` makes every wait an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from pplmon.measure.triton import launch as kernel
from pplmon.measure.waiting import waiting_allowed
from pplmon.tally.count import choose as batch
from tests.counting_tasks import KINDS


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every mode that is set, from 2 (error) on."""
    seen = [2]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: seen[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", seen.append)
    return seen


def test_waits_are_allowed_within_and_an_error_again_after(modes: list[int]) -> None:
    """Also where what is within fails."""
    with waiting_allowed(torch.device("cuda", 3)):
        assert modes[-1] == 0
    assert modes == [2, 0, 2]
    with pytest.raises(ArithmeticError), waiting_allowed(torch.device("cuda")):
        raise ArithmeticError
    assert modes[-1] == 2


def test_a_mode_that_forbids_nothing_is_left_alone(modes: list[int]) -> None:
    """PyTorch warns whenever it is first set, to whatever it may be."""
    modes[:] = [0]
    with waiting_allowed(torch.device("cuda")):
        pass
    assert modes == [0]


def test_a_cpu_has_no_such_mode(modes: list[int]) -> None:
    """PyTorch without CUDA is not asked."""
    with waiting_allowed(torch.device("cpu")):
        pass
    assert modes == [2]


def test_kernels_that_count_are_compared_where_waits_are_allowed(
    modes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error there would give them up for the whole run."""
    pytest.importorskip("triton", reason="there is no Triton for this platform")
    found: list[int] = []
    monkeypatch.setattr(batch, "differences", lambda kind, add: found.append(modes[-1]) or [])
    assert batch._prove(KINDS["full"]._replace(device=torch.device("cuda", 7))) is not None
    assert found == [0] and modes[-1] == 2


def test_a_kernel_that_measures_is_compared_where_waits_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both times, and nothing else happens there."""
    happened: list[str] = []

    @contextmanager
    def allowed(device: torch.device) -> Iterator[None]:
        happened.append("allowed")
        yield
        happened.append("forbidden")

    monkeypatch.setattr(kernel, "waiting_allowed", allowed)
    monkeypatch.setattr(kernel, "_proved", set())
    monkeypatch.setattr(kernel, "_prove", lambda *kind: happened.append("compared"))
    monkeypatch.setattr(kernel, "_launch", lambda *arguments: happened.append("launched"))
    kernel.measure(torch.zeros(2, 3, 50), torch.zeros(2, 3, dtype=torch.int64), None, -100, False, False)
    assert happened == ["allowed", "compared", "compared", "forbidden", "launched"]
