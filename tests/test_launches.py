"""The launches of an update, counted without a GPU: launches are recorded instead of made, operators as dispatched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pplmon
from pplmon import TokenTally

pytest.importorskip("triton", reason="there is no Triton for this platform")
from pplmon.measure.triton import launch as measuring
from pplmon.tally.count import by_arrays
from pplmon.tally.count import choose as batch
from pplmon.tally.count.numpy_or_torch import OnTorch
from pplmon.tally.count.triton import launch as triton

# Operators that only allocate or look at memory in another way.
FREE = (
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "detach",
    "view",
    "_unsafe_view",
    "alias",
    "slice",
    "select",
)
FREE += ("unbind", "reshape", "expand", "unsqueeze", "squeeze", "as_strided", "t", "transpose", "permute")


class Operators(TorchDispatchMode):
    """Counts the operators that launch something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name not in FREE:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


class Kernel:
    """Stands in for a Triton kernel: notes that it was launched."""

    def __init__(self, name: str, launched: list[str]) -> None:
        self.name, self.launched = name, launched

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **named: self.launched.append(self.name)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Take CPU tensors for a GPU's, and note launches."""
    names: list[str] = []
    for name in ("cut", "count", "close_sequences", "finish"):
        monkeypatch.setattr(triton, name, Kernel(name, names))
    monkeypatch.setattr(batch, "kernels_for", lambda *given: triton)
    monkeypatch.setattr(by_arrays, "arrays_on", OnTorch)
    monkeypatch.setattr(measuring, "fits", lambda logits: True)
    monkeypatch.setattr(measuring, "_proved", set())
    monkeypatch.setattr(measuring, "_prove", lambda *kind: None)
    monkeypatch.setattr(measuring, "_launch", lambda *arguments: names.append("measure_row"))
    return names


COUNTING = ["count", "close_sequences", "finish"]
DOCUMENTS = {"document_ids": torch.zeros(4, 20, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("shape", "data", "expected"),
    [
        ((4, 20), {}, ["measure_row", *COUNTING, "new_zeros"]),
        ((4, 20), {"mask": torch.ones(4, 20, dtype=torch.bool)}, ["measure_row", *COUNTING, "new_zeros"]),
        ((4, 20), DOCUMENTS, ["measure_row", "cut", *COUNTING, "new_zeros"]),
        ((80,), {}, ["measure_row", "count", "finish", "new_zeros"]),
    ],
    ids=["rows", "masked", "packed", "flat"],
)
def test_an_update_from_logits_is_at_most_six_launches(
    shape: tuple[int, ...], data: dict[str, Any], expected: list[str], launched: list[str]
) -> None:
    """Measuring is one of them, counting three or four, and the sums of sequences are set to 0 by one."""
    tally = TokenTally(shift=len(shape) == 2)
    logits, targets = torch.randn(*shape, 50), torch.randint(50, shape)
    with Operators() as operators:
        tally.update(logits, targets, step=3, **data)
    assert sorted([*launched, *operators.count.elements()]) == sorted(expected)
    assert len(expected) <= 6


def test_what_is_held_for_a_moment(launched: list[str]) -> None:
    """Bytes a token: 27 to measure, 31 with entropy, 9 more to count a packed batch, and little beside them."""
    rows, length = 64, 1024
    tokens = rows * length
    logits = torch.empty(rows, length, 2)
    for entropy, expected in ((False, 27), (True, 31)):
        assert _bytes(measuring._outputs(logits, entropy)) == expected * tokens
    state = TokenTally()._state()
    plain, packed = (_bytes(triton._scratch(state, n, rows, tokens // triton.WIDTH + 1)) for n in (0, tokens))
    assert plain < 2**14 and packed - plain == 9 * tokens


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def test_operators_are_seen() -> None:
    """The count can fail: what array operations launch instead is some 180."""
    tally = TokenTally()
    stats = pplmon.token_stats(torch.randn(4, 20, 50), torch.randint(50, (4, 20)))
    with pytest.MonkeyPatch.context() as patch, Operators() as operators:
        patch.setattr(pplmon.tally.count.by_arrays, "arrays_on", pplmon.tally.count.numpy_or_torch.OnTorch)
        tally.update(stats)
    assert operators.count.total() > 60
