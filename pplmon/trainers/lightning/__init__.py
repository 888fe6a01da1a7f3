"""Wire pplmon into a Lightning ``Trainer``."""

from pplmon.trainers.lightning.callback import PerplexityMonitor

__all__ = ["PerplexityMonitor"]
