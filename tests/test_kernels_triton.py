"""The Triton kernel against float64 and against the reference: natively where there is a GPU, else in Triton's interpreter."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import pplmon
from pplmon import TokenStats, token_stats
from pplmon.measure import pick as kernels
from pplmon.measure.triton import launch as kernel
from tests.interpreter import DEVICE, run

pytest.importorskip("triton", reason="there is no Triton for this platform")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MOSTLY = [  # make test leaves the one of 16 bits out that few train in; what is drawn at random has it
    pytest.param(dtype, marks=[pytest.mark.slow] * (dtype == torch.float16)) for dtype in DTYPES
]
# 1: the least row, all of it head. 7: no whole chunk. 1000: less than one block; a multiple of 8, so all rows start on a
# boundary. 4099: prime, so that rows start at every offset from a boundary; 3 blocks or more and a ragged one. 32000, 50257,
# 128256, 152064: the tokenizers of Llama 2, GPT-2, Llama 3 and Qwen 2; 50257 is the odd one among real vocabularies.
VOCABULARIES = (1, 7, 1000, 4099, 32000, 50257, 128256, 152064)
EXACT = ("correct", "predicted", "targets", "scored", "invalid")


def measured(logits: Tensor, targets: Tensor, poison: bool = False, **how: Any) -> TokenStats:
    """Measure with the kernel; ``poison`` fills new memory with NaN, the largest int and True before it is written."""
    torch.use_deterministic_algorithms(poison)
    try:
        return token_stats(logits, targets, kernel="triton", **how)
    finally:
        torch.use_deterministic_algorithms(False)


def triton(logits: Tensor, targets: Tensor, **how: Any) -> TokenStats:
    """Measure with the kernel, wherever it runs."""
    return run(measured, logits.to(DEVICE), targets.to(DEVICE), **how)


def batch(vocab: int, dtype: torch.dtype, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Logits [rows, length, vocab] of the size that training makes, and targets: half likely, half anywhere."""
    logits = (torch.randn(rows, length, vocab) * 3).to(dtype)
    targets = torch.randint(vocab, (rows, length))
    return logits, torch.where(torch.rand(rows, length) < 0.5, logits.argmax(-1), targets)


def check(logits: Tensor, targets: Tensor, entropy: bool = True) -> TokenStats:
    """Compare every token with float64 on the same values: losses to 2e-6 · max(1, |lse|), hits and argmax exactly."""
    stats = triton(logits, targets, entropy=entropy, poison=True)
    x, wanted = logits.detach().cpu().double().flatten(0, -2), targets.flatten()
    top, best = x.max(-1)
    below = x - top[:, None]
    log_total = torch.log1p(below.exp().scatter(1, best[:, None], 0.0).sum(-1))
    nll = top - x.gather(1, wanted[:, None]).squeeze(1) + log_total
    bound = 2e-6 * (top + log_total).abs().clamp_min(1)
    assert (stats.nll.cpu() >= 0).all() and ((stats.nll.cpu() - nll).abs() <= bound).all()
    assert torch.equal(stats.predicted.cpu(), best) and torch.equal(stats.correct.cpu(), best == wanted)
    torch.testing.assert_close(stats.top_probability.cpu().double(), (-log_total).exp(), rtol=2e-6, atol=0)
    if entropy:
        spread = log_total - torch.where(below == -torch.inf, 0.0, below * (below - log_total[:, None]).exp()).sum(-1)
        torch.testing.assert_close(stats.entropy.cpu().double(), spread, rtol=2e-6, atol=1e-12)
    else:
        assert stats.entropy is None
    assert stats.scored.all() and not stats.invalid.any() and torch.equal(stats.targets.cpu(), wanted)
    return stats


def check_as_reference(logits: Tensor, targets: Tensor, **how: Any) -> TokenStats:
    """Compare every column with the reference: ids and flags exactly, floats closely, NaN and inf in the same places."""
    got = triton(logits, targets, entropy=True, poison=True, **how)
    want = token_stats(logits.cpu(), targets, entropy=True, kernel="eager", **how)
    for name in EXACT:
        assert torch.equal(getattr(got, name).cpu(), getattr(want, name)), name
    lse = logits.double().flatten(0, -2).logsumexp(-1).nan_to_num(0, 0, 0).abs().clamp_min(1)
    for name, scale in (("nll", lse), ("top_probability", 1.0), ("entropy", lse)):
        one, two = getattr(got, name).cpu() / scale, getattr(want, name) / scale
        torch.testing.assert_close(one, two, rtol=4e-6, atol=2e-6, equal_nan=True, check_dtype=False, msg=name)
    assert (got.batch_shape, got.vocab_size, got.shift) == (want.batch_shape, want.vocab_size, want.shift)
    return got


