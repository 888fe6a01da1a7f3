"""Devices that are not here: MPS has no float64, and on every accelerator a read by the host waits for the device."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pplmon
from pplmon import token_stats

READS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "unique", "equal"}


class Accelerator(TorchDispatchMode):
    """Refuse what MPS cannot hold, and what makes the host wait."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        assert name not in READS, f"the host waits for {name}"
        if name in ("index", "index_put_"):
            assert not any(isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(args)), (
                f"{name} by a mask"
            )
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            assert not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float64, f"{name} makes float64"
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocab", [7, 1000])  # without blocks, and with
def test_measuring_needs_nothing_that_mps_lacks(
    vocab: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither float64 nor a wait, from the logits to the tally's states."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)  # so that torch finds the argmax, as on a device
    logits, targets = torch.randn(3, 20, vocab).to(dtype), torch.randint(vocab, (3, 20))
    tally = pplmon.TokenTally()
    mask, documents = torch.rand(3, 20) < 0.9, torch.arange(20).expand(3, 20) // 10
    tally.update(logits, targets, mask=mask, document_ids=documents)  # what is made once is made
    with Accelerator():
        token_stats(logits, targets, mask=mask, shift=True, entropy=True)
        tally.update(logits, targets, mask=mask, document_ids=documents)
    assert tally.report().tokens == 2 * int(mask.sum())


def test_the_mode_sees_what_it_should() -> None:
    """The test above can fail."""
    x = torch.randn(4)
    for call in (lambda: x.double(), lambda: x.sum().item(), lambda: x[x > 0]):
        with pytest.raises(AssertionError), Accelerator():
            call()


def test_no_number_is_looked_at() -> None:
    """On the meta device, which holds none, measuring runs through and gives the right shapes."""
    logits, targets = torch.empty(3, 20, 1000, device="meta"), torch.empty(3, 20, dtype=torch.int64, device="meta")
    stats = token_stats(logits, targets, shift=True, entropy=True)
    assert stats.nll.device.type == "meta" and stats.nll.shape == stats.predicted.shape == stats.entropy.shape == (60,)


def test_a_default_device_is_not_that_of_the_logits() -> None:
    """Under ``torch.set_default_device`` what is made for logits on a CPU is made there."""
    logits, targets, tally = torch.randn(3, 20, 50), torch.randint(50, (3, 20)), pplmon.TokenTally()
    want = token_stats(logits, targets)
    with torch.device("meta"):
        got = token_stats(logits, targets)
        tally.update(logits, targets)
    assert torch.equal(got.nll, want.nll) and tally.report().tokens == 60


def test_pinned_memory_is_asked_of_the_host() -> None:
    """By name: with ``torch.set_default_device("cuda")`` it would be asked of the GPU, which raises."""
    asked = []
    for path in Path(pplmon.__file__).parent.rglob("*.py"):
        calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
        asked += [
            named for call in calls if "pin_memory" in (named := {k.arg: ast.unparse(k.value) for k in call.keywords})
        ]
    assert asked and all(named.get("device") == "'cpu'" for named in asked)
