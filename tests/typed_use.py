"""Users' code that type-checks: ``make lint`` reads it with the package, and ``test_typing`` as a user's project would."""

from collections.abc import Mapping, Sequence
from typing import Any

import pplmon


class Halves(pplmon.Extra):
    size = 1
    declares = (pplmon.Number("halves", "count", "half of the tokens"),)

    def update(self, stats: pplmon.TokenStats, valid: Any, logits: Any, **batch_data: Any) -> Any:
        return valid.sum().reshape(1)

    def numbers(self, integers: Sequence[int]) -> Mapping[str, float | int | None]:
        return {"halves": integers[0] / 2}


class Old:  # what 0.1 took, without a base
    size = 1

    def update(self, stats: pplmon.TokenStats, valid: Any, logits: Any, **batch_data: Any) -> Any:
        return valid.sum().reshape(1)

    def numbers(self, sums: Sequence[int]) -> Mapping[str, float | int | None]:
        return {"old/tokens": sums[0]}


class High(pplmon.MetricRule):
    def judge(self, value: float, report: pplmon.Report) -> pplmon.Alert | None:
        return self.alert(report, value, 5.0, "is high") if value > 5 else None


def rule(report: pplmon.Report) -> pplmon.Alert | None:
    loss: float | None = report.cross_entropy
    tokens: int | None = report.tokens
    entropy: float | int | None = report.numbers["mean_entropy"]
    unit: str = pplmon.Report.max_token_loss.unit
    return None if loss is None or loss < 3 else pplmon.Alert("rule", f"{loss} {tokens} {entropy} {unit}")


extra: pplmon.Entropy = pplmon.Entropy()
tally = pplmon.TokenTally(extras=[extra, Halves(), Old()])
sink: pplmon.sinks.Sink = pplmon.sinks.Journal("runs/a")
monitor = pplmon.Monitor(tally=tally, sinks=[sink], alerts=[rule, High("halves"), pplmon.Spike("cross_entropy")])
