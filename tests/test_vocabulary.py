"""The bytes of each id, for tokenizers that are made here: bits per byte of real text, and kinds of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pplmon import TokenClasses, TokenTally, bytes_per_token
from pplmon.demo.text import language_reference
from pplmon.extras.kinds import CODE, TEXT, kind_of_code, kind_of_text
from pplmon.extras.vocabulary import bytes_of_ids
from pplmon.measure import eager

TEXT_BYTES = bytes(language_reference()[1].tolist())
SAMPLE = TEXT_BYTES.decode("utf-8", "ignore")[:20_000] + " – naïve, 日本語, 🦉 and\ttabs\n"
SPECIAL = ["<pad>", "<bos>", "<eos>"]


def byte_level() -> Any:
    """As GPT-2's and Llama 3's: every byte is a character; and tokens that were added later, which are written as they are."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=800, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([SAMPLE], trainer)
    made.add_tokens(["        ", "naïveté"])
    return made


def hugging_face() -> Any:
    """The same, as a model of transformers has it."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def sentence_pieces() -> Any:
    """As Llama 2's and Gemma's: spaces are ▁, and what the vocabulary lacks is spelt in bytes."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    decoders = tokenizers.decoders
    made = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    spelt = [f"<0x{value:02X}>" for value in range(256)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*SPECIAL, "<unk>"], limit_alphabet=60, show_progress=False
    )
    made.train_from_iterator(SAMPLE.splitlines(keepends=True), trainer)
    state = made.to_str()
    import json

    tree = json.loads(state)
    vocabulary = tree["model"]["vocab"]
    for piece in spelt:
        vocabulary[piece] = len(vocabulary)
    return tokenizers.Tokenizer.from_str(json.dumps(tree))


def metaspace() -> Any:
    """As T5's: a unigram model with a space before the first word."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=500, special_tokens=[*SPECIAL, "<unk>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator([SAMPLE], trainer)
    return made


def tiktoken_encoding() -> Any:
    """An encoding from ranks that are given: single bytes and a few merges, with a gap before the special id."""
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    ranks = {bytes([value]): value for value in range(256)} | {b" t": 256, b"he": 257, b" the": 258, b"in": 259}
    return tiktoken.Encoding("made", pat_str=r"\s?\w+|\W", mergeable_ranks=ranks, special_tokens={"<|end|>": 300})


def sentencepiece_processor(tmp_path: Any) -> Any:
    """Trained on the spot."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    (tmp_path / "text.txt").write_text(SAMPLE, encoding="utf-8")
    prefix = str(tmp_path / "made")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=prefix,
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        model_type="bpe",
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")


def ids_of(tokenizer: Any, text: str) -> list[int]:
    encoded = (
        tokenizer.encode(text, add_special_tokens=False) if hasattr(tokenizer, "get_vocab") else tokenizer.encode(text)
    )
    return list(getattr(encoded, "ids", encoded))


@pytest.mark.parametrize("make", [byte_level, hugging_face, sentence_pieces, tiktoken_encoding])
def test_the_bytes_of_the_ids_are_the_text(make: Callable[[], Any]) -> None:
    """Character for character, of text with letters that are cut into bytes, tabs, and runs of spaces."""
    tokenizer = make()
    text = SAMPLE + "        indented naïveté" + "".join(map(chr, range(1, 0x180)))
    ids = ids_of(tokenizer, text)
    pieces = bytes_of_ids(tokenizer)
    assert b"".join(pieces[index] or b"" for index in ids) == text.encode()
    assert bytes_per_token(tokenizer)[ids].sum().item() == len(text.encode())
    assert len(set(ids)) > 100 or make is tiktoken_encoding


def test_sentencepiece_gives_its_bytes(tmp_path: Any) -> None:
    """With the one space that it puts before the text; control ids have none."""
    processor = sentencepiece_processor(tmp_path)
    line = "the naïve 日本語 owl"
    pieces = bytes_of_ids(processor)
    assert b"".join(pieces[index] or b"" for index in processor.encode(line)) == b" " + line.encode()
    assert [pieces[index] for index in (processor.unk_id(), processor.bos_id(), processor.eos_id())] == [None] * 3


def test_a_space_before_the_text_is_one_byte_more() -> None:
    """As the docstring says."""
    tokenizer = metaspace()
    words = " ".join(SAMPLE.split()[:500])
    pieces = bytes_of_ids(tokenizer)
    assert b"".join(pieces[index] or b"" for index in ids_of(tokenizer, words)) == b" " + words.encode()


