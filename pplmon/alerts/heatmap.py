"""The text around worst tokens, one token after the other, each with its loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pplmon.alerts.words import WHOLE, number, shown
from pplmon.report.worst import WorstToken

PIECE = 40  # characters of one token in the map; those at fault are shown whole beside it
GUESS = 120
# A token's shade tells the probability that it had: at least 1/2, 1/10, ..., or less than the last.
SHADES = tuple(-math.log(p) for p in (0.5, 0.1, 1e-2, 1e-3, 1e-4, 1e-6))


@dataclass(frozen=True)
class Cell:
    """One token of the map."""

    text: str
    shade: str  # "h0" to "h6", "un" where it was not scored, "nf" where its loss is not finite
    loss: str = ""  # nats
    probability: str = ""  # of the target
    target: str = ""  # of a worst token: its text, or its id
    predicted: str = ""
    top: str = ""  # the probability of the prediction
    worst: bool = False  # one of those that were given
    gravest: bool = False  # the worst one of its sequence


@dataclass(frozen=True)
class Text:
    """The stretches of one sequence that are known, in their order."""

    token: WorstToken  # the worst one in it
    stretches: list[list[Cell]]
    wholes: list[str]  # the same as plain text, where the map cannot show all of it


def heatmap(tokens: Sequence[WorstToken]) -> list[Text]:
    """Return the text around worst tokens, each sequence once, the worst first."""
    rows: dict[tuple[int, int, int, int], list[WorstToken]] = {}
    for token in tokens:
        rows.setdefault((token.step, token.micro_batch, token.rank, token.sequence), []).append(token)
    return [_text(group) for group in rows.values()]


def _text(group: Sequence[WorstToken]) -> Text:
    cells: dict[int, Cell] = {}
    for token in group:
        start = token.position - len(token.context_ids) // 2
        pieces = token.context_pieces or (None,) * len(token.context_ids)
        for place, (identity, loss, piece) in enumerate(zip(token.context_ids, token.context_losses, pieces), start):
            if identity is not None:
                cells.setdefault(place, _cell(_shown_piece(piece, identity), loss))
    for token in group:
        known = cells.get(token.position, _cell(_shown_piece(token.target_text, token.target), token.loss))
        cells[token.position] = replace(_named(known, token), gravest=token is group[0])
    cut = any("…" in cell.text for cell in cells.values()) or any(token.context_pieces is None for token in group)
    wholes = [shown(token.context_text, WHOLE) for token in group if token.context_text] if cut else []
    return Text(group[0], _stretches(cells), wholes)


def _stretches(cells: dict[int, Cell]) -> list[list[Cell]]:
    stretches: list[list[Cell]] = []
    before = None
    for place in sorted(cells):
        if before is None or place != before + 1:
            stretches.append([])
        stretches[-1].append(cells[place])
        before = place
    return stretches


def _cell(text: str, loss: float | None) -> Cell:
    if loss is None:
        return Cell(text, "un")
    if not math.isfinite(loss):
        return Cell(text, "nf", number(loss))
    shade = sum(loss > limit for limit in SHADES)
    return Cell(text, f"h{shade}", number(loss), f"{math.exp(-loss):.2g}")


def _named(cell: Cell, token: WorstToken) -> Cell:
    guess = None if token.predicted is None else _whole(token.predicted_text, token.predicted)
    return replace(
        _cell(cell.text, token.loss),
        target=_whole(token.target_text, token.target),
        predicted=guess or "",
        top="" if token.predicted_probability is None else f"{token.predicted_probability:.2g}",
        worst=True,
    )


def _shown_piece(piece: str | None, identity: int) -> str:
    """A token's text within the line; its id where it has none."""
    if not piece:
        return f"#{identity} "
    return shown(piece.replace("\n", "⏎").replace("\t", "⇥"), PIECE)


def _whole(text: str | None, identity: int) -> str:
    return f"token {identity}" if text is None else f"“{shown(text, GUESS)}” (token {identity})"