@pytest.mark.parametrize("dtype", MOSTLY, ids=str)
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_agrees_with_float64(vocab: int, dtype: torch.dtype) -> None:
    check(*batch(vocab, dtype, 1, 3), entropy=vocab < 50000)


def test_any_number_of_rows() -> None:
    """One, and 17 · 17: no power of two, of which the program might know something."""
    logits, targets = batch(7, torch.bfloat16, 17, 17)
    check(logits, targets)
    check(logits[0, :1], targets[0, :1])


def test_no_rows() -> None:
    stats = triton(torch.zeros(0, 5, 9), torch.zeros(0, 5, dtype=torch.long), entropy=True)
    assert stats.nll.shape == stats.predicted.shape == stats.entropy.shape == (0,)


@pytest.mark.parametrize("dtype", MOSTLY, ids=str)
def test_the_lowest_index_wins_a_tie(dtype: torch.dtype) -> None:
    """Within a thread's chunk, across threads, warps and blocks, at the first and last column, and everywhere at once."""
    vocab, size = 4099, torch.finfo(dtype).bits // 8
    chunk = kernel.CHUNK_BYTES // size
    lanes, _ = kernel.shape_of_program(vocab * size)
    near = {
        0,
        1,
        chunk - 1,
        chunk,
        32 * chunk,
        64 * chunk,
        lanes * chunk - 1,
        lanes * chunk,
        3000,
        vocab - 2,
        vocab - 1,
    }
    pairs = [(a, b) for a in sorted(near) for b in sorted(near) if a < b]
    logits = torch.randn(len(pairs) + 2, vocab).clamp(-4, 4)  # 4099 is odd, so that rows start at every offset
    for row, pair in enumerate(pairs):
        logits[row, list(pair)] = 5.0
    logits[-2] = 0.25
    logits[-1, 1000:] = 5.0
    targets = torch.tensor([pair[row % 2] for row, pair in enumerate(pairs)] + [0, 1000])
    stats = check(logits.to(dtype), targets)
    assert stats.predicted.tolist() == [a for a, _ in pairs] + [0, 1000]
    assert stats.correct.tolist() == [row % 2 == 0 for row in range(len(pairs))] + [True, True]


