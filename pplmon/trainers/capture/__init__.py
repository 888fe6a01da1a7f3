"""Find logits and targets without changing the user's module."""

from pplmon.trainers.capture.batch import Targets
from pplmon.trainers.capture.find import Capture
from pplmon.trainers.capture.observe import listen_to_numbers, log, observe
from pplmon.trainers.capture.sources.configured import Logits

__all__ = ["Capture", "Logits", "Targets", "listen_to_numbers", "log", "observe"]
