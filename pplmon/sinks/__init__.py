"""SHOW: one file per place. A backend is imported when its sink is first used, never by ``import pplmon``."""

from pplmon.sinks.base import Sink
from pplmon.sinks.console import Console
from pplmon.sinks.journal import Journal, read_journal
from pplmon.sinks.tensorboard import TensorBoard
from pplmon.sinks.wandb import WandB

__all__ = ["Console", "Journal", "Sink", "TensorBoard", "WandB", "read_journal"]
