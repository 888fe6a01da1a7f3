"""Rename the variables of a text, or exchange ids, and keep which tokens are of a renamed name.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pplmon.extras.vocabulary import bytes_of_ids

WORD = re.compile(r"\w+")


class Cut(NamedTuple):
    """A text as ids [B, T], and which tokens are of a name that is renamed, [B, T] bool."""

    ids: Tensor
    named: Tensor


class Span(NamedTuple):
    """A place of a name in a text, in bytes."""

    start: int
    stop: int
    name: str


def exchanged(ids: Tensor, rename: Mapping[Any, Any] | None) -> tuple[Cut, Cut, Mapping[Any, Any]]:
    """Return ids as they are and with some exchanged for others, and the map."""
    if not isinstance(ids, Tensor) or ids.dim() not in (1, 2) or ids.is_floating_point():
        found = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"expected a text or integer ids [T] or [B, T], got {found}")
    if not rename or not all(isinstance(old, int) and isinstance(new, int) for old, new in rename.items()):
        raise TypeError(
            f"ids need rename={{old id: new id, …}}, got {rename!r}; with a text, names are found by themselves"
        )
    rows = ids.detach().cpu().long().view(-1, ids.shape[-1])
    _check_new(rename, set(rows.flatten().tolist()))
    changed = rows.clone()
    for old, new in rename.items():
        changed[rows == old] = new
    named = torch.isin(rows, torch.tensor(list(rename)))
    return Cut(rows, named), Cut(changed, named), dict(rename)


def renamed_text(
    text: str, rename: Mapping[Any, Any] | None, tokenizer: Any, seed: int
) -> tuple[Cut, Cut, Mapping[Any, Any]]:
    """Return a text's ids as it is and with names renamed, and the map."""
    pieces = [piece or b"" for piece in bytes_of_ids(tokenizer)]
    if rename is None:
        spans = _python_variables(text)
        rename = _choose(text, spans, Cutter(tokenizer, pieces), seed)
        spans = [span for span in spans if span.name in rename]
    else:
        if not all(isinstance(name, str) for pair in rename.items() for name in pair):
            raise TypeError(f"a text needs rename={{old name: new name, …}}, got {rename!r}")
        _check_new(rename, set(WORD.findall(text)))
        spans = list(_words(text, rename))
    cutter = Cutter(tokenizer, pieces)
    new_text, new_spans = _replaced(text.encode(), spans, rename)
    return cutter.cut(text.encode(), spans), cutter.cut(new_text, new_spans), dict(rename)


class Cutter:
    """Cuts texts into ids, and tells the bytes of each."""

    def __init__(self, tokenizer: Any, pieces: Sequence[bytes]) -> None:
        self._tokenizer, self.pieces = tokenizer, pieces

    def cut(self, text: bytes, spans: Sequence[Span]) -> Cut:
        """Return ids [1, T], and which of them have a byte of a span."""
        ids, named = [], []
        places = iter(sorted(spans))
        span = next(places, None)
        for start, stop, index in self.tokens(text):
            while span is not None and span.stop <= start:
                span = next(places, None)
            ids.append(index)
            named.append(span is not None and start < span.stop and span.start < stop)
        return Cut(torch.tensor([ids]), torch.tensor([named]))

    def tokens(self, text: bytes) -> Iterator[tuple[int, int, int]]:
        """Yield where each token begins and ends in the text, in bytes, and its id."""
        ids = self._encode(text)
        written = b"".join(self.pieces[index] for index in ids)
        # sentencepiece writes a space before the first word
        start = -1 if written == b" " + text else 0
        if written[-start:] != text:
            raise ValueError(
                "the tokenizer does not keep the text as it is (it changes case, spaces or characters), so tokens cannot be told "
                "apart by their place; give ids, and rename={old id: new id}"
            )
        for index in ids:
            stop = start + len(self.pieces[index])
            yield start, stop, index
            start = stop

    def _encode(self, text: bytes) -> list[int]:
        tokenizer = self._tokenizer
        if tokenizer is bytes:
            return list(text)
        if hasattr(tokenizer, "encode_ordinary"):  # tiktoken
            return list(tokenizer.encode_ordinary(text.decode()))
        if isinstance(tokenizer, (list, tuple)):
            raise TypeError("a list of pieces cannot cut a text; give ids, and rename={old id: new id}")
        if hasattr(tokenizer, "id_to_piece"):
            return list(tokenizer.encode(text.decode()))
        found = tokenizer.encode(text.decode(), add_special_tokens=False)
        return list(getattr(found, "ids", found))


