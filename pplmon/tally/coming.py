"""Wait for a collective a limited time, without giving it up."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch

Comes = Callable[[float], bool]  # seconds -> True if it arrives within them; may be asked again
Waits = Callable[[Comes], None]  # returns once it arrived, or raises RuntimeError to give it up
SHORTEST_NAP_S, LONGEST_NAP_S = 0.0001, 0.01


def comes(work: Any, device: torch.device, seconds: float) -> bool:
    """Return True if a collective is done, or has failed, within ``seconds``."""
    if device.type != "cpu":  # NCCL would end its communicator where this time is over
        return within(seconds, work.is_completed)
    if not work.is_completed():
        try:
            work.wait(timedelta(seconds=max(seconds, 0.001)))  # 0 would be for ever
        except RuntimeError:  # not yet; of one that failed its own ``wait`` tells
            return bool(work.is_completed())
    return True


def wait_for(work: Any, device: torch.device, wait: Waits | None = None) -> None:
    """Wait for a collective; ``wait`` may give it up before its group does."""
    if wait is not None:
        wait(partial(comes, work, device))
    work.wait()


def within(seconds: float, done: Callable[[], bool]) -> bool:
    """Wait at most so long until something is done: in short naps at first, since most of it is done at once."""
    begun, nap = time.monotonic(), SHORTEST_NAP_S
    while not done():
        if time.monotonic() - begun > seconds:
            return False
        time.sleep(nap)
        nap = min(2 * nap, LONGEST_NAP_S)
    return True
