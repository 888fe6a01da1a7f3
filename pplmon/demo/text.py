"""The demo's data: the bytes of the language reference that comes with Python, with one corrupted sequence on request."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

CONTEXT = 128  # bytes in a sequence
HELD_OUT = 0.05  # the share of the text, at its end, that is kept for validation


class Sequences(TypedDict):
    """One sequence, or a batch of them with a dimension B in front."""

    input_ids: Tensor  # [T] int64, bytes
    targets: Tensor  # [T] int64, the byte after each input
    sample_ids: Tensor  # [] int64, the row of the dataset: what an alert names


class TrainingWindows(Dataset[Sequences]):
    """``size`` windows of ``context`` bytes from random places, the same ones for the same ``seed``.

    The row ``corrupt`` holds random bytes from 128 to 255 instead, which English hardly has: a binary file that slipped in.
    """

    def __init__(self, text: Tensor, context: int, size: int, seed: int, corrupt: int | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._text, self._context, self._corrupt = text, context, corrupt
        self._starts = torch.randint(len(text) - context, (size,), generator=generator)
        self._noise = torch.randint(128, 256, (context + 1,), generator=generator, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, row: int) -> Sequences:
        start = int(self._starts[row])
        window = self._noise if row == self._corrupt else self._text[start : start + self._context + 1]
        return _sequence(window, row)


class HeldOutWindows(Dataset[Sequences]):
    """Every byte of the held-out text once, in windows side by side."""

    def __init__(self, text: Tensor, context: int) -> None:
        self._windows = text[: (len(text) - 1) // context * context + 1].unfold(0, context + 1, context)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, row: int) -> Sequences:
        return _sequence(self._windows[row], row)


def language_reference() -> tuple[Tensor, Tensor]:
    """Return the Python language reference as bytes, [N] uint8 each: for training, and the held-out tail."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:  # some distributions leave it out of their smallest Python package
        raise SystemExit(
            "pplmon demo: this Python lacks its language reference (the module pydoc_data.topics); install the full "
            "standard library"
        ) from error
    text = torch.frombuffer(bytearray("\n\n".join(topics.values()).encode()), dtype=torch.uint8)
    cut = int(len(text) * (1 - HELD_OUT))
    return text[:cut], text[cut:]


def decode(ids: list[int]) -> str:
    """Return bytes as text, each as one character (Latin-1), so that no byte hides behind a replacement mark."""
    return bytes(ids).decode("latin-1")


def _sequence(window: Tensor, row: int) -> Sequences:
    ids = window.long()
    return Sequences(input_ids=ids[:-1], targets=ids[1:], sample_ids=torch.tensor(row))
