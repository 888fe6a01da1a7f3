"""What does not fit is an error that names the call, both shapes and the line that mends it, for each who may call."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pplmon
from pplmon.trainers.session import Session
from pplmon.trainers.settings import Settings

LOGITS, TARGETS = torch.randn(2, 5, 7), torch.zeros(2, 6, dtype=torch.int64)
SHAPES = "(2, 5), got (2, 6); if the last id has no logits, give targets[:, 1:]"


def in_a_session(wire: str) -> Any:
    """Show the logits from within a step of a trainer."""
    model = torch.nn.Linear(1, 1)
    session = Session(Settings(alerts=[], wire=wire), model)
    session.begin_batch({})
    pplmon.observe(model, LOGITS, TARGETS)


CALLS = {
    "pplmon.observe(self, logits, targets) in the module's step: ": lambda: in_a_session("lightning"),
    "pplmon.observe(model, logits, targets) in compute_loss: ": lambda: in_a_session("hugging_face"),
    "pplmon.observe(model, logits, targets) in the loop: ": lambda: in_a_session("loop"),
    "monitor.observe(logits, targets) in the loop: ": lambda: pplmon.Monitor(alerts=[]).observe(LOGITS, TARGETS),
    "pplmon.diagnose(logits, targets): ": lambda: pplmon.diagnose(LOGITS, TARGETS),
}


@pytest.mark.parametrize("call", CALLS)
def test_shapes_that_do_not_fit_are_told_with_the_call(call: str) -> None:
    """Once, at the front, whatever is within."""
    with pytest.raises(ValueError, match="targets must have the shape of") as raised:
        CALLS[call]()
    text = str(raised.value)
    assert text.startswith(call) and text.count("logits, targets)") == 1
    assert "logits (2, 5, 7)" in text and text.endswith(SHAPES)


def test_a_wrong_type_is_told_in_the_same_way() -> None:
    """Targets that are no ids; the kind of the error stays."""
    with pytest.raises(TypeError, match=r"^pplmon\.diagnose\(logits, targets\): targets must be integer token ids"):
        pplmon.diagnose(LOGITS, torch.zeros(2, 5))
