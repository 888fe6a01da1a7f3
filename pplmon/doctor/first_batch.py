"""Print a batch as text once, with the tokens that are not scored in grey: a wrong mask is seen at a glance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pplmon.doctor.alignment import Tokens
from pplmon.report.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

ROWS, CHARACTERS = 4, 400  # at most, of a batch and of a row
UNKNOWN = "·"  # a target that is ignored, and that no input id tells
Decode = Callable[[list[int]], str]


class Run(NamedTuple):
    """Neighbouring targets of a row that are all scored, or all not."""

    text: str
    scored: bool


def rows_of(tokens: Tokens, shift: bool, decode: Decode | None = None) -> list[list[Run]]:
    """Return the first rows of a batch as runs of text; without ``decode`` as ids. Waits for the device."""
    known = tokens.told | (tokens.full != 0)
    columns = torch.arange(tokens.targets.shape[1], device=tokens.targets.device)
    scored = tokens.told & (columns >= int(shift))  # the first target of a row has no logits before it
    ids = torch.where(known, tokens.full, -1)[:ROWS, :CHARACTERS]
    return [list(_runs(*row, decode)) for row in zip(ids.tolist(), scored[:ROWS, :CHARACTERS].tolist())]


def print_batch(tokens: Tokens, shift: bool, decode: Decode | None) -> None:
    """Print a batch on standard output. A decoder that fails gives ids: nobody's run ends for it."""
    from rich.console import Console

    try:
        rows = rows_of(tokens, shift, decode)
    except Exception:  # whatever a tokenizer raises
        rows = rows_of(tokens, shift)
    show(Console(highlight=False), rows, tokens.targets)


def show(console: Console, rows: list[list[Run]], of: Tensor) -> None:
    """Print rows of a batch of targets [B, T]; in a terminal without colours what is not scored stands in brackets."""
    from rich.text import Text

    coloured = console.is_terminal and console.color_system is not None and not console.no_color
    how = "grey" if coloured else "in ⟦ ⟧"
    console.print(Text(f"the first batch, {tuple(of.shape)}; what is not scored is {how}"), soft_wrap=True)
    for number, row in enumerate(rows):
        line, left = Text(f"{number}: "), CHARACTERS
        for run in row:
            text = visible(run.text).replace("\n", "\\n")
            line.append(_dressed(text[:left], run.scored, coloured), "" if run.scored else "bright_black")
            left -= len(text)
            if left <= 0:
                line.append(" …")
                break
        console.print(line)
    if len(rows) < of.shape[0]:
        console.print(Text(f"and {of.shape[0] - len(rows)} more rows"))


def _dressed(text: str, scored: bool, coloured: bool) -> str:
    return text if scored or coloured else f"⟦{text.rstrip(' ')}⟧ "


def _runs(ids: list[int], scored: list[bool], decode: Decode | None) -> Iterator[Run]:
    for is_scored, group in groupby(zip(ids, scored), key=lambda pair: pair[1]):
        parts = []
        for is_known, of in groupby((token for token, _ in group), key=lambda token: token >= 0):
            part = list(of)
            if not is_known:
                parts.append(UNKNOWN * len(part))
            else:
                parts.append(" ".join(map(str, part)) if decode is None else decode(part))
        yield Run((" " if decode is None else "").join(parts) + (" " if decode is None else ""), is_scored)
