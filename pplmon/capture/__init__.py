"""How logits and targets are found without changing the user's module."""

from pplmon.capture.batch import Targets
from pplmon.capture.capture import Capture, Logits
from pplmon.capture.observing import observe

__all__ = ["Capture", "Logits", "Targets", "observe"]
