"""Connect pplmon to a Lightning ``Trainer``."""

from pplmon.trainers.lightning.callback import PerplexityMonitor

__all__ = ["PerplexityMonitor"]
