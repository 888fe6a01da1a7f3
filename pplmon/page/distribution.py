"""The loss of all tokens over time: the histograms of a run's windows, as the columns of one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pplmon.report.histogram import LOWEST_DRAWN

COLUMNS = 400  # a picture is not much wider; more windows are added up


@dataclass(frozen=True)
class Distribution:
    """For each column the share of its tokens in each bucket, the lowest first."""

    starts: list[int]  # the first step of each column
    ends: list[int]  # its last
    first: int  # the lowest bucket (see ``Histogram.eighths``)
    shares: list[list[float]]


def distribution(windows: Sequence[Mapping[str, Any]]) -> Distribution | None:
    """Return the picture of the windows that have a histogram; ``None`` where none has one."""
    known = [row for row in windows if row.get("histogram", {}).get("counts")]
    if not known:
        return None
    bounds = [i * len(known) // COLUMNS for i in range(COLUMNS + 1)] if len(known) > COLUMNS else range(len(known) + 1)
    groups = [known[low:high] for low, high in zip(bounds, bounds[1:])]
    ends = [group[-1]["step"] for group in groups]
    width = ends[1] - ends[0] if len(ends) > 1 else ends[0] + 1
    starts = [max(0, ends[0] - width + 1), *(end + 1 for end in ends[:-1])]
    highest = max(row["histogram"]["first"] + len(row["histogram"]["counts"]) for row in known)
    lowest = max(LOWEST_DRAWN, min(row["histogram"]["first"] for row in known))
    return Distribution(starts, ends, lowest, [_shares(group, lowest, max(highest, lowest + 1)) for group in groups])


def _shares(group: Sequence[Mapping[str, Any]], lowest: int, end: int) -> list[float]:
    counts = [0] * (end - lowest)
    for row in group:
        for bucket, count in enumerate(row["histogram"]["counts"], row["histogram"]["first"]):
            counts[max(bucket, lowest) - lowest] += count
    total = sum(counts) or 1
    return [count / total for count in counts]
