"""Rules that others have published, each as a ``Report -> Alert | None``, with the line that they come from.

Every one watches the mean loss of the step, which is more than some of them get at home (one rank's, or one micro-batch's).
All but Soup's say only when. Of these rows it would name the worst sequence, as ours does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from statistics import median

import numpy as np

import pplmon

METRIC = "cross_entropy"
Rule = Callable[[pplmon.Report], "pplmon.Alert | None"]


class Peer:
    """A published rule on one series. Subclasses answer ``beyond``: has this value gone beyond what they allow?"""

    def __init__(self, metric: str = METRIC) -> None:
        self._metric = metric

    def __call__(self, report: pplmon.Report) -> pplmon.Alert | None:
        """Judge one report."""
        value = report.numbers[self._metric]
        if report.nonfinite_tokens:
            value = math.nan  # ours leaves non-finite tokens out of the mean; in their own code the loss is NaN
        if report.stage != "train" or value is None or not self.beyond(float(value), report.step):
            return None
        name = type(self).__name__
        return pplmon.Alert(name, f"step {report.step}: {name}", self._metric, report.step, value=float(value))

    def beyond(self, value: float, step: int) -> bool:
        """Take in one value, and say whether it is a spike."""
        raise NotImplementedError


class Window:
    """The last ``size`` values with their mean and deviation, in constant time.

    Sums are of distances from the first value, so that they do not cancel. A NaN makes mean and deviation NaN for as long
    as it is among the values, as it does where lists are summed.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: deque[float] = deque()
        self._origin: float | None = None
        self._sum = self._squares = 0.0
        self._sick = 0

    def __len__(self) -> int:
        return len(self._values)

    def push(self, value: float) -> None:
        """Take one value in, and let the oldest go."""
        self._count(value, 1)
        self._values.append(value)
        if len(self._values) > self._size:
            self._count(self._values.popleft(), -1)

    def mean_and_deviation(self) -> tuple[float, float]:
        """Return the mean and the population's standard deviation."""
        if self._sick:
            return math.nan, math.nan
        count = len(self._values)
        mean = self._sum / count
        return (self._origin or 0.0) + mean, math.sqrt(max(0.0, self._squares / count - mean * mean))

    def _count(self, value: float, sign: int) -> None:
        if not math.isfinite(value):
            self._sick += sign
            return
        if self._origin is None:
            self._origin = value
        distance = value - self._origin
        self._sum += sign * distance
        self._squares += sign * distance * distance


class OlmoCore(Peer):
    """x > mean + 6 sd of the last 128; spikes enter the window, and a NaN blinds it until it has left.

    OLMo-core src/olmo_core/train/callbacks/stability_monitor.py, StabilityMonitorCallback._is_spike (138b1fca).
    """

    def __init__(self, metric: str = METRIC, window: int = 128, deviations: float = 6.0) -> None:
        super().__init__(metric)
        self._window, self._size, self._deviations = Window(window), window, deviations

    def beyond(self, value: float, step: int) -> bool:
        spike = False
        if len(self._window) >= self._size:
            mean, deviation = self._window.mean_and_deviation()
            spike = not deviation < 1e-10 and value > mean + self._deviations * deviation
        self._window.push(value)
        return spike


class Olmo2(Peer):
    """At least 7 sd away from the rolling mean of the last 1000, in either direction.

    The "spike score" of "2 OLMo 2 Furious" (Team OLMo, 2024). It says nothing about how to begin: here with 128 values, so
    that it takes part in short runs.
    """

    def __init__(self, metric: str = METRIC, window: int = 1000, deviations: float = 7.0, least: int = 128) -> None:
        super().__init__(metric)
        self._window, self._deviations, self._least = Window(window), deviations, least

    def beyond(self, value: float, step: int) -> bool:
        spike = False
        if len(self._window) >= self._least:
            mean, deviation = self._window.mean_and_deviation()
            spike = deviation > 0 and abs(value - mean) >= self._deviations * deviation
        self._window.push(value)
        return spike


class KillLossSpike(Peer):
    """Five in a row ≥ 2 × the mean of the last 100, or half the last 100 above 10 nats; ``patience=4``.

    llm-foundry llmfoundry/callbacks/kill_loss_spike_callback.py, detect_loss_spike and detect_high_losses (03826b58).
    """

    def __init__(self, metric: str = METRIC) -> None:
        super().__init__(metric)
        self._window: deque[float] = deque(maxlen=100)
        self._sum, self._high, self._outliers = 0.0, 0, 0

    def beyond(self, value: float, step: int) -> bool:
        alarm = False
        if len(self._window) == 100:
            if value >= 2 * self._sum / 100:
                self._outliers += 1
            else:
                self._outliers = 0
            alarm = self._outliers > 4 or (step >= 200 and self._high >= 50)
            self._sum, self._high = self._sum - self._window[0], self._high - (self._window[0] > 10)
        self._window.append(value)
        self._sum, self._high = self._sum + value, self._high + (value > 10)
        if math.isnan(self._sum):  # theirs is a mean of the whole window: a NaN leaves it with the value
            self._sum = math.fsum(self._window)
        return alarm


