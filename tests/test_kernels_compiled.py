"""``kernel="compiled"``: the numbers of the reference, from one loop that torch.compile makes, and no more compiling than said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import pplmon
from pplmon import token_stats
from pplmon.measure import compiled, eager
from tests.test_tokens import STRIDED, peak_extra_bytes

ROOT = Path(__file__).parent.parent
COMPILER = next(filter(None, map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "cl"))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")

# 1000: fewer than four blocks, which the reference measures. 1024: four blocks. 4099: prime, and a last block of three. 32000 and
# 128256: real tokenizers that are whole blocks. 50257: one that is not. One row: compiled for itself unless prevented. 3, 289: chunks
# of eight rows and more, the last ragged.
VOCABULARIES = (1000, 1024, 4099, 32000, 50257, 128256)
ROWS = {1000: 289, 1024: 289, 4099: 289, 32000: 3, 50257: 1, 128256: 19}
DTYPES = (torch.float32, torch.bfloat16)
LIMIT = 2e-6


@pytest.fixture(autouse=True)
def whatever_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small batches be compiled, too, so that they can be many."""
    monkeypatch.setattr(compiled, "LEAST_VOCAB", 0)
    monkeypatch.setattr(compiled, "LEAST_LOGITS", 0)


def check(logits: Tensor, targets: Tensor) -> None:
    """Losses and entropies within 2e-6·max(1, |lse|) of float64, small losses relatively; the argmax exactly."""
    stats = token_stats(logits, targets, entropy=True, kernel="compiled")
    x = logits.double().flatten(0, -2)
    log_p = x.log_softmax(-1)
    # log_softmax cancels where nll is small, and there the sum of the others does not.
    others = x.scatter(1, targets.view(-1, 1), -torch.inf).logsumexp(-1) - x.gather(1, targets.view(-1, 1)).squeeze(1)
    want = torch.nn.functional.softplus(others)
    allowed = LIMIT * x.logsumexp(-1).abs().clamp_min(1)
    off = (stats.nll.double() - want).abs()
    assert (off <= torch.minimum(allowed, 1e-4 * want + 1e-30)).all(), (off / allowed).max()
    assert torch.equal(stats.predicted, x.argmax(-1))
    assert torch.equal(stats.correct, x.argmax(-1) == targets.flatten())
    torch.testing.assert_close(stats.top_probability.double(), log_p.amax(-1).exp(), rtol=LIMIT, atol=0)
    entropy = -torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close(stats.entropy.double(), entropy, rtol=3e-6, atol=1e-6)


def rows_of(vocab: int, dtype: torch.dtype, rows: int) -> tuple[Tensor, Tensor]:
    """Logits as training makes them; of every five targets one is the argmax, and one row of five is sure of itself."""
    logits = torch.randn(rows, vocab) * 3
    targets = torch.randint(vocab, (rows,))
    logits[::5] = torch.randn(vocab)
    logits[torch.arange(0, rows, 5), targets[::5]] = 30.0
    logits = logits.to(dtype)
    return logits, torch.where(torch.arange(rows) % 5 == 1, logits.argmax(-1), targets)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_agrees_with_float64(vocab: int, dtype: torch.dtype) -> None:
    check(*rows_of(vocab, dtype, ROWS[vocab]))


@needs_compiler
def test_half_precision_is_measured_too() -> None:
    check(*rows_of(4099, torch.float16, 5))


@needs_compiler
@pytest.mark.parametrize("below", [0.35, 0.7, 5.1, 11.9])
def test_equal_logits_add_up(below: float) -> None:
    """Where all logits but one are equal a float32 sum of 152064 / 16 equal terms is off by 7e-5."""
    logits = torch.full((2, 152064), -below)
    logits[:, 7] = 0.0
    check(logits, torch.tensor([7, 9]))


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_lowest_index_wins_a_tie(dtype: torch.dtype) -> None:
    """Within a block, over blocks, and between a block and the columns that are left over after the last."""
    vocab = 4 * compiled.BLOCK + 3
    pairs = [(0, 1), (255, 256), (3, 700), (255, vocab - 1), (1023, 1024), (1024, 1026), (5, 900)]
    logits = torch.randn(len(pairs), vocab).to(dtype)
    for row, pair in zip(logits, pairs):
        row[list(pair)] = 8.0
    targets = torch.tensor([pair[i % 2] for i, pair in enumerate(pairs)])
    check(logits, targets)
    got = token_stats(logits, targets, kernel="compiled")
    assert got.predicted.tolist() == [pair[0] for pair in pairs]
    assert got.correct.tolist() == [i % 2 == 0 for i in range(len(pairs))]


