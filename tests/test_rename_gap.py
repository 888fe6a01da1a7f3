"""``rename_gap``: the same program with other names, and where the difference comes from."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pplmon
from pplmon.monitor.probes.renaming import renamed_text
from tests import test_vocabulary as tokenizers

PROGRAM = """
def mean(values, floor):
    total = floor
    for value in values:
        total = total + value
    return total / len(values)
"""


class Bigrams(nn.Module):
    """A model of fixed tables: the loss of a token depends on it and the one before."""

    def __init__(self, vocab: int = 256) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(3)) * 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[ids]


def by_hand(model: Bigrams, text: bytes, names: list[bytes]) -> tuple[list[float], list[float]]:
    """The float64 losses of the bytes of names, and of all others."""
    table = model.table.detach().double().log_softmax(-1)
    inside = set()
    for name in names:
        place = text.find(name)
        while place >= 0:
            around = text[place - 1 : place] + text[place + len(name) : place + len(name) + 1]
            if not any(chr(byte).isalnum() or byte == ord("_") for byte in around):
                inside |= set(range(place, place + len(name)))
            place = text.find(name, place + 1)
    losses = [(-table[a, b]).item() for a, b in zip(text, text[1:])]
    named = [loss for place, loss in enumerate(losses, 1) if place in inside]
    return named, [loss for place, loss in enumerate(losses, 1) if place not in inside]


def test_names_and_structure_are_measured_apart() -> None:
    """By hand, in float64, for names of other lengths; ``value`` within ``values`` is not the name ``value``."""
    model, rename = Bigrams(), {"value": "x", "total": "accumulated"}
    found = pplmon.rename_gap(model, PROGRAM, rename, bytes)
    new = PROGRAM.replace("total", "accumulated").replace("value in", "x in").replace("+ value", "+ x").encode()
    named, others = by_hand(model, PROGRAM.encode(), [b"value", b"total"])
    new_named, new_others = by_hand(model, new, [b"x", b"accumulated"])
    for part, before, after in ((found.names, named, new_named), (found.structure, others, new_others)):
        assert (part.tokens, part.renamed_tokens) == (len(before), len(after))
        assert part.nats == pytest.approx(sum(before), rel=1e-6)
        assert part.renamed_nats == pytest.approx(sum(after), rel=1e-6)
        assert part.gap == pytest.approx(sum(after) / len(after) - sum(before) / len(before), rel=1e-4)
    assert found.renamed == rename
    assert len(str(found).splitlines()) == 2 and "renamed names:" in str(found)


def test_structure_costs_nothing_where_the_model_does_not_look_at_names() -> None:
    """A model that gives each token the same probability wherever it stands: only the names' own tokens change."""

    class Unigrams(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return torch.linspace(-3, 3, 256).expand(*ids.shape, 256)

    found = pplmon.rename_gap(Unigrams(), PROGRAM, {"total": "z"}, bytes)
    assert found.structure.gap == 0 and found.names.gap != 0


def test_ids_are_exchanged() -> None:
    """Every occurrence, in rows of a batch."""
    model, ids = Bigrams(8), torch.tensor([[0, 1, 2, 1], [3, 1, 0, 4]])
    found = pplmon.rename_gap(model, ids, {1: 7})
    table = model.table.detach().double().log_softmax(-1)
    assert found.names.nats == pytest.approx(-(table[0, 1] + table[2, 1] + table[3, 1]).item(), rel=1e-6)
    assert found.names.renamed_nats == pytest.approx(-(table[0, 7] + table[2, 7] + table[3, 7]).item(), rel=1e-6)
    assert found.structure.renamed_nats == pytest.approx(-(table[7, 2] + table[7, 0] + table[0, 4]).item(), rel=1e-6)
    assert found.names.tokens == found.structure.tokens == 3


KINDS = {
    "byte level": tokenizers.byte_level,
    "hugging face": tokenizers.hugging_face,
    "sentence pieces": tokenizers.sentence_pieces,
    "tiktoken": tokenizers.tiktoken_encoding,
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_tokenizer_that_keeps_the_text(kind: str) -> None:
    """The tokens of names are those with a byte of them; all together are the text."""
    tokenizer = KINDS[kind]()
    before, after, _ = renamed_text(PROGRAM, {"total": "he"}, tokenizer, 0)
    pieces = [piece or b"" for piece in pplmon.extras.vocabulary.bytes_of_ids(tokenizer)]
    for cut, text, name in ((before, PROGRAM, b"total"), (after, PROGRAM.replace("total", "he"), b"he")):
        written = [pieces[index] for index in cut.ids[0].tolist()]
        assert b"".join(written) == text.encode()
        named = b"".join(piece for piece, named in zip(written, cut.named[0].tolist()) if named)
        assert named.count(name) == 4 and cut.named.sum() < len(written)


def test_sentencepiece_writes_a_space_first(tmp_path: Any) -> None:
    """Which is no part of the text."""
    processor = tokenizers.sentencepiece_processor(tmp_path)
    before, _, _ = renamed_text("total = total", {"total": "x"}, processor, 0)
    assert before.named[0].tolist()[0] and before.named.any() and not before.named.all()


@pytest.mark.parametrize("kind", ["bytes", "byte level"])
def test_names_are_found_in_python(kind: str) -> None:
    """Variables and arguments of one token; not what is seen from outside, nor what a string may name."""
    program = """
import os as q
def f(a, b, k=1):
    global g
    c = a + b.d
    try:
        g = k
    except ValueError as e:
        print(f"{b}", e, q, end=c)
    return f(a, b, k=c) + c
"""
    tokenizer = bytes if kind == "bytes" else tokenizers.byte_level()
    before, after, renamed = renamed_text(program, None, tokenizer, 0)
    assert set(renamed) <= {"a", "c"} and renamed
    assert before.ids.shape == after.ids.shape if kind == "bytes" else before.named.sum() == after.named.sum()
    assert not set(renamed.values()) & set("abcdefgkq")
    pieces = [piece or b"" for piece in pplmon.extras.vocabulary.bytes_of_ids(tokenizer)]
    written = b"".join(pieces[index] for index in after.ids[0].tolist()).decode()
    back = written
    for old, new in renamed.items():
        back = __import__("re").sub(rf"\b{new}\b", old, back)
    assert back == program
    assert renamed_text(program, None, tokenizer, 0)[2] == renamed


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("x = 1",), TypeError, "a text needs tokenizer="),
        (("x = 1", {"y": "z"}, bytes), ValueError, r"rename names what is not in the text: \['y'\]"),
        (("x = y", {"x": "y"}, bytes), ValueError, "a new name must not be in the text already"),
        (("x = y", {"x": "z", "y": "z"}, bytes), ValueError, "each is used once, or two variables become one"),
        (("x = 1", {1: 2}, bytes), TypeError, "a text needs rename={old name: new name"),
        (("x = 1", {}, bytes), ValueError, "not in the text: nothing at all"),
        (("x = (", None, bytes), ValueError, "no Python that can be read .* give rename={old: new}"),
        (("print(1)", None, bytes), ValueError, "no variable of the text is one token"),
        ((torch.zeros(3), {0: 1}), TypeError, r"integer ids \[T\] or \[B, T\], got torch.float32 \(3,\)"),
        ((torch.arange(3), {"a": "b"}), TypeError, "ids need rename={old id: new id"),
        ((torch.arange(3), None), TypeError, "with a text, names are found by themselves"),
        ((torch.arange(3), {9: 1}), ValueError, r"not in the text: \[9\]"),
        ((torch.arange(3), {0: 1}), ValueError, "a new name must not be in the text already"),
        (("x = 1", {"x": "z"}, [b"x"]), TypeError, "a list of pieces cannot cut a text"),
    ],
)
def test_what_cannot_work_is_told(arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
    """Names that are not there or taken, and arguments that do not go together."""
    with pytest.raises(error, match=text):
        pplmon.rename_gap(Bigrams(), *arguments)


def test_two_names_may_be_exchanged() -> None:
    """One for the other: both are renamed at once."""
    found = pplmon.rename_gap(Bigrams(), "x = y; y = x", {"x": "y", "y": "x"}, bytes)
    assert found.names.tokens == 3 and math.isfinite(found.names.gap)


def test_a_tokenizer_that_changes_the_text_is_told() -> None:
    """Lower case, say: places in the text would be wrong."""
    made = tokenizers.byte_level()
    made.normalizer = pytest.importorskip("tokenizers").normalizers.Lowercase()
    with pytest.raises(ValueError, match="does not keep the text as it is"):
        pplmon.rename_gap(Bigrams(1000), "Total = 1", {"Total": "x"}, made)
