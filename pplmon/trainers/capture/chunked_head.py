"""Join the logits of a head that is applied to chunks of positions: all of a batch's pieces are counted, or none."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from pplmon.measure.tokens import TokenStats, shifted, token_stats
from pplmon.tally import TokenTally
from pplmon.trainers.capture.sources.source import Found

GUESS_RANK = 100  # after all that somebody named


class Pieces:
    """The pieces [B, t, V] of one batch's logits, measured as they come, in the order of their positions."""

    def __init__(self) -> None:
        self._measured: list[TokenStats] = []
        self._refused = False

    @property
    def begun(self) -> bool:
        """Return True once there is a piece."""
        return bool(self._measured)

    @property
    def width(self) -> int:
        """Return the columns of all pieces together."""
        return sum(piece.batch_shape[1] for piece in self._measured)

    def refuse(self) -> None:
        """Refuse pieces in this batch: its logits came whole, so pieces belong to another call (generation)."""
        self._measured, self._refused = [], True

    def columns_of(self, logits: Tensor, targets: Tensor, is_rest: bool = False) -> slice | None:
        """Return the columns of ``targets`` [B, T] that logits, as the next piece, are for; ``None`` where they are none.

        ``is_rest``: these are known to be the last column, which may stand alone.
        """
        if self._refused or logits.dim() != 3 or targets.dim() != 2 or logits.shape[0] != targets.shape[0]:
            return None
        sizes = [piece.batch_shape[1] for piece in self._measured]
        start = self.width
        stop = start + logits.shape[1]
        if logits.shape[1] < 2:  # one position at a time is generation, unless it is the rest of equal chunks
            rest = len(sizes) > 1 and len(set(sizes)) == 1 and stop == targets.shape[1]
            if not (is_rest or rest or (sizes and logits.requires_grad)):
                return None
        return slice(start, stop) if stop <= targets.shape[1] else None

    def measure(
        self, logits: Tensor, columns: slice, targets: Tensor, mask: Tensor | None, shift: bool, tally: TokenTally
    ) -> TokenStats | None:
        """Measure the next piece as ``tally`` would; return the stats of the whole batch where it was the last."""
        if shift:
            targets, mask = shifted(targets, mask)
        mask = None if mask is None else mask[:, columns]
        how = (tally.ignore_index, mask, False, tally.needs_entropy, tally.kernel)
        self._measured.append(token_stats(logits, targets[:, columns], *how))
        return TokenStats.join(self._measured, shift=shift) if columns.stop == targets.shape[1] else None


def guesses(found: Found, usual: bool) -> Iterator[Found]:
    """Yield what a piece may be if it is none: a forward of its own, over the first columns or the last.

    ``usual`` is the shift where nobody says one.
    """
    width, length = found.logits.shape[1], found.targets.shape[1]
    said = usual if found.shift is None else found.shift
    for shift in (said,) if found.stated else (said, not said):
        place = "the first columns" if not shift else "the first columns, shifted"
        yield _guess(found, place, slice(int(shift), width + int(shift)))
    if not found.stated or not said:
        yield _guess(found, "the last columns", slice(length - width, length))


def _guess(found: Found, place: str, columns: slice) -> Found:
    return found._replace(
        columns=columns, shift=False, stated=True, call=f"{found.call}, each at {place}", rank=GUESS_RANK, guess=True
    )
