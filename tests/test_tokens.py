"""``token_stats`` and ``from_losses`` against float64, at the edges of dtype, shape and range."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.text
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

import pplmon
from pplmon import Entropy, TokenStats, TokenTally, token_stats
from pplmon.measure import eager
from tests.reference import measure, tokens_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# 1: nothing to choose. 2: the least softmax. 7: less than a vector register. 1000: many rows in one chunk. 4099: prime, so no
# vector width fits. 32000: a real tokenizer, 16 rows a chunk, so that 21 rows need two and the second is ragged.
VOCABULARIES = (1, 2, 7, 1000, 4099, 32000)


def batch(vocab: int, dtype: torch.dtype, rows: int = 3, length: int = 7) -> tuple[Tensor, Tensor]:
    """Logits of the size that training makes, and targets: half likely, half anywhere."""
    logits = (torch.randn(rows, length, vocab) * 3).to(dtype)
    targets = torch.randint(vocab, (rows, length))
    return logits, torch.where(torch.rand(rows, length) < 0.5, logits.argmax(-1), targets)


def check(stats: TokenStats, logits: Tensor, targets: Tensor, **how: Any) -> None:
    """Compare every token with the reference: losses to 1e-6 relative, all else exactly."""
    expected = tokens_of(logits, targets, **how)
    if how.get("shift"):  # row t of the stats holds the target of column t+1, the last row that of column 0
        columns = targets.shape[1]
        expected = [expected[i - i % columns + (i + 1) % columns] for i in range(len(expected))]
    got = zip(
        stats.nll.tolist(), stats.correct, stats.top_probability.tolist(), stats.predicted, stats.scored, stats.invalid
    )
    for index, (nll, correct, top, predicted, scored, invalid) in enumerate(got):
        want = expected[index]
        assert (bool(scored), bool(invalid)) == (want.scored, want.invalid), index
        if not want.scored:
            assert nll == 0 and not correct
        elif math.isnan(want.nll):
            assert math.isnan(nll)
        else:
            assert nll == pytest.approx(want.nll, rel=1e-6, abs=1e-12), index
            assert math.copysign(1, nll) == 1
            assert (int(predicted), bool(correct)) == (want.predicted, want.correct)
            assert top == pytest.approx(want.top_probability, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_agrees_with_float64(vocab: int, dtype: torch.dtype) -> None:
    """Both layouts give each token the loss, argmax and probability that float64 gives on the same logits."""
    logits, targets = batch(vocab, dtype)
    check(token_stats(logits, targets), logits, targets)
    flat = token_stats(logits.flatten(0, 1), targets.flatten())
    check(flat, logits.flatten(0, 1), targets.flatten())
    assert (flat.vocab_size, flat.batch_shape) == (vocab, (21,))


STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "last position cut off": lambda x: x[:, :-1],
    "every second position": lambda x: x[:, ::2],
    "rows and positions swapped": lambda x: x.transpose(0, 1),
    "vocabulary first": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "vocabulary cut": lambda x: x[..., 1:-1],
    "expanded": lambda x: x[:1, :1].expand(3, 5, x.shape[-1]),
    "flat, transposed": lambda x: x.flatten(0, 1).t().contiguous().t(),
}


@pytest.mark.parametrize("name", STRIDED)
# 70001 > 2^19 / 16: a chunk has fewer rows than a sequence has positions. 11: one chunk would hold all sequences.
@pytest.mark.parametrize("vocab", [11, 70001])
def test_strides_do_not_matter(name: str, vocab: int) -> None:
    """A view of the logits gives what its contiguous copy and float64 give, also where a sequence spans chunks."""
    length = 7 if vocab == 11 else 19
    logits = STRIDED[name](torch.randn(3, length, vocab))
    targets = torch.randint(logits.shape[-1], logits.shape[:-1])
    got, want = token_stats(logits, targets), token_stats(logits.contiguous(), targets)
    assert torch.equal(got.predicted, want.predicted)
    torch.testing.assert_close(got.nll, want.nll, rtol=1e-6, atol=0)
    torch.testing.assert_close(got.top_probability, want.top_probability, rtol=1e-6, atol=0)
    expected = torch.nn.functional.cross_entropy(logits.double().flatten(0, -2), targets.flatten(), reduction="none")
    torch.testing.assert_close(got.nll.double(), expected, rtol=1e-6, atol=1e-7)


def test_one_row_alone_gives_the_bits_it_gives_among_others() -> None:
    """A token measured alone equals itself in a batch: torch sums a lone row over threads unless that is prevented."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for vocab in (50257, 128256):  # GPT-2 and Llama 3, where the prototype saw other bits
            logits, targets = torch.randn(20, vocab), torch.randint(vocab, (20,))
            logits[torch.arange(20), targets] = 16.0  # small losses show every bit of the sum
            together = token_stats(logits, targets).nll
            alone = torch.cat([token_stats(logits[i : i + 1], targets[i : i + 1]).nll for i in range(20)])
            assert torch.equal(together, alone)
    finally:
        torch.set_num_threads(threads)


