"""A rank's vote on what to count, as a few integers that add up over ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple
from zlib import crc32

from pplmon.trainers.capture.choose import Chosen
from pplmon.trainers.capture.evidence import Verdict

_BITS = 20  # of a code: their squares add up over ranks without overflow
_CODES = 2**_BITS


class Ballot(NamedTuple):
    """The vote of one rank, or the sum of all."""

    more: int  # it needs more batches
    voters: int  # its loss tells
    code: int  # of what it chose
    code_squared: int
    on: int  # with shift=True
    off: int  # with shift=False
    without: int  # the padding that it leaves out: 0 for none
    with_rows: int  # it has rows in its first batch
    rows: int  # their digest, in two parts
    rows_squared: int
    rest: int
    rest_squared: int

    @classmethod
    def of(cls, more: bool, verdict: Verdict | None, digest: int | None) -> Ballot:
        """Return the vote of a rank that knows this. Without a loss that tells it abstains."""
        chosen = verdict.chosen if verdict is not None and verdict.is_sure else None
        code = 0 if chosen is None else _code(chosen)
        shift = None if chosen is None else chosen.shift
        without = 0 if chosen is None or chosen.without is None else chosen.without + 2
        rows, rest = (0, 0) if digest is None else (digest % _CODES, (digest >> _BITS) % _CODES)
        return cls(
            int(more),
            int(chosen is not None),
            code,
            code**2,
            int(shift is True),
            int(shift is False),
            without,
            int(digest is not None),
            rows,
            rows**2,
            rest,
            rest**2,
        )

    @property
    def agree(self) -> bool:
        """Tell of a sum whether all who voted chose the same."""
        return self.voters * self.code_squared == self.code**2

    @property
    def same_rows(self) -> bool:
        """Tell of a sum whether several ranks have rows, and all of them the same."""
        same = self.with_rows * self.rows_squared == self.rows**2
        return self.with_rows > 1 and same and self.with_rows * self.rest_squared == self.rest**2

    def followed(self, default: Chosen) -> Chosen:
        """Return, of a sum, what a rank counts that has no vote: its default, with the shift and padding of those who have."""
        if not self.voters or not self.agree:
            return default
        shift = True if self.on == self.voters else False if self.off == self.voters else default.shift
        without = self.without // self.voters
        return replace(default, shift=shift, without=without - 2 if without else None)


def _code(chosen: Chosen) -> int:
    parts = (chosen.name, chosen.number, chosen.shift, chosen.without, chosen.summed)
    code: int = crc32(f"{type(chosen.source).__name__} {parts}".encode()) % _CODES
    return code
