"""Tell where two threads call a monitor at once: what one counts while the other reads out would be lost in silence."""

from __future__ import annotations

import threading


class OneThread:
    """A block that one thread at a time is in; the same one may enter it again. Costs two operations of a lock."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "two threads call one Monitor at a time, and what one of them counts would be lost; let one thread call "
                "observe and step, or give each its own Monitor"
            )

    def __exit__(self, *exception: object) -> None:
        self._lock.release()
