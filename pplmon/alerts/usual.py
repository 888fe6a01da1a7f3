"""The cross-entropy that is usual in training, of all tokens and of each group, beside which a jump is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pplmon.alerts.rules.baseline import Baseline
from pplmon.report.report import Report

HEAD, LOSS, TOKENS = "group/", "/cross_entropy", "/tokens"  # the numbers that ``Groups`` gives of each group


class Usual:
    """The cross-entropies of earlier read-outs.

    Attributes:
        mean: of all tokens.
        groups: of each group's tokens, where the tally has ``Groups``.
    """

    def __init__(self) -> None:
        self.mean = Baseline()
        self.groups: dict[str, Baseline] = {}

    def learn(self, report: Report) -> None:
        """Add a read-out of training."""
        if report.stage != "train":
            return
        value = report.numbers.get("cross_entropy")
        if value is not None and math.isfinite(value):
            self.mean.push(value)
        for name, loss, _ in _groups(report):
            self.groups.setdefault(name, Baseline()).push(loss)

    def moved(self, report: Report) -> dict[str, Any]:
        """Return the fields of an alert that name the group with the most nats above its own usual value.

        Its share is of the rise of the sum of all losses, 0 to 1. Empty where no group is above it, where the mean did not
        rise, or where too few earlier read-outs are known.
        """
        mean, tokens = report.numbers.get("cross_entropy"), report.numbers.get("tokens")
        if report.stage != "train" or self.mean.middle is None or mean is None or not tokens:
            return {}
        jump = (mean - self.mean.middle) * tokens
        excesses = {
            name: (loss - usual.middle) * count
            for name, loss, count in _groups(report)
            if (usual := self.groups.get(name)) is not None and usual.middle is not None
        }
        name = max(excesses, key=lambda name: excesses[name], default=None)
        if name is None or excesses[name] <= 0 or not 0 < jump < math.inf:
            return {}
        return {"blame_group": name, "blame_group_share": min(1.0, excesses[name] / jump)}

    def state_dict(self) -> dict[str, Any]:
        """Return its state as plain values."""
        groups = {name: usual.state_dict() for name, usual in self.groups.items()}
        return {"usual": self.mean.state_dict(), **({"usual_of_groups": groups} if groups else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self.mean.load_state_dict(state["usual"])
        self.groups = {name: Baseline() for name in state.get("usual_of_groups", {})}
        for name, usual in self.groups.items():
            usual.load_state_dict(state["usual_of_groups"][name])


def read_for_blame(report: Report) -> list[str]:
    """Return the names of the numbers that tell which group moved; none where the tally has no ``Groups``."""
    return [name for name in report.given if name.startswith(HEAD) and name.endswith((LOSS, TOKENS))]


def _groups(report: Report) -> Iterator[tuple[str, float, int]]:
    """Yield each group that has tokens: its name, its cross-entropy and their count."""
    numbers = report.numbers
    for key in report.given:
        if key.startswith(HEAD) and key.endswith(LOSS):
            name = key[len(HEAD) : -len(LOSS)]
            loss, count = numbers.get(key), numbers.get(f"{HEAD}{name}{TOKENS}")
            if loss is not None and count and math.isfinite(loss):
                yield name, loss, int(count)
