"""The outcomes of planted mistakes as a table, and counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.doctor.mistakes import Mistake
from benchmarks.doctor.trial import PRECISIONS, Outcome


def rows_of(outcomes: Sequence[Outcome], models: Sequence[str], mistakes: Mapping[str, Mistake]) -> Iterator[str]:
    """Yield a row for each mistake: for each model the batch at which it is named, fresh and trained, in fp32 and in bf16."""
    yield f"| planted mistake | named | {' | '.join(models)} |"
    yield f"|---|---|{'---|' * len(models)}"
    for name, mistake in mistakes.items():
        cells = []
        for model in models:
            of = {(o.trained, o.precision): o.sign for o in outcomes if o.mistake == name and o.model == model}
            cells.append(" ".join(of[trained, p] for trained in (False, True) for p in ("fp32", "bf16")))
        yield f"| {mistake.text} | {', '.join(f'`{kind}`' for kind in mistake.kinds)} | {' | '.join(cells)} |"


def summary(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield how many were named, in which batch, and how many were given another name."""
    for precision in PRECISIONS:
        of = [o for o in outcomes if o.precision == precision]
        first = sum(o.found_at == 1 for o in of)
        later = sum(o.found_at > 1 for o in of)
        wrong = sum(o.sign == "×" for o in of)
        passing = sum(bool(o.misnamed_at) and o.sign != "×" for o in of)
        yield (
            f"{precision}: {len(of)} mistakes, {first} named on the first batch, {later} on the second or third, "
            f"{len(of) - first - later - wrong} not named, {wrong} named as something else; {passing} more were so for a batch"
        )