# 2, 7: few terms, so that a bit of one shows in the sum. 600: blocks, the last a part of one. 3 threads do not divide the rest.
@pytest.mark.parametrize("vocab", [2, 7, 600])
@pytest.mark.parametrize("entropy", [False, True])
def test_chunks_and_threads_do_not_show(vocab: int, entropy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits are the same however the rows are cut, and on however many threads: torch's exp2 has others at loose ends."""
    rows = 150_001 // vocab  # enough for five threads
    logits, targets = torch.randn(rows, vocab) * 3, torch.randint(vocab, (rows,))
    logits[:, 0] = 12.0  # small losses show every bit of the sum
    targets[::2] = 0
    want = eager.measure(logits, targets, entropy)
    monkeypatch.setattr(eager, "SHARE", 1)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for limit in (1, 2**15, 2**22) if vocab > 7 else (2**15, 2**22):
                monkeypatch.setattr(eager, "CHUNK_LOGITS", limit)
                for got, wanted in zip(eager.measure(logits, targets, entropy), want):
                    assert wanted is None or torch.equal(got, wanted)
    finally:
        torch.set_num_threads(threads)


# Around 4 blocks, the fewest that are looked at as blocks, and with a last one that is whole, a single logit, or all but one.
@pytest.mark.parametrize("vocab", [4 * eager.BLOCK + extra for extra in (-1, 0, 1, eager.BLOCK - 1, eager.BLOCK)])
@pytest.mark.parametrize("threads", [1, 1000])
def test_the_argmax_is_that_of_rows(vocab: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By numpy and by blocks a maximum, a tie or a NaN is found at the index at which ``max`` finds it, wherever it stands."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    edges = [
        0,
        1,
        eager.BLOCK - 1,
        eager.BLOCK,
        2 * eager.BLOCK + 5,
        vocab - eager.BLOCK - 1,
        vocab - eager.BLOCK,
        vocab - 1,
    ]
    pairs = [(i, j) for i in edges for j in edges]
    for value in (9.0, torch.inf, torch.nan, -torch.inf):
        rows = torch.randn(len(pairs), vocab) if value != -torch.inf else torch.full((len(pairs), vocab), value)
        for row, pair in zip(rows, pairs):
            row[list(pair)] = value
        for got, want in zip(eager.argmax(rows), rows.max(dim=-1, keepdim=True)):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_lowest_index_wins_a_tie(dtype: torch.dtype) -> None:
    """A tie is broken as ``argmax`` does, so only the lower of two equal logits is correct."""
    logits = torch.zeros(4, 300, dtype=dtype)
    logits[0, [7, 250]] = 2.0
    logits[1, [0, 299]] = 2.0
    logits[2, 100:200] = 2.0
    stats = token_stats(logits, torch.tensor([250, 0, 100, 5]))
    assert stats.predicted.tolist() == [7, 0, 100, 0]
    assert stats.correct.tolist() == [False, True, True, False]
    check(stats, logits, torch.tensor([250, 0, 100, 5]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_vocabulary_and_non_finite_rows(dtype: torch.dtype) -> None:
    """−inf logits are no harm but to their own target (inf); a row with NaN, +inf or only −inf is NaN, wherever it stands."""
    inf, nan = torch.inf, torch.nan
    logits = torch.tensor(
        [
            [1.0, -inf, 2.0, -inf],
            [1.0, -inf, 2.0, -inf],
            [-inf, -inf, -inf, -inf],
            [1.0, nan, 0.0, 2.0],
            [nan, 0.0, 0.0, 0.0],
            [0.0, inf, 0.0, 1.0],
            [inf, 0.0, 0.0, 1.0],
            [-inf, 3.0, -inf, -inf],
        ],
        dtype=dtype,
    )
    targets = torch.tensor([0, 1, 2, 3, 0, 0, 0, 1])
    nll = token_stats(logits, targets).nll.tolist()
    assert nll[0] == pytest.approx(1 + math.log1p(math.exp(-1)), rel=1e-6)
    assert nll[1] == math.inf
    assert all(math.isnan(x) for x in nll[2:7])
    assert nll[7] == 0


@pytest.mark.parametrize("ignore_index", [None, -100, 0])
def test_what_is_scored(ignore_index: int | None) -> None:
    """Ignored, masked and impossible targets are told apart, and ``ignore_index=None`` ignores nothing."""
    logits, targets = batch(9, torch.float32, 4, 8)
    targets[0, :3], targets[1, 2], targets[2, 5], targets[3, 0] = 0, -100, 9, -1
    mask = torch.rand(4, 8) < 0.7
    stats = token_stats(logits, targets, ignore_index=ignore_index, mask=mask)
    check(stats, logits, targets, ignore_index=ignore_index, mask=mask)
    assert torch.equal(stats.targets, targets.flatten())


@pytest.mark.parametrize("length", [1, 2, 9])
def test_shift_moves_targets_and_mask(length: int) -> None:
    """Logits at t are scored on the target and the mask of t+1; the last ones, and so all of T=1, on nothing."""
    logits, targets = batch(13, torch.float32, 3, length)
    mask = torch.rand(3, length) < 0.6
    stats = token_stats(logits, targets, mask=mask, shift=True)
    check(stats, logits, targets, mask=mask, shift=True)
    assert not stats.scored.view(3, length)[:, -1].any()
    if length > 1:
        plain = token_stats(logits[:, :-1], targets[:, 1:], mask=mask[:, 1:])
        assert torch.equal(stats.nll.view(3, length)[:, :-1].flatten(), plain.nll)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entropy(dtype: torch.dtype) -> None:
    """The entropy of each prediction agrees with float64, with masked vocabulary, too; it is not there unasked."""
    logits, targets = batch(501, dtype)
    logits[0, :, 100:] = -torch.inf
    stats = token_stats(logits, targets, entropy=True)
    log_p = logits.double().log_softmax(-1).flatten(0, 1)
    want = -torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close(stats.entropy.double(), want, rtol=3e-6, atol=1e-6)
    assert token_stats(logits, targets).entropy is None


def test_200_nats_reads_200() -> None:
    """One fp16 target 200 nats down is 200, where torchmetrics' Perplexity makes the whole run inf."""
    logits = torch.zeros(1, 32, 50, dtype=torch.float16)
    logits[0, 5, 3] = -200.0
    targets = torch.zeros(1, 32, dtype=torch.int64)
    targets[0, 5] = 3
    stats = token_stats(logits, targets)
    assert stats.nll[5].item() == pytest.approx(200 + math.log(49), rel=1e-6)
    mine, theirs = pplmon.Perplexity(), torchmetrics.text.Perplexity(ignore_index=-100)
    mine.update(logits, targets)
    theirs.update(logits, targets)
    assert mine.compute().item() == pytest.approx(math.exp((31 * math.log(50) + 200 + math.log(49)) / 32), rel=1e-6)
    assert theirs.compute().item() == math.inf


@pytest.mark.parametrize("exponent", range(-9, -2))  # 1e-9 … 1e-3: where lse − x has lost 1e-7/nll of its value
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_losses_keep_their_digits(dtype: torch.dtype, exponent: int) -> None:
    """A confident, right token keeps a relative accuracy of 1e-6, however small its loss."""
    logits = torch.full((1, 1000), math.log(10.0**exponent / 999)).add(torch.rand(1, 1000)).to(dtype)
    logits[0, 321] = 0.0
    nll = token_stats(logits, torch.tensor([321])).nll.item()
    want = measure(logits[0].double().numpy(), 321)[0]
    assert 10.0**exponent / 2 < want < 3 * 10.0**exponent
    assert nll == pytest.approx(want, rel=1e-6)


def test_nothing_of_the_graph_is_kept() -> None:
    """Logits that need a gradient give stats that have none, and lose nothing of their own."""
    logits, targets = batch(20, torch.float32)
    logits.requires_grad_()
    before = logits.detach().clone()
    stats = token_stats(logits * 1.0, targets, entropy=True)
    assert not any(x.requires_grad for x in (stats.nll, stats.top_probability, stats.entropy))
    token_stats(logits, targets)
    assert logits.grad is None and torch.equal(logits, before)


def test_logits_without_memory_of_their_own() -> None:
    """Under ``torch.func``, as fake tensors and as negative views they cannot be read by numpy, and are measured by torch."""
    logits, targets = torch.randn(20, 50), torch.randint(50, (20,))
    want = token_stats(logits, targets)

    def loss(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sum(), token_stats(x, targets).nll

    assert torch.equal(torch.func.grad(loss, has_aux=True)(logits)[1], want.nll)
    assert torch.equal(token_stats(torch.complex(logits, -logits).conj().imag, targets).nll, want.nll)
    with FakeTensorMode() as mode:
        fake = token_stats(mode.from_tensor(logits), mode.from_tensor(targets))
    assert fake.nll.shape == (20,)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_is_of_every_batch() -> None:
    """``torch.jit.trace`` does not see numpy: the argmax of the traced batch would be that of all."""
    targets = torch.randint(50, (20,))
    traced = torch.jit.trace(lambda x: token_stats(x, targets).nll, (torch.randn(20, 50),))  # type: ignore[no-untyped-call]
    logits = torch.randn(20, 50)
    assert torch.equal(traced(logits), token_stats(logits, targets).nll)


def test_no_tokens() -> None:
    """An empty batch is measured, and empty."""
    for shape in ((0, 5), (5, 0), (0,)):
        stats = token_stats(torch.zeros(*shape, 7), torch.zeros(shape, dtype=torch.int64), entropy=True)
        assert stats.nll.numel() == stats.predicted.numel() == stats.entropy.numel() == 0
        assert stats.batch_shape == shape


def peak_extra_bytes(call: Callable[[], object]) -> int:
    """Run ``call`` and return the most bytes that the allocator held for it at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events, "the profiler saw no allocation"
    return int(np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max())


# Two cases of four seconds each: both dtypes (one needs a float32 chunk, one does not) and both ways of chunking.
@pytest.mark.parametrize(("dtype", "layout"), [(torch.float32, "last position cut off"), (torch.bfloat16, "whole")])
def test_peak_memory(dtype: torch.dtype, layout: str) -> None:
    """At N = 4096, V = 32768 the peak over the logits stays within 5 % of them; a float32 copy would be 100–200 %."""
    whole = torch.zeros(4, 1024 + (layout != "whole"), 32768, dtype=dtype)
    logits, targets = whole[:, :1024], torch.zeros(4, 1024, dtype=torch.int64)
    assert peak_extra_bytes(lambda: token_stats(logits, targets)) <= 0.05 * logits.numel() * logits.element_size()
    small = logits[:, :64]
    assert peak_extra_bytes(lambda: small.float() * 2) >= 0.9 * small.numel() * 4  # the measurement would notice one


# 512 · 32000: a small batch, where the buffer could be large beside it. 512 · 128256: rows so long that few of them are a chunk.
@pytest.mark.parametrize("vocab", [32000, 128256])
@pytest.mark.parametrize("entropy", [False, True])
def test_peak_memory_of_a_small_batch(vocab: int, entropy: bool) -> None:
    """From N = 512 on, too, and with entropy: within 5 % of bf16 logits, or 8 % where two buffers must hold four rows or 1 MiB."""
    logits, targets = torch.zeros(512, vocab, dtype=torch.bfloat16), torch.zeros(512, dtype=torch.int64)
    used = peak_extra_bytes(lambda: token_stats(logits, targets, entropy=entropy))
    assert used <= (0.08 if entropy else 0.05) * logits.numel() * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peak_memory_of_short_sequences(dtype: torch.dtype) -> None:
    """Of sequences shorter than a chunk, whose last position is cut off, none is copied but into the buffer."""
    logits, targets = torch.zeros(128, 9, 32000, dtype=dtype)[:, :8], torch.zeros(128, 8, dtype=torch.int64)
    used = peak_extra_bytes(lambda: token_stats(logits, targets))
    assert used <= 0.05 * logits.numel() * logits.element_size()


def test_numpy_copies_nothing() -> None:
    """Rows that do not lie side by side (a padded vocabulary) would be copied by numpy, unseen by torch's profiler."""
    padded, targets = torch.zeros(512, 4100), torch.zeros(512, dtype=torch.int64)
    for logits in (padded, padded[:, :4096]):
        token_stats(logits, targets)  # what is made once is made
        tracemalloc.start()
        token_stats(logits, targets)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**16  # one chunk is 1 MiB


# from_losses: what is known from a fused loss that never holds logits.


def test_from_losses_is_token_stats_without_logits() -> None:
    """Given all that token_stats measures, from_losses gives the same bits; so does a tally of either."""
    logits, targets = batch(30, torch.float32, 4, 20)
    targets[0, 0], targets[1, 1] = -100, 40
    mask = torch.rand(4, 20) < 0.8
    want = token_stats(logits, targets, mask=mask, entropy=True)
    assert want.entropy is not None
    shape = (4, 20)
    got = TokenStats.from_losses(
        want.nll.view(shape),
        targets,
        top_probability=want.top_probability.view(shape),
        predicted=want.predicted.view(shape),
        vocab_size=30,
        mask=mask,
        entropy=want.entropy.view(shape),
    )
    for name in ("nll", "top_probability", "predicted", "targets", "scored", "invalid", "entropy"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name
    assert (got.batch_shape, got.vocab_size) == (want.batch_shape, want.vocab_size)
    assert torch.equal(got.correct & got.scored, want.correct)
    tallies = pplmon.TokenTally(), pplmon.TokenTally()
    for tally, stats in zip(tallies, (got, want)):
        tally.update(stats)
    assert tallies[0].totals() == tallies[1].totals()


def test_from_losses_with_pieces_missing() -> None:
    """Only what was given is there; without V only a negative target is outside the vocabulary."""
    stats = TokenStats.from_losses(torch.ones(4), torch.tensor([3, 10**9, -1, -100]))
    assert (stats.correct, stats.top_probability, stats.predicted, stats.vocab_size, stats.entropy) == (None,) * 5
    assert stats.scored.tolist() == [True, True, False, False]
    assert stats.invalid.tolist() == [False, False, True, False]
    assert stats.nll.tolist() == [1, 1, 0, 0]


def test_from_losses_of_what_cannot_be_a_loss() -> None:
    """A little below 0 is rounding and reads 0, −0.0 too; a log-probability passed for a loss is NaN, never a number."""
    given = torch.tensor([-0.0, -1e-6, -2.5, torch.nan, torch.inf, -torch.inf, 300.0], dtype=torch.float16)
    nll = TokenStats.from_losses(given, torch.zeros(7, dtype=torch.int64)).nll
    assert nll[:2].tolist() == [0, 0] and not torch.signbit(nll[:2]).any()
    assert torch.isnan(nll[[2, 3, 5]]).all() and nll[[4, 6]].tolist() == [math.inf, 300]
    entropy = TokenStats.from_losses(given.abs(), torch.zeros(7, dtype=torch.int64), entropy=given).entropy
    assert entropy is not None and entropy.dtype == torch.float32
    assert torch.equal(entropy.isnan(), nll.isnan()) and entropy[[0, 1, 6]].tolist() == [0, 0, 300]


def test_what_is_known_of_a_token_has_to_be_possible() -> None:
    """Hits that are neither 0 nor 1, logits for probabilities, and entropies above ln V are mistakes: the token counts as NaN."""
    nll, targets = torch.ones(5), torch.tensor([1, 2, 3, 4, -100])
    hits = torch.tensor([1.0, 0.0, 0.7, torch.nan, 0.5])
    stats = TokenStats.from_losses(nll, targets, correct=hits)
    assert stats.nll.isnan().tolist() == [False, False, True, True, False] and stats.correct is not None
    assert stats.correct[:2].tolist() == [True, False]
    top = torch.tensor([0.0, 1.0005, 1.2, -0.3, 9.0])
    assert TokenStats.from_losses(nll, targets, top_probability=top).nll.isnan().tolist() == [
        False,
        False,
        True,
        True,
        False,
    ]
    spread = torch.tensor([0.0, math.log(9), 2.21, -0.2, 1.0])
    entropy = TokenStats.from_losses(nll, targets, vocab_size=9, entropy=spread).entropy
    assert entropy is not None and entropy.isnan().tolist() == [False, False, True, True, False]


# Bad input: what was wrong, and what to write.


X, Y = torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64)
BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: token_stats(X, Y[:, :2]), ValueError, r"\(2, 3, 5\).*\(2, 3\).*\(2, 2\)"),
    (lambda: token_stats(X, Y.flatten()), ValueError, r"\(2, 3, 5\).*\(6,\).*give logits.flatten\(0, 1\)"),
    (lambda: token_stats(X.flatten(0, 1), Y), ValueError, r"\(6, 5\).*\(6,\).*\(2, 3\)"),
    (lambda: token_stats(X[0, 0], Y[0, :1]), ValueError, r"\[B, T, V\] or \[N, V\].*\(5,\)"),
    (lambda: token_stats(X[..., :0], Y), ValueError, r"empty vocabulary.*\(2, 3, 0\)"),
    (lambda: token_stats(X.long(), Y), TypeError, r"floating point.*int64"),
    (lambda: token_stats(Y, X), TypeError, r"floating point.*int64"),
    (lambda: token_stats(X, Y.float()), TypeError, r"integer token ids.*float32"),
    (lambda: token_stats(X, Y.bool()), TypeError, r"integer token ids.*bool"),
    (lambda: token_stats(X, Y.tolist()), TypeError, r"integer tensor.*list"),
    (lambda: token_stats(X, Y, mask=Y), TypeError, r"mask must be bool.*int64.*mask\.bool\(\)"),
    (lambda: token_stats(X, Y, mask=Y[:1].bool()), ValueError, r"mask.*\(2, 3\).*\(1, 3\)"),
    (lambda: token_stats(X.flatten(0, 1), Y.flatten(), shift=True), ValueError, r"\[B, T, V\].*\[N, V\].*\(6, 5\)"),
    (lambda: TokenStats.from_losses(Y, Y), TypeError, r"nll must be floating point.*int64"),
    (lambda: TokenStats.from_losses(X[..., 0], Y[:1]), ValueError, r"nll.*\(2, 3\).*\(1, 3\)"),
    (lambda: TokenStats.from_losses(X, X.long()), ValueError, r"\[B, T\] or \[N\].*\(2, 3, 5\)"),
    (lambda: TokenStats.from_losses(X[..., 0], Y, predicted=Y[0]), ValueError, r"predicted.*\(2, 3\).*\(3,\)"),
    (lambda: TokenStats.from_losses(X[..., 0], Y, mask=Y), TypeError, r"mask must be bool"),
    (
        lambda: token_stats(X[..., 0], Y),
        ValueError,
        r"shape of targets, \(2, 3\).*losses\? Then .*TokenStats\.from_losses",
    ),
    (lambda: TokenStats.from_losses(X[0, 0, 0], Y), ValueError, r"one loss for each token, got shape \(\)"),
    (lambda: TokenStats.from_losses(X[..., 0].flatten(), Y), ValueError, r'\(6,\).*\(2, 3\).*reduction="none"'),
    (lambda: TokenStats.from_losses(X[..., 0], Y, 50), TypeError, r"correct must be a tensor, whether.*got int"),
    (
        lambda: TokenStats.from_losses(X[..., 0], Y, predicted=X[..., 0]),
        TypeError,
        r"integer ids.*float32; x\.max\(-1\)",
    ),
    (lambda: TokenStats.from_losses(X[..., 0], Y, top_probability=Y), TypeError, r"floating point.*int64; the prob"),
    (lambda: token_stats(X, Y, vocab_shard=(0, 5)), TypeError, r"pplmon\.VocabShard\(group.*got tuple"),
    (lambda: TokenTally(kernel="cuda"), ValueError, r"one of eager, compiled, triton, or None.*'cuda'"),
    (lambda: TokenTally(extras=[Entropy]), TypeError, r"object with size, update and numbers.*\[pplmon\.Entropy\(\)\]"),
    (lambda: TokenTally(extras=["entropy"]), TypeError, r"object with size.*'entropy'"),
    (lambda: TokenTally(extras=Entropy()), TypeError, r"takes a list, got Entropy\(\)"),
    (
        lambda: TokenTally(extras=[Entropy(), Entropy()]),
        ValueError,
        r"got Entropy\(\), Entropy\(\); each is counted once",
    ),
    (lambda: TokenStats.from_losses(X[..., 0], Y, entropy=X[0, :, 0]), ValueError, r"entropy.*\(2, 3\).*\(3,\)"),
    (lambda: TokenStats.from_losses(X[..., 0], Y, entropy=Y), TypeError, r"entropy must be floating point.*int64"),
]


@pytest.mark.parametrize("index", range(len(BAD)))
def test_bad_input_is_named(index: int) -> None:
    """Wrong shapes name both; wrong dtypes name what came and what is wanted."""
    call, kind, text = BAD[index]
    with pytest.raises(kind, match=f"(?s){text}"):
        call()
