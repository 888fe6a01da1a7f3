"""Say which shift a monitor counts, where it is not the default, and what of logits, targets and loss does not agree."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence

from pplmon.doctor import OFTEN_MEANT, TOLD_ELSEWHERE, Finding, Fit, Observation, TokenSet
from pplmon.doctor.loss_agrees import Gap

log = logging.getLogger("pplmon")


class Saying:
    """Speaks once of each thing."""

    def __init__(self, agreed: Callable[[str], None]) -> None:
        self._agreed = agreed  # takes a line that says that all agrees
        self._told: set[tuple[str, str]] = set()  # stage, and kind of finding; none for its choice

    def chosen(self, stage: str, shift: bool, default: bool, fit: Fit | None, batches: Sequence[Observation]) -> None:
        """Warn of a shift other than the default; note that the loss agrees."""
        agrees = fit is not None and fit.shift == shift
        if shift != default:
            reason = "the losses of other ranks show it"
            if agrees:
                equal = f"its cross-entropy of {_mean(batches, shift):.5g} equals the loss of {_loss(batches):.5g}"
                reason = f"{equal}, and with shift={default} it does not"
            self._warn(stage, "", f"counts with shift={shift}: {reason}. Write observe(..., shift={shift})")
        elif agrees:
            equal = f"its cross-entropy equals the loss, {_loss(batches):.5g} nats per token"
            self._agreed(f"{stage} counts with shift={shift}: {equal}")

    def disagree(self, stage: str, default: bool) -> None:
        """Warn that ranks do not agree."""
        self._warn(
            stage,
            "",
            f"counts the default, shift={default}: the ranks do not agree on the shift that their losses are of. Write "
            "observe(..., shift=True), or False",
        )

    def findings(self, stage: str, findings: Iterable[Finding], stated: bool) -> None:
        """Warn of what does not agree; note what may well be meant."""
        quiet = TOLD_ELSEWHERE | (
            set() if stated else {"target_leakage"}
        )  # the default of a masked model is no mistake
        for finding in findings:
            if finding.kind in OFTEN_MEANT:
                log.info("pplmon: %s: %s", stage, finding)
            elif finding.kind not in quiet:
                self._warn(stage, finding.kind, str(finding))

    def gap(self, stage: str, gap: Gap) -> None:
        """Warn that the loss and the number are far apart."""
        if gap.is_far:
            over = "a logged window" if stage == "train" else f"a pass of {stage}"
            self._warn(stage, "gap", f"over {over} {gap.text('observe', 'was given')}")

    def _warn(self, stage: str, kind: str, text: str) -> None:
        if (stage, kind) not in self._told:
            self._told.add((stage, kind))
            warnings.warn(f"pplmon: {stage}{':' if kind else ''} {text}", stacklevel=2)


def _mean(batches: Sequence[Observation], shift: bool) -> float:
    sums = [batch.facts.sums[TokenSet(int(shift))] for batch in batches]
    return sum(s.nll for s in sums) / sum(s.tokens for s in sums)


def _loss(batches: Sequence[Observation]) -> float:
    return sum(batch.loss.value for batch in batches if batch.loss is not None) / len(batches)