def test_parts_of_words_lose_their_mark() -> None:
    """The "##" of a WordPiece's part is no byte, the mark of a word's end is the space after it, and what is unknown has none."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "walk": 1, "##ing": 2}, unk_token="[UNK]"))
    pieces.decoder = tokenizers.decoders.WordPiece()
    assert bytes_of_ids(pieces) == [None, b"walk", b"ing"]
    ends = tokenizers.Tokenizer(
        tokenizers.models.BPE({"walk</w>": 0, "ing</w>": 1, "k": 2}, [], end_of_word_suffix="</w>")
    )
    ends.decoder = tokenizers.decoders.BPEDecoder(suffix="</w>")
    assert bytes_of_ids(ends) == [b"walk ", b"ing ", b"k"]


@pytest.mark.parametrize("make", [byte_level, hugging_face, sentence_pieces])
def test_special_ids_stand_for_no_bytes(make: Callable[[], Any]) -> None:
    """Though they have a spelling."""
    tokenizer = make()
    table = bytes_per_token(tokenizer)
    vocabulary = tokenizer.get_vocab()
    assert [table[vocabulary[name]].item() for name in SPECIAL] == [0, 0, 0]
    assert table.dtype == torch.int64 and len(table) == max(vocabulary.values()) + 1
    assert (table == 0).sum() == len(SPECIAL) + (make is sentence_pieces)  # and <unk>


def test_special_ids_of_tiktoken() -> None:
    """And ids between the vocabulary and them."""
    table = bytes_per_token(tiktoken_encoding())
    assert len(table) == 301 and table[258] == 4 and table[260:].sum() == 0


def test_bytes_and_lists_are_vocabularies() -> None:
    """For models of bytes, and for tokenizers that are none of these."""
    assert bytes_of_ids(bytes) == [bytes([value]) for value in range(256)]
    assert bytes_per_token([b"the", b" cat", None]).tolist() == [3, 4, 0]
    for wrong in (object(), "gpt2", ["the"], str):
        with pytest.raises(TypeError, match=r"expected a fast tokenizer of Hugging Face.*make that list: \[b'the'"):
            bytes_per_token(wrong)


@pytest.mark.parametrize("make", [hugging_face, sentence_pieces])
def test_bits_per_byte_of_real_text(make: Callable[[], Any]) -> None:
    """Σ nats / (ln 2 · Σ bytes), over text whose bytes are counted, with an end token that stands for none."""
    tokenizer = make()
    ids = torch.tensor([*ids_of(tokenizer, SAMPLE), tokenizer.get_vocab()["<eos>"]])
    logits = torch.randn(len(ids), 1200, generator=torch.Generator().manual_seed(0))
    tally = TokenTally(token_bytes=bytes_per_token(tokenizer))
    tally.update(logits, ids)
    nats = torch.nn.functional.cross_entropy(logits.double(), ids, reduction="sum").item()
    assert tally.report().bits_per_byte == pytest.approx(nats / (math.log(2) * len(SAMPLE.encode())), rel=1e-6)


# Kinds of tokens.


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *(
            (" def", "keyword"),
            ("return", "keyword"),
            (" self", "name"),
            (".append(", "name"),
            ("_x1", "name"),
            ("(if", "keyword"),
        ),
        *(
            (" 42", "number"),
            ("0x1F", "number"),
            ("3.14", "number"),
            (" +=", "operator"),
            ("()", "operator"),
            ("'", "operator"),
        ),
        *(("\n    ", "space"), ("", "space"), (" a b", "other"), ("größe", "name"), ("日本", "name")),
    ],
)
def test_kinds_of_code(text: str, kind: str) -> None:
    """By the token's own text; signs around a word do not count."""
    assert kind_of_code(text) == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *(
            (" the", "word"),
            ("don't", "word"),
            (" Paris", "capitalised"),
            ("(Anna,", "capitalised"),
            (" 1,000", "number"),
        ),
        *(
            ("...", "punctuation"),
            ("__", "punctuation"),
            ("\n\n", "space"),
            ("x86", "other"),
            ("日本", "word"),
            ("well-known", "word"),
        ),
    ],
)
def test_kinds_of_prose(text: str, kind: str) -> None:
    """By the token's own text."""
    assert kind_of_text(text) == kind


