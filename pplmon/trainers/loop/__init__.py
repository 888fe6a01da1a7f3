"""Watch a loop of one's own: plain PyTorch, Lightning Fabric, accelerate."""

from pplmon.trainers.loop.monitor import Monitor

__all__ = ["Monitor"]