class SpikeDetection(Peer):
    """|x − mean| ≥ 2 × the mean of the last 10 values without spikes, and x above the one before; or not finite.

    Lightning src/lightning/fabric/utilities/spike.py, SpikeDetection._is_spike (0c94c0ea).
    """

    def __init__(self, metric: str = METRIC) -> None:
        super().__init__(metric)
        self._window: deque[float] = deque(maxlen=10)
        self._last = 0.0

    def beyond(self, value: float, step: int) -> bool:
        if self._window and self._is_spike(value):
            return True
        if math.isfinite(value):
            self._window.append(value)
            self._last = value
        return False

    def _is_spike(self, value: float) -> bool:
        if not math.isfinite(value):
            return True
        mean = sum(self._window) / len(self._window)
        return value > self._last and abs(value - mean) >= abs(2 * mean)


class LossWatchdog(Peer):
    """Above a fixed threshold three times in a row; the threshold is the user's, and the advice twice the first loss.

    axolotl src/axolotl/utils/callbacks/__init__.py, LossWatchDogCallback.on_step_end, loss_watchdog_patience=3 (067b021c).
    """

    def __init__(self, metric: str = METRIC) -> None:
        super().__init__(metric)
        self._threshold: float | None = None
        self._violations = 0

    def beyond(self, value: float, step: int) -> bool:
        if self._threshold is None:
            self._threshold = 2 * value
        self._violations = self._violations + 1 if value > self._threshold else 0
        return self._violations >= 3


class ZClip(Peer):
    """z > 2.5 over EMA mean and variance (α .97, 25 values of warm-up); a spike enters them clipped.

    ZClip zclip/zclip.py, _compute_clip_val and _update_ema, "adaptive_scaling" (1acb0857). Made for gradient norms: here it
    judges the loss.
    """

    alpha, limit, warm_up = 0.97, 2.5, 25

    def __init__(self, metric: str = METRIC) -> None:
        super().__init__(metric)
        self._first: list[float] = []
        self._mean = self._variance = 0.0

    def beyond(self, value: float, step: int) -> bool:
        if len(self._first) < self.warm_up:
            self._first.append(value)
            self._mean = sum(self._first) / len(self._first)
            self._variance = sum((x - self._mean) ** 2 for x in self._first) / len(self._first)
            return False
        deviation = math.sqrt(self._variance)
        z = (value - self._mean) / (deviation + 1e-6)
        spike = z > self.limit
        self._update(self._clipped(z, deviation) if spike else value)
        return spike

    def _clipped(self, z: float, deviation: float) -> float:
        return self._mean + self.limit * deviation / (z / self.limit)

    def _update(self, value: float) -> None:
        self._mean = self.alpha * self._mean + (1 - self.alpha) * value
        self._variance = self.alpha * self._variance + (1 - self.alpha) * (value - self._mean) ** 2


class EmaZScore(ZClip):
    """z > 6 over EMA mean and variance (α .97), every value entering as it is: the recipe of many a notebook.

    No one source; the threshold is OLMo-core's, the rest ZClip's.
    """

    limit = 6.0

    def _clipped(self, z: float, deviation: float) -> float:
        return self._mean + z * (deviation + 1e-6)


class Cusum(Peer):
    """A cumulative sum of (x − median) / (1.4826 MAD) of the last 200, less 1 a step, beyond 6 either way; then anew.

    trainscope trainscope/core/detectors/changepoint.py, ChangePointDetector.update, the detector by default, without ruptures
    (1416f387). Its other early sign, the kurtosis of activations, cannot be told from losses.
    """

    slack, threshold, size, least = 1.0, 6.0, 200, 30

    def __init__(self, metric: str = METRIC) -> None:
        super().__init__(metric)
        self._window: deque[float] = deque(maxlen=self.size)
        self._up = self._down = 0.0

    def beyond(self, value: float, step: int) -> bool:
        alarm = False
        if len(self._window) >= self.least:
            past = np.array(self._window)
            middle = float(np.median(past))
            z = (value - middle) / max(1e-12, 1.4826 * float(np.median(np.abs(past - middle))))
            self._up, self._down = max(0.0, self._up + z - self.slack), max(0.0, self._down - z - self.slack)
            alarm = max(self._up, self._down) >= self.threshold
            if alarm:
                self._up = self._down = 0.0
        self._window.append(value)
        return alarm


class Rewind(Peer):
    """x > 2 × the median of the last 20, of at least 3, or not finite. It names the row with the largest share of the loss.

    Soup src/soup_cli/utils/rewind.py, find_spikes and rank_rows (547b3ce9); at home it looks once the run is over.
    """

    def __init__(self, metric: str = METRIC) -> None:
        super().__init__(metric)
        self._window: deque[float] = deque(maxlen=20)

    def beyond(self, value: float, step: int) -> bool:
        if not math.isfinite(value):
            return True
        alarm = len(self._window) >= 3 and value > 2 * median(self._window)
        self._window.append(value)
        return alarm


PEERS: dict[str, Callable[[], Rule]] = {
    "OLMo-core 128/6σ": OlmoCore,
    "OLMo-2 1000/7σ": Olmo2,
    "llm-foundry KillLossSpike": KillLossSpike,
    "Lightning SpikeDetection": SpikeDetection,
    "Axolotl watchdog": LossWatchdog,
    "ZClip on the loss": ZClip,
    "EMA z > 6": EmaZScore,
    "trainscope CUSUM": Cusum,
    "Soup rewind": Rewind,
}
