"""Decide when to read out, judge, log and stop, for any training loop."""

from pplmon.monitor.monitor import Monitor

__all__ = ["Monitor"]
