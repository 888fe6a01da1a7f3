"""The bytes that each id of a tokenizer stands for: for bits per byte, and to tell kinds of tokens apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Piece = bytes | None  # None: it stands for no text
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a byte that a vocabulary of characters lacks, as sentencepiece writes it
SPACE = "▁"  # for a space, as sentencepiece writes it


def bytes_per_token(tokenizer: Any) -> Tensor:
    """Return how many bytes of text each id stands for, [V] int64: ``TokenTally(token_bytes=pplmon.bytes_per_token(tokenizer))``.

    Special ids (beginning, end, padding, unknown) stand for none. A tokenizer that changes text before it cuts it (lower case,
    words without the spaces between them) gives the bytes of what it kept. One that writes a space before the first word of a
    text (sentencepiece) has one byte more than the text.

    Args:
        tokenizer: of Hugging Face (a fast one, or of the library ``tokenizers``), a tiktoken ``Encoding``, a sentencepiece
            processor, ``bytes`` itself for models of bytes, or a list with the bytes of each id (``None`` of a special one).

    Raises:
        TypeError: it is none of these.
    """
    return torch.tensor([len(piece or b"") for piece in bytes_of_ids(tokenizer)], dtype=torch.int64)


def bytes_of_ids(tokenizer: Any) -> list[Piece]:
    """Return the bytes of each id, ``None`` of special ids and of those that are not used; see ``bytes_per_token``."""
    if tokenizer is bytes:
        return [bytes([value]) for value in range(256)]
    if isinstance(tokenizer, (list, tuple)) and all(piece is None or isinstance(piece, bytes) for piece in tokenizer):
        return list(tokenizer)
    if hasattr(tokenizer, "decode_single_token_bytes"):
        return _of_tiktoken(tokenizer)
    if hasattr(tokenizer, "id_to_piece"):
        return _of_sentencepiece(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str") and hasattr(backend, "get_added_tokens_decoder"):
        return _of_tokenizers(backend)
    raise TypeError(
        "expected a fast tokenizer of Hugging Face, a tiktoken Encoding, a sentencepiece processor, bytes (the type) or a list "
        f"with the bytes of each id, got {type(tokenizer).__name__}; of any other tokenizer make that list: "
        "[b'the', b' cat', …, None], None for a special id"
    )


def _of_tiktoken(encoding: Any) -> list[Piece]:
    special = {encoding.encode_single_token(text) for text in encoding.special_tokens_set}

    def piece(index: int) -> Piece:
        try:
            return None if index in special else bytes(encoding.decode_single_token_bytes(index))
        except KeyError:  # a gap between the vocabulary and the special ids
            return None

    return [piece(index) for index in range(encoding.n_vocab)]


def _of_sentencepiece(processor: Any) -> list[Piece]:
    def piece(index: int) -> Piece:
        if processor.is_control(index) or processor.is_unknown(index) or processor.is_unused(index):
            return None
        return _of_characters(processor.id_to_piece(index), [(SPACE, " ")], has_bytes=processor.is_byte(index))

    return [piece(index) for index in range(processor.get_piece_size())]


def _of_tokenizers(backend: Any) -> list[Piece]:
    """Read a vocabulary as the tokenizer's own decoder does. Tokens that were added later are written as they are."""
    state = json.loads(backend.to_str())
    parts = list(_parts([state["pre_tokenizer"], state["decoder"]]))
    kinds = {part["type"] for part in parts}
    added = backend.get_added_tokens_decoder()
    spellings = [(part["replacement"], " ") for part in parts if part["type"] == "Metaspace"]
    spellings += [(part["pattern"]["String"], part["content"]) for part in parts if _replaces(part)]
    spellings += [(part["suffix"], " ") for part in parts if part["type"] == "BPEDecoder"]
    prefix = next((part["prefix"] for part in parts if part["type"] == "WordPiece"), "")
    alphabet = _alphabet()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    unknown = (vocabulary.get(state["model"].get("unk_token")), state["model"].get("unk_id"))
    pieces: list[Piece] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for text, index in vocabulary.items():
        if index in unknown:
            continue
        if index in added:
            pieces[index] = None if added[index].special else text.encode()
        elif "ByteLevel" in kinds:
            pieces[index] = b"".join(alphabet.get(character, character.encode()) for character in text)
        else:
            pieces[index] = _of_characters(text.removeprefix(prefix), spellings, "ByteFallback" in kinds)
    return pieces


def _parts(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every part of a tokenizer that has a type, at any depth."""
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node
        for value in node.values():
            yield from _parts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _parts(value)


def _replaces(part: dict[str, Any]) -> bool:
    return part["type"] == "Replace" and "String" in part["pattern"]


def _of_characters(text: str, spellings: Sequence[tuple[str, str]], has_bytes: bool) -> bytes:
    byte = _BYTE.fullmatch(text) if has_bytes else None
    if byte is not None:
        return bytes([int(byte[1], 16)])
    for written, meant in spellings:
        text = text.replace(written, meant)
    return text.encode()


def _alphabet() -> dict[str, bytes]:
    """Return the characters that GPT-2 and its kin write bytes as: each its own where it is printable, the others from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in printable]
    written = {chr(value): value for value in printable} | {
        chr(256 + place): value for place, value in enumerate(hidden)
    }
    return {character: bytes([value]) for character, value in written.items()}
