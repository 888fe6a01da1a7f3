"""``pplmon.diagnose``: one batch, its loss, and what of it does not agree."""

from __future__ import annotations

from torch import Tensor

from pplmon.doctor.finding import Finding
from pplmon.doctor.hypotheses import Observation
from pplmon.doctor.judge import judge
from pplmon.doctor.loss import Loss
from pplmon.doctor.measured import measure
from pplmon.measure.called import name_call
from pplmon.measure.checks import check_logits
from pplmon.measure.tokens import is_dtensor


def diagnose(
    logits: Tensor,
    targets: Tensor,
    loss: Tensor | float | None = None,
    shift: bool = False,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    ignore_index: int | None = -100,
) -> list[Finding]:
    """Return what does not agree in one batch; an empty list where all does. Give what pplmon is given, and the loss.

    It measures the batch some six times over and waits for the device: call it on the first batches, or when in doubt.

    Args:
        logits: [B, T, V] or [N, V].
        targets: [B, T] or [N] int ids.
        loss: the training loss of this batch, before it is divided by accumulated batches.
        shift: as for ``token_stats``: logits at t predict the target at t + 1.
        input_ids: [B, T], what a decoder-only model was given at each column. Leave out an encoder's, and those of a masked model.
        attention_mask: [B, T], 0 on padding.
        ignore_index: targets of this value are not scored; ``None`` ignores nothing.

    Raises:
        ValueError: shapes that do not fit each other. TypeError: integer logits, non-integer targets or ids, a loss that is none.
    """
    try:
        seen = observation(logits, targets, loss, shift, input_ids, attention_mask, ignore_index)
    except (TypeError, ValueError) as error:
        name_call(error, "pplmon.diagnose(logits, targets)")
        raise
    return judge([seen], ignore_index)


def observation(
    logits: Tensor,
    targets: Tensor,
    loss: Tensor | float | None,
    shift: bool,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    ignore_index: int | None,
) -> Observation:
    """Check the arguments of ``diagnose``, and measure them."""
    check_logits(logits, targets, is_shard=False)
    if is_dtensor(logits):
        raise ValueError("diagnose needs whole logits, got a DTensor; give logits.full_tensor()")
    if not targets.numel():
        raise ValueError(
            f"diagnose needs at least one target, got shape {tuple(targets.shape)}; give a batch with rows"
        )
    if shift and logits.dim() == 2:
        raise ValueError(
            f"shift=True needs logits [B, T, V], got [N, V] {tuple(logits.shape)}; a flat batch has no next column"
        )
    _check("input_ids", input_ids, targets)
    _check("attention_mask", attention_mask, targets)
    known = None if loss is None else Loss.of(loss)
    measured = measure(logits, targets, shift, input_ids, attention_mask, ignore_index)
    return Observation(measured.facts(), known, measured=measured)


def _check(name: str, value: Tensor | None, targets: Tensor) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be an integer tensor, got {kind}; give the batch's own {name}")
    if value.shape != targets.shape:
        raise ValueError(
            f"{name} must have the shape of targets, {tuple(targets.shape)}, got {tuple(value.shape)}; leave it out where it "
            "is an encoder's, and cut the columns of a prefix off"
        )