@needs_compiler
@pytest.mark.parametrize("vocab", [1024, 1027])
def test_masked_vocabulary_and_non_finite_rows(vocab: int) -> None:
    """What is NaN and what is inf in the reference is that here: in the argmax's block, in another, and in what is left over."""
    inf, nan = torch.inf, torch.nan
    rows = torch.randn(16, vocab)
    rows[0, 256:512] = -inf  # a block without a logit
    rows[1, :] = -inf
    rows[2, 1:] = -inf
    rows[3, : vocab - 1] = -inf
    for row, (place, value) in enumerate(
        [(0, nan), (300, nan), (vocab - 1, nan), (0, inf), (vocab - 1, inf), (300, inf)], 4
    ):
        rows[row, place] = value
    rows[10, [3, 900]] = inf
    rows[11, 5], rows[11, 900] = inf, nan
    rows[12] = 3e38  # finite, and so is what is found
    rows[12, 1] = -3e38
    targets = torch.randint(vocab, (16,))
    targets[0], targets[2], targets[3] = 300, 0, vocab - 1
    got = token_stats(rows, targets, entropy=True, kernel="compiled")
    want = token_stats(rows, targets, entropy=True, kernel="eager")
    assert want.nll[0] == inf and want.nll[2] == 0
    assert (
        torch.isnan(want.nll[[1, *range(4, 12)]]).all() and not torch.isnan(want.nll[[0, 2, 3, *range(12, 16)]]).any()
    )
    well = ~torch.isnan(want.nll)
    assert torch.equal(got.predicted[well], want.predicted[well])
    for name in ("nll", "top_probability", "entropy"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=2e-6, atol=1e-6, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("name", STRIDED)
def test_strides_do_not_matter(name: str) -> None:
    """A view gives what its copy gives; what the loop cannot take in, the reference measures."""
    logits = STRIDED[name](torch.randn(3, 19, 4099))
    targets = torch.randint(logits.shape[-1], logits.shape[:-1])
    check(logits, targets)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
def test_chunks_do_not_show(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token alone, and among others that are cut in whatever way, has the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        logits, targets = rows_of(4099, torch.float32, 67)
        want = compiled.measure(logits, targets)
        alone = [compiled.measure(logits[i : i + 1], targets[i : i + 1]) for i in range(67)]
        monkeypatch.setattr(compiled, "CHUNK_LOGITS", 11 * 4099)
        for got in (compiled.measure(logits, targets), map(torch.cat, zip(*(one[:3] for one in alone)))):
            for column, wanted in zip(list(got)[:3], want):
                assert torch.equal(column, wanted)
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_it_is_compiled_twice_at_most() -> None:
    """Once for V in whole blocks and once for others, whatever N, V, the strides and autocast are then; entropy is another loop."""
    torch._dynamo.reset()
    compiled._loop.cache_clear()
    seen = counters["stats"]["unique_graphs"]
    shapes = [(29, 4099), (1, 4099), (2, 1024), (64, 1024), (7, 32000), (16, 4096), (40, 10_240), (1, 2048), (3, 50257)]
    for rows, vocab in shapes:
        logits = torch.randn(2, rows, vocab)
        compiled.measure(logits[0], torch.zeros(rows, dtype=torch.int64))
        if rows > 1:
            compiled.measure(logits[:, 1:], torch.zeros(2 * (rows - 1), dtype=torch.int64))
        with torch.autocast("cpu"):
            compiled.measure(logits, torch.zeros(2 * rows, dtype=torch.int64))
    assert counters["stats"]["unique_graphs"] - seen <= 2
    assert not compiled._refused


@needs_compiler
@pytest.mark.parametrize("rows", [512, 2048])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_peak_memory(dtype: torch.dtype, rows: int) -> None:
    """Within 2 % of the logits at V = 32768, for a small batch, too."""
    logits, targets = torch.zeros(rows, 32768, dtype=dtype), torch.zeros(rows, dtype=torch.int64)
    token_stats(logits[:40], targets[:40], kernel="compiled")
    used = peak_extra_bytes(lambda: token_stats(logits, targets, kernel="compiled"))
    assert 0 < used <= 0.02 * logits.numel() * logits.element_size()


@needs_compiler
def test_a_tally_measures_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The option reaches the kernel, and the totals are the reference's."""
    calls = []
    measure = compiled.measure
    monkeypatch.setattr(compiled, "measure", lambda *args: calls.append(args) or measure(*args))
    logits, targets = rows_of(4099, torch.float32, 20)
    reports = []
    for kernel in ("compiled", "eager", None):
        tally = pplmon.TokenTally(kernel=kernel)
        tally.update(logits, targets)
        reports.append(tally.report())
    assert len(calls) == 1  # None stays with the reference: a compiler and its seconds are asked for
    assert reports[0].cross_entropy == pytest.approx(reports[1].cross_entropy, rel=1e-6)
    assert reports[0].token_accuracy == reports[1].token_accuracy


WITHOUT_COMPILER = """
import warnings, torch
from pplmon import token_stats
from pplmon.measure import compiled
compiled.LEAST_VOCAB = compiled.LEAST_LOGITS = 0
torch.manual_seed(0)
logits, targets = torch.randn(5, 4099), torch.randint(4099, (5,))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    stats = [token_stats(logits.to(dtype), targets, kernel="compiled") for dtype in (torch.float32, torch.float32, torch.bfloat16)]
ours = [str(w.message) for w in caught if "pplmon" in str(w.message)]
assert len(ours) == 1 and "eager kernel measures instead" in ours[0] and "C++ compiler" in ours[0], ours
assert torch.equal(stats[1].nll, token_stats(logits, targets).nll)
"""


def test_without_a_compiler_the_reference_measures(tmp_path: Path) -> None:
    """One warning, no error, and the numbers."""
    environment = {
        **os.environ,
        "CXX": "/nonexistent",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_float64_and_small_vocabularies_are_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp64 ties are those of the logits, and of few logits no loop is made."""
    monkeypatch.setattr(compiled, "_loop", lambda *way: pytest.fail("compiled"))
    for logits in (
        torch.randn(3, 4099, dtype=torch.float64),
        torch.randn(3, 100),
        torch.randn(4099, 3).t(),
        torch.randn(0, 4099),
    ):
        targets = torch.zeros(len(logits), dtype=torch.int64)
        got, want = compiled.measure(logits, targets, True), eager.measure(logits, targets, True)
        assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_an_unknown_kernel_is_named() -> None:
    with pytest.raises(ValueError, match=r"eager.*compiled.*'compile'"):
        token_stats(torch.randn(2, 5), torch.zeros(2, dtype=torch.int64), kernel="compile")


def test_what_is_too_small_is_measured_by_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short rows and small batches would take longer, and are not compiled."""
    monkeypatch.undo()
    assert compiled.suits(torch.empty(1024, 8192)) and compiled.suits(torch.empty(2, 512, 8192))
    assert not compiled.suits(torch.empty(1025, 8191)) and not compiled.suits(torch.empty(1023, 8192))
    assert not compiled.suits(torch.empty(1024, 8192, dtype=torch.float64))


@needs_compiler
@pytest.mark.parametrize("kernel", ["eager", "compiled"])
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
def test_the_default_dtype_changes_nothing(default: torch.dtype, kernel: str) -> None:
    """A step of Lightning's bf16-true training runs with bfloat16 as the default."""
    logits, targets = rows_of(4099, torch.float32, 19)
    want = token_stats(logits, targets, entropy=True, kernel=kernel)
    torch.set_default_dtype(default)
    try:
        got = token_stats(logits, targets, entropy=True, kernel=kernel)
    finally:
        torch.set_default_dtype(torch.float32)
    for name in ("nll", "top_probability", "entropy"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name
