"""A file of a user's own: rules of a class and of a function, and an extra. ``--rules`` and ``--rule`` are given it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import pplmon


class Doubled(pplmon.MetricRule):
    """Alerts where a number is so many times its best so far; it remembers the best, and keeps its factor to itself."""

    tuned_by = "factor"

    def __init__(self, metric: str, factor: float = 2.0, stage: str = "train") -> None:
        super().__init__(metric, stage)
        self._times = factor
        self.best = math.inf

    def judge(self, value: float, report: pplmon.Report) -> pplmon.Alert | None:
        self.best = min(self.best, value)
        limit = self._times * self.best
        return self.alert(report, value, limit, f"is {value:.4g}") if value > limit else None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best = state["best"]


def loud(report: pplmon.Report) -> pplmon.Alert | None:
    """A rule that is a function."""
    return pplmon.Alert("loud", f"step {report.step}") if (report.max_token_loss or 0) > 6 else None


class Hesitation(pplmon.Extra):
    """The share of tokens of whose argmax the model is unsure."""

    size = 2
    declares = (
        pplmon.Number("hesitation_rate", "", "tokens whose argmax has p < least / tokens", high=1.0, best="min"),
        pplmon.Number("hesitation/{name}/tokens", "count", "such tokens of one kind"),
    )

    def __init__(self, least: float = 0.5) -> None:
        self.least = least

    def update(self, stats: pplmon.TokenStats, valid: Any, logits: Any, **batch_data: Any) -> torch.Tensor:
        return torch.stack([valid.sum(), (valid & (stats.top_probability < self.least)).sum()])

    def numbers(self, integers: Sequence[int]) -> dict[str, float]:
        tokens, unsure = integers
        return {"hesitation_rate": unsure / tokens if tokens else math.nan, "hesitation/all/tokens": unsure}
