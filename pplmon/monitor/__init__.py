"""WHEN: cadence, windows, late read-out, and the order report → alerts → sinks. No framework."""

from pplmon.monitor.monitor import Monitor

__all__ = ["Monitor"]
