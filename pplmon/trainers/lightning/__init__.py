"""WIRE: pplmon in a Lightning ``Trainer``. No arithmetic."""

from pplmon.trainers.lightning.callback import PerplexityMonitor

__all__ = ["PerplexityMonitor"]
