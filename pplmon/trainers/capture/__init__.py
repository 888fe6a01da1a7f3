"""How logits and targets are found without changing the user's module."""

from pplmon.trainers.capture.batch import Targets
from pplmon.trainers.capture.find import Capture, Logits
from pplmon.trainers.capture.observe import observe

__all__ = ["Capture", "Logits", "Targets", "observe"]