@pytest.mark.parametrize("dtype", MOSTLY, ids=str)
@pytest.mark.parametrize("vocab", [9, 1000, 4099])
def test_small_losses_are_relatively_right(vocab: int, dtype: torch.dtype) -> None:
    """Down to e^-80, wherever the target stands: lse − x would give 0 below 1e-7."""
    places = torch.tensor([0, 1, vocab // 2, vocab - 2, vocab - 1])
    ahead = torch.tensor([16.0, 25.0, 40.0, 60.0, 80.0])
    logits = torch.rand(len(places), len(ahead), vocab).to(dtype).float()
    targets = places[:, None].expand(len(places), len(ahead))
    logits = logits.scatter(2, targets[..., None], ahead.expand_as(targets)[..., None]).to(dtype)
    stats = check(logits, targets)
    x = logits.double().flatten(0, 1)
    others = x - x.amax(-1, keepdim=True)
    nll = torch.log1p(others.exp().scatter(1, targets.reshape(-1, 1), 0.0).sum(-1))
    assert nll.max() < 1e-2 and nll.min() < 1e-30
    torch.testing.assert_close(stats.nll.cpu().double(), nll, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_huge_gaps(dtype: torch.dtype) -> None:
    """Logits 1e4 apart, rising and falling along the row, far from 0, and the largest there are."""
    vocab = 1003
    rising = torch.linspace(0, 1e4 * vocab, vocab)
    near = torch.randn(vocab)
    logits = torch.stack([rising, -rising, rising.flip(0), near + 1e4, near - 1e4, near * 1e4, near * 3e37]).to(dtype)
    targets = torch.tensor([vocab - 1, 0, 5, 7, 8, 9, 10])
    check(logits, targets)


def test_non_finite_rows_and_masked_vocabulary() -> None:
    """NaN, +inf and −inf wherever they stand; rows of only −inf, of only the lowest number, and NaN beside +inf."""
    inf, nan, vocab = torch.inf, torch.nan, 1003
    plants: list[dict[int, float]] = []
    for place in (0, 1, 500, vocab - 1):
        plants += [{place: nan}, {place: inf}, {place: -inf}, {place: nan, 600: inf}, {place: inf, 600: nan}]
        plants += [{place: inf, 700: inf}, {place: nan, 700: nan}]
    logits = torch.randn(len(plants) + 6, vocab)
    for row, plant in enumerate(plants):
        for place, value in plant.items():
            logits[row, place] = value
    rest = logits[len(plants) :]
    rest[0], rest[1], rest[2] = -inf, torch.finfo(torch.float32).min, nan
    rest[3, 1:] = -inf  # one token left
    rest[4, :900] = -inf  # whole blocks masked
    rest[5, ::2] = -inf
    targets = torch.arange(len(logits)) % vocab
    targets[: len(plants)] = torch.tensor([next(iter(plant)) for plant in plants])
    stats = check_as_reference(logits, targets)
    lost = torch.tensor(
        [any(v != -inf for v in plant.values()) for plant in plants] + [True, False, True] + [False] * 3
    )
    assert torch.equal(stats.nll.cpu().isnan(), lost)
    assert stats.nll[2] == inf and stats.nll[len(plants) + 1].item() == pytest.approx(math.log(vocab), rel=1e-6)
    fine = torch.isfinite(stats.nll)
    assert torch.isfinite(stats.entropy[fine]).all()  # a valid token has an entropy
    check_as_reference(logits.bfloat16(), targets)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("vocab", [5, 64, 1000, 4099])
def test_nothing_beside_the_row_is_read(vocab: int, dtype: torch.dtype) -> None:
    """Logits within a larger buffer of NaN, at every offset from a boundary."""
    for start in range(9) if vocab < 4099 else (0, 3, 8):
        for room in (1, 8):
            length = 2 * (vocab + room)
            buffer = torch.full((start + length + 8,), torch.nan, dtype=dtype, device=DEVICE)
            logits = buffer[start : start + length].view(2, vocab + room)[:, :vocab]
            logits.copy_(torch.randn(2, vocab) * 3)
            check(logits, torch.randint(vocab, (2,)), entropy=False)


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x[:, :-1],
        lambda x: x[:, ::2],
        lambda x: x.transpose(0, 1),
        lambda x: x[1:, :, 1:-1],
        lambda x: x[:1, :1].expand(3, 5, x.shape[-1]),
        lambda x: x.requires_grad_(),
    ],
    ids=["last position cut off", "every second", "swapped", "vocabulary cut", "expanded", "with a graph"],
)
def test_strided_logits(cut: Any) -> None:
    """Measured where they lie. Columns that pad the vocabulary are cut off by slicing."""
    logits = cut(batch(333, torch.bfloat16, 3, 6)[0].to(DEVICE))
    stats = check(logits, torch.randint(logits.shape[-1], logits.shape[:-1]))
    assert not stats.nll.requires_grad


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("ignore_index", [None, -100, 0])
@pytest.mark.parametrize("masked", [False, True])
def test_what_is_scored(masked: bool, ignore_index: int | None, shift: bool) -> None:
    """Ignored, masked, shifted and impossible targets, none of which is ever looked up."""
    logits, targets = batch(9, torch.float32, 4, 8)
    targets[0, :3], targets[1, 2], targets[2, 5], targets[3, 0] = 0, -100, 9, -1
    targets[2, 2], targets[2, 3], targets[1, 5] = 2**63 - 1, -(2**63), 2**40
    mask = torch.rand(4, 8) < 0.7 if masked else None
    check_as_reference(logits, targets, ignore_index=ignore_index, mask=mask, shift=shift)
    check_as_reference(logits[:, :1], targets[:, :1], ignore_index=ignore_index, shift=shift)


def test_a_batch_without_a_scored_token() -> None:
    logits, targets = batch(100, torch.float16, 2, 3)
    stats = check_as_reference(logits, torch.full_like(targets, -100))
    assert not stats.scored.any() and not stats.nll.any() and not stats.correct.any()
    check_as_reference(logits, targets, mask=torch.zeros_like(targets, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_targets_of_any_int(dtype: torch.dtype) -> None:
    """Also where they and the mask are slices of something larger."""
    logits, targets = batch(100, torch.bfloat16, 2, 3)
    wide = torch.full((2, 5), 77)
    wide[:, 1:-1] = targets
    check_as_reference(logits, wide.to(dtype)[:, 1:-1], mask=(torch.rand(2, 5) < 0.5)[:, 1:-1], shift=True)


LOGITS = st.sampled_from([0.0, 1.0, -1.5, 3.0, 3.0, 80.0, -80.0, 1e4, -torch.inf, -torch.inf, torch.inf, torch.nan])


@settings(max_examples=settings.default.max_examples * 2 // 5)
@given(st.data())
def test_equals_the_reference(data: st.DataObject) -> None:
    """Whatever the logits, dtype, shape, mask and targets."""
    rows, length, vocab = (data.draw(st.integers(1, most)) for most in (2, 3, 40))
    values = st.lists(LOGITS, min_size=rows * length * vocab, max_size=rows * length * vocab)
    logits = torch.tensor(data.draw(values), dtype=data.draw(st.sampled_from(DTYPES))).view(rows, length, vocab)
    ids = st.lists(st.integers(-2, vocab), min_size=rows * length, max_size=rows * length)
    targets = torch.tensor(data.draw(ids)).view(rows, length)
    flags = st.lists(st.booleans(), min_size=rows * length, max_size=rows * length)
    mask = torch.tensor(data.draw(flags)).view(rows, length) if data.draw(st.booleans()) else None
    ignore_index = data.draw(st.sampled_from([None, -1, 0]))
    check_as_reference(logits, targets, mask=mask, shift=data.draw(st.booleans()), ignore_index=ignore_index)


def test_a_tally_of_its_stats_is_that_of_the_reference() -> None:
    """The columns are interchangeable from here on."""
    logits, targets = batch(1000, torch.bfloat16, 2, 20)
    targets[0, :4] = -100
    ours, reference = pplmon.TokenTally(), pplmon.TokenTally()
    ours.update(triton(logits, targets))
    reference.update(token_stats(logits, targets, kernel="eager"))
    one, two = ours.report(), reference.report()
    assert (one.tokens, one.token_accuracy) == (two.tokens, two.token_accuracy)
    assert one.cross_entropy == pytest.approx(two.cross_entropy, rel=1e-6)


# Which kernel is taken, and what happens where Triton does not work.


def test_the_kernel_asked_for_has_to_fit() -> None:
    """Nothing is measured in another way than was asked for, and the error says what would fit."""
    targets = torch.zeros(2, dtype=torch.long)
    with pytest.raises(
        ValueError, match="kernel='triton' measures CUDA logits .* got logits on cpu; kernel=None takes"
    ):
        token_stats(torch.zeros(2, 5), targets, kernel="triton")
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        run(measured, torch.zeros(2, 5, dtype=torch.float64, device=DEVICE), targets.to(DEVICE))
    with pytest.raises(ValueError, match="got a last stride of 2"):
        run(measured, torch.zeros(2, 10, device=DEVICE)[:, ::2], targets.to(DEVICE))
    with pytest.raises(ValueError, match="must be one of eager, compiled, triton"):
        token_stats(torch.zeros(2, 5), targets, kernel="cuda")


def test_without_the_package_the_reference_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_installed", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="needs the package triton, which is not installed"):
        token_stats(torch.zeros(2, 5), torch.zeros(2, dtype=torch.long), kernel="triton")
    monkeypatch.setattr(kernel, "Tensor", object)
    assert not kernel.fits(on_cuda())


def on_cuda(dtype: torch.dtype = torch.float32, width: int = 5, stride: int = 1) -> Tensor:
    """Logits [2, width] that say they are on a GPU, and hold nothing."""
    with FakeTensorMode():
        return torch.empty_strided((2, width), (100, stride), dtype=dtype, device="cuda")


def test_cuda_logits_are_measured_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in fp64, of another stride or of another class go to the reference, as does everything on other devices."""
    assert kernels.pick(None, torch.zeros(2, 5)) == "eager"
    assert not kernel.fits(on_cuda())  # a subclass: its memory may not hold what it stands for
    monkeypatch.setattr(kernel, "Tensor", type(on_cuda()))
    assert all(kernels.pick(None, on_cuda(dtype)) == "triton" for dtype in DTYPES)
    assert kernels.pick(None, on_cuda(torch.float64)) == "eager"
    assert kernels.pick(None, on_cuda(stride=2)) == "eager"
    assert kernels.pick(None, on_cuda(width=1, stride=2)) == "triton"  # of one column there is no stride
    monkeypatch.setattr(kernel, "_broken", True)
    assert kernels.pick(None, on_cuda()) == "eager"


def test_where_triton_fails_the_reference_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one warning that says why and what follows; a kernel that was asked for by name fails."""
    logits, targets = batch(50, torch.float32, 2, 3)

    def fail(*arguments: object) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(kernel, "_launch", fail)
    monkeypatch.setattr(kernel, "_broken", False)
    monkeypatch.setattr(kernel, "fits", lambda logits: not kernel._broken)
    with pytest.warns(
        RuntimeWarning, match="pplmon: the Triton kernel does not work here: RuntimeError: Failed to find C"
    ):
        stats = token_stats(logits, targets, shift=True)
    want = token_stats(logits, targets, shift=True, kernel="eager")
    assert torch.equal(stats.nll, want.nll) and torch.equal(stats.targets, want.targets)
    assert torch.equal(token_stats(logits, targets).nll, token_stats(logits, targets, kernel="eager").nll)  # no warning
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="C compiler"):
        token_stats(logits, targets, kernel="triton")


def proof(wrong: str, vocab: int, dtype: torch.dtype, masked: bool, ignored: int | None, shift: bool) -> str:
    """What comes of the proof where one column is wrong by a little."""
    right = kernel._launch

    def launch(logits: Tensor, targets: Tensor, mask: Any, columns: kernel.Columns, *rest: Any) -> None:
        right(logits, targets, mask, columns, *rest)
        if wrong:
            column = getattr(columns, wrong)
            column[4] = ~column[4] if column.dtype == torch.bool else column[4] + (1 if wrong == "predicted" else 1e-3)

    with mock.patch.object(kernel, "_launch", launch):
        try:
            kernel._prove(torch.device(DEVICE), dtype, vocab, masked, ignored, shift, True)
        except ArithmeticError as error:
            return str(error)
        return "proved"


@pytest.mark.parametrize("wrong", ["nll", "predicted", "top_probability", "entropy", "scored"])
def test_a_kernel_that_differs_from_the_reference_is_not_trusted(wrong: str) -> None:
    """Before the first batch of a kind."""
    found = run(proof, wrong, 1003, torch.bfloat16, False, None, False)
    assert found == f"{wrong} of a few rows of torch.bfloat16 logits differ from the reference's"


# One column; fewer than are planted; rows of every alignment, and of one.
@pytest.mark.parametrize("vocab", [1, 7, 1003, 1024])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("masked", "ignored", "shift"), [(False, -100, False), (True, None, True), (True, 3, True)])
def test_a_kernel_that_does_not_differ_is_trusted(
    vocab: int, dtype: torch.dtype, masked: bool, ignored: int | None, shift: bool
) -> None:
    """Whatever the kind."""
    assert run(proof, "", vocab, dtype, masked, ignored, shift) == "proved"


def test_each_kind_is_proved_once_and_not_within_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of other lengths that take the same program are of the same kind; another mask, shift or dtype is not."""
    asked: list[int] = []
    monkeypatch.setattr(kernel, "_proved", set())
    monkeypatch.setattr(kernel, "_prove", lambda device, dtype, vocab, *flags: asked.append(vocab))
    monkeypatch.setattr(kernel, "_launch", lambda *arguments: None)
    targets = torch.zeros(2, 3, dtype=torch.int64)
    for vocab in (50, 50, 60):
        kernel.measure(torch.zeros(2, 3, vocab), targets, None, -100, False, False)
    assert asked == [50, 51]
    kernel.measure(torch.zeros(2, 3, 50), targets, targets == 0, -100, False, False)
    kernel.measure(torch.zeros(2, 3, 50).half(), targets, None, -100, False, False)
    kernel.measure(torch.zeros(2, 3, 50), targets, None, -100, True, True)
    kernel.measure(torch.zeros(2, 3, 9000), targets, None, -100, False, False)
    assert asked == [50, 51, 50, 51, 50, 51, 50, 51, 9000, 9001]


@pytest.mark.parametrize(("row_bytes", "warps"), [(2, 1), (16383, 1), (16384, 2), (32767, 2), (32768, 4), (304128, 4)])
def test_short_rows_take_few_warps(row_bytes: int, warps: int) -> None:
    """At least eight rounds of a KiB for each warp, or one warp."""
    assert kernel.shape_of_program(row_bytes) == (64 * warps, warps)


def test_the_proof_compares_ids_exactly() -> None:
    """``allclose`` would compare integers in the default dtype, which is bfloat16 in a step of bf16-true training."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert not kernel._agree(torch.tensor([1001]), torch.tensor([1000]))
        assert kernel._agree(torch.tensor([1001]), torch.tensor([1001]))
    finally:
        torch.set_default_dtype(torch.float32)