def _replaced(text: bytes, spans: Sequence[Span], rename: Mapping[str, str]) -> tuple[bytes, list[Span]]:
    """Return the text with other names, and where they stand in it."""
    parts: list[bytes] = []
    found, end, length = [], 0, 0
    for span in sorted(spans):
        new = rename[span.name].encode()
        parts += [text[end : span.start], new]
        length += span.start - end + len(new)
        found.append(Span(length - len(new), length, rename[span.name]))
        end = span.stop
    return b"".join([*parts, text[end:]]), found


def _words(text: str, rename: Mapping[str, str]) -> Iterator[Span]:
    for word in WORD.finditer(text):
        if word[0] in rename:
            start = len(text[: word.start()].encode())
            yield Span(start, start + len(word[0].encode()), word[0])


def _check_new(rename: Mapping[Any, Any], there: set[Any]) -> None:
    missing = [old for old in rename if old not in there]
    taken = [new for new in rename.values() if new in there and new not in rename]
    if not rename or missing:
        raise ValueError(f"rename names what is not in the text: {missing or 'nothing at all'}")
    if taken or len(set(rename.values())) < len(rename):
        raise ValueError(
            f"a new name must not be in the text already, and each is used once, or two variables become one; got {dict(rename)!r}"
        )


def _python_variables(text: str) -> list[Span]:
    """Return the places of variables and arguments that may be renamed without changing what the program does."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(
            f"the text is no Python that can be read ({error}), so its variables are not known; give rename={{old: new}}"
        ) from error
    lines = [0]
    for line in text.encode().splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    places, bound, kept = [], set(), set(keyword.kwlist) | set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.arg)):
            name = node.id if isinstance(node, ast.Name) else node.arg
            start = lines[node.lineno - 1] + node.col_offset
            places.append(Span(start, start + len(name.encode()), name))
            if isinstance(node, ast.arg) or isinstance(node.ctx, ast.Store):
                bound.add(name)
        kept |= _fixed_names(node)
    return [place for place in places if place.name in bound - kept]


def _fixed_names(node: ast.AST) -> set[str]:
    """Return names that others may know, or whose places the syntax tree does not have."""
    if isinstance(node, ast.JoinedStr):
        return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    if isinstance(node, (ast.Global, ast.Nonlocal)):
        return set(node.names)
    for field in ("attr", "asname", "rest"):
        if isinstance(getattr(node, field, None), str):
            return {getattr(node, field)}
    if isinstance(node, ast.keyword) and node.arg is not None:
        return {node.arg}
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler)) and node.name:
        return {node.name}
    if isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name:
        return {node.name}
    return set()


def _choose(text: str, spans: Sequence[Span], cutter: Cutter, seed: int) -> dict[str, str]:
    """Return another name of one token for each variable that is one token wherever it stands."""
    forms = _forms(text.encode(), spans, cutter)
    ids = set(cutter.pieces)
    taken = set(WORD.findall(text)) | set(keyword.kwlist) | set(dir(builtins))
    words = {piece.strip().decode(errors="ignore") for piece in ids}
    free = sorted(word for word in words if word.isidentifier() and word not in taken)
    random.Random(seed).shuffle(free)  # noqa: S311 (nothing secret)
    chosen: dict[str, str] = {}
    for name, before in sorted(forms.items()):
        new = next((word for word in free if all(form + word.encode() in ids for form in before)), None)
        if new is not None:
            free.remove(new)
            chosen[name] = new
    if not chosen:
        raise ValueError(
            "no variable of the text is one token with another name of one token to exchange it for; give rename={old: new}"
        )
    return chosen


def _forms(text: bytes, spans: Sequence[Span], cutter: Cutter) -> dict[str, set[bytes]]:
    """Return what stands before each name in its tokens (nothing, or a space), of names that are always one token."""
    ends = {stop: start for start, stop, _ in cutter.tokens(text)}
    forms: dict[str, set[bytes]] = {}
    split = set()
    for span in spans:
        start = ends.get(span.stop)
        if start is None or start > span.start or text[max(start, 0) : span.start].strip():
            split.add(span.name)
        else:
            forms.setdefault(span.name, set()).add(text[max(start, 0) : span.start])
    return {name: form for name, form in forms.items() if name not in split}