@pytest.mark.parametrize(
    "make", [byte_level, hugging_face, tiktoken_encoding, lambda: bytes], ids=["tokenizers", "hf", "tiktoken", "bytes"]
)
def test_classes_of_a_tokenizer(make: Callable[[], Any]) -> None:
    """Each id has one of the kinds, special ids are "special", parts of characters "other"; and they measure."""
    tokenizer = make()
    pieces = bytes_of_ids(tokenizer)
    for classes, names, kind in (
        (TokenClasses.code(tokenizer), CODE, kind_of_code),
        (TokenClasses.text(tokenizer), TEXT, kind_of_text),
    ):
        assert classes.names == names
        table = classes._ids.tolist()
        for piece, number in zip(pieces, table, strict=True):
            if piece is None:
                assert names[number] == "special"
            elif piece.isascii():
                assert names[number] == kind(piece.decode())
            elif len(piece) == 1:
                assert names[number] == "other"
        tally = TokenTally(extras=[classes])
        ids = torch.arange(len(pieces))
        tally.update(torch.zeros(len(pieces), len(pieces)), ids)
        report = tally.report()
        found = [report.numbers[f"class/{name}/tokens"] for name in names]
        assert found == [table.count(number) for number in range(len(names))]
        assert repr(classes).startswith("TokenClasses(<list ")


def test_the_classes_of_a_vocabulary_are_checked() -> None:
    """An id of no class, a table that is none, with what was expected."""
    with pytest.raises(ValueError, match="ids must be indices into the 2 names, 0 to 1; got 2"):
        TokenClasses([0, 1, 2], ["a", "b"])
    with pytest.raises(ValueError, match="ids must be indices into the 2 names, 0 to 1; got -1"):
        TokenClasses(torch.tensor([0, -1]), ["a", "b"])
    with pytest.raises(ValueError, match=r"ids must be \[V\] integers.*got torch.float32 \(2,\)"):
        TokenClasses([0.5, 1.0], ["a", "b"])  # type: ignore[list-item]


def test_a_model_of_more_ids_than_the_tokenizer() -> None:
    """Logits beyond the table are of no class: they cost structure. A target there has no class, so the split is not known."""
    classes = TokenClasses([0, 0, 1], ["a", "b"])
    logits = torch.zeros(1, 1, 8)
    tally = TokenTally(extras=[classes])
    tally.update(logits, torch.tensor([[1]]))
    tally.update(torch.eye(8)[7][None], torch.tensor([-100]))  # not scored, with an argmax of no class
    numbers: Any = tally.report().numbers
    assert numbers["class_accuracy"] == 1.0
    assert numbers["structure_perplexity"] == pytest.approx(4.0) and numbers["content_perplexity"] == pytest.approx(2.0)
    tally.update(logits, torch.tensor([[7]]))
    numbers = tally.report().numbers
    assert numbers["structure_perplexity"] is None and numbers["class_accuracy"] is None
    assert numbers["class/a/tokens"] == 1 and numbers["class/a/cross_entropy"] == pytest.approx(math.log(8))


def test_a_target_hundreds_of_nats_down_splits() -> None:
    """Within its class, or with its class: neither is lost, and one token cannot make the number infinite."""
    classes = TokenClasses([0, 0, 1, 1], ["a", "b"])
    for low, structure in (([0.0, -200.0, -torch.inf, -torch.inf], 1.0), ([0.0, 0.0, -200.0, -200.0], math.exp(200.0))):
        tally = TokenTally(extras=[classes])
        target = torch.tensor(low).argmin() if structure == 1.0 else torch.tensor(2)
        tally.update(torch.tensor([low]), torch.tensor([1 if structure == 1.0 else int(target)]))
        numbers: Any = tally.report().numbers
        assert numbers["structure_perplexity"] == pytest.approx(structure, rel=1e-4)
        assert numbers["structure_perplexity"] * numbers["content_perplexity"] == pytest.approx(numbers["perplexity"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_chunks_and_threads_do_not_show(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits whatever is looked at together, of rows that do not lie side by side, and of a lone row on two threads."""
    chance = torch.Generator().manual_seed(0)
    vocab = 40_000
    logits = (torch.randn(3, 4, vocab, generator=chance) * 3).to(dtype)[:, :-1]
    targets = torch.randint(vocab, (3, 3), generator=chance)
    classes = TokenClasses(torch.randint(5, (vocab,), generator=chance), list("abcde"))
    found = set()
    threads = torch.get_num_threads()
    try:
        for count, limit in ((1, 2**18), (2, 2**18), (2, vocab), (1, 2 * vocab)):
            torch.set_num_threads(count)
            monkeypatch.setattr(eager, "CHUNK_LOGITS", limit)
            tally = TokenTally(extras=[classes])
            tally.update(logits, targets)
            found.add(tally.totals().extra_sums)
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
