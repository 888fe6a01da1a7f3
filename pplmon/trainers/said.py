"""Say once, for each stage, which logits are counted and whether they agree with the loss."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable

from pplmon.doctor import OFTEN_MEANT, Finding
from pplmon.doctor.loss_agrees import Gap
from pplmon.monitor import Monitor
from pplmon.trainers.capture.choose import Chosen
from pplmon.trainers.capture.evidence import Verdict
from pplmon.trainers.capture.padding import kind_of

_WITHOUT = {"": "", "mask": ", without the padding of the attention mask", "id": ", without the padding, id {}"}

log = logging.getLogger("pplmon")


class Saying:
    """Speaks on the rank that shows things."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._told: set[str] = set()
        self._kinds: set[tuple[str, str]] = set()
        self._far: set[str] = set()

    def words(self, chosen: Chosen, shift: bool | None) -> str:
        """Return what is counted, in words; ``shift`` is what counts where nothing else is chosen."""
        what = chosen.name or "what pplmon.observe shows"
        number = "" if chosen.number is None else f", its call {chosen.number + 1} of a batch"
        shift = shift if chosen.shift is None else chosen.shift
        shifted = "" if shift is None else f", with shift={shift}"
        return f"{what}{number}{shifted}{_WITHOUT[kind_of(chosen.without)].format(chosen.without)}"

    def tell(self, stage: str, verdict: Verdict, chosen: Chosen) -> None:
        """Warn of a departure from the default, and of what does not agree; else note that all agrees."""
        if not self._monitor.writes:
            return
        counts = self.words(chosen, None)
        default = self.words(verdict.default, None if chosen.shift is None else verdict.shift)
        if chosen != verdict.default:
            if verdict.equals is not None:
                every = (
                    ", all its calls of a batch" if chosen.number is None and verdict.default.number is not None else ""
                )
                self._warn(
                    f"{stage} counts {counts}{every}: its cross-entropy of {verdict.shown:.5g} equals the loss of "
                    f"{verdict.equals:.5g}, and that of {default} does not"
                )
            else:
                self._warn(f"{stage} counts {counts}: the input ids show that the targets are shifted so")
        elif verdict.equals is not None:
            equal = f"equals the loss, {verdict.equals:.5g} nats per token"
            if verdict.divides:  # by all labels, or by those of the whole step: the two numbers are not the same
                equal = (
                    f"of {verdict.shown:.5g} nats per token is the loss of {verdict.equals:.5g}, but for its divisor: "
                    "num_items_in_batch is not the number of these tokens"
                )
            self._monitor.agreed(f"{stage} counts {self.words(chosen, verdict.shift)}: its cross-entropy {equal}")
        if verdict.others and verdict.chosen == verdict.default:
            both = (
                "all of them count"
                if chosen.number is None and chosen.name in verdict.others[0]
                else "they do not count"
            )
            self._warn(
                f"{stage} counts {counts}, and in the same batch there are {', '.join(verdict.others)}: {both}. "
                'To choose, name a submodule, PerplexityMonitor(logits="path", targets=...), or call pplmon.observe(self, '
                "logits, targets) in the step"
            )
        self.findings(stage, verdict.told)

    def findings(self, stage: str, findings: Iterable[Finding]) -> None:
        """Warn of what does not agree in a batch that was looked at; note what may well be meant."""
        for finding in findings if self._monitor.writes else ():
            if finding.kind in OFTEN_MEANT:
                log.info("pplmon: %s: %s", stage, finding)
            elif (stage, finding.kind) not in self._kinds:
                self._kinds.add((stage, finding.kind))
                self._warn(f"{stage}: {finding}")

    def gap(self, stage: str, gap: Gap, is_sure: bool = False) -> None:
        """Warn once for each stage that the loss and the number are far apart, or, if that ``is_sure``, not the same."""
        if (gap.is_far or is_sure) and self._monitor.writes and stage not in self._far:
            self._far.add(stage)
            where, step = (
                ("a logged window", "training_step") if stage == "train" else (f"a pass of {stage}", "the step")
            )
            self._warn(f"over {where} {gap.text(step)}")

    def _warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            warnings.warn(f"pplmon: {text}", stacklevel=2)
