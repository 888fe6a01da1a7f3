"""One thread that delivers messages, so that no step waits for a host that is slow or dead."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from pplmon.alerts.actions.secret_url import Undelivered

Message = TypeVar("Message")

QUEUE = 64  # messages that wait; what comes beyond is dropped, and counted
TRIES = 3  # of one message
BACK_OFF_S = 1.0  # before the second try; doubled before each further one
LONGEST_WAIT_S = 30.0  # whatever the host asks for
IDLE_S = 5.0  # a thread without work ends; the next message starts another
DRAIN_S = 5.0


class Worker(Generic[Message]):
    """Calls ``send(message)`` for one message after another on its own daemon thread.

    ``send`` raises ``Undelivered``, or anything else, of which only the type is ever shown.
    """

    def __init__(
        self,
        send: Callable[[Message], object],
        queue: int = QUEUE,
        tries: int = TRIES,
        back_off_s: float = BACK_OFF_S,
    ) -> None:
        self._send, self._size, self._tries, self._back_off_s = send, queue, tries, back_off_s
        self._waiting: deque[Message] = deque()
        self._changed = threading.Condition()
        self._hurry = threading.Event()  # a run is ending: no more waiting between tries
        self._thread: threading.Thread | None = None
        self._pid = -1
        self._busy = False
        self.sent = self.failed = self.dropped = 0
        self.trouble: str | None = None  # why the latest message that failed did

    def put(self, message: Message) -> bool:
        """Take a message, and return at once; ``False`` if the queue is full and the message is dropped."""
        if self._pid != os.getpid():
            self._begin()
        with self._changed:
            if len(self._waiting) >= self._size:
                self.dropped += 1
                return False
            self._waiting.append(message)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="pplmon-worker")
                self._thread.start()
            self._changed.notify_all()
        return True

    def drain(self, seconds: float = DRAIN_S) -> None:
        """Wait until all is delivered, at most ``seconds``. Messages left by then are dropped."""
        if self._pid != os.getpid():
            return
        self._hurry.set()
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)
            self.dropped += len(self._waiting)
            self._waiting.clear()
            if self._busy:  # it is left to itself
                self._busy = False
                self._thread = None
                self.dropped += 1
        self._hurry.clear()

    def _begin(self) -> None:
        """Start anew: after a fork neither the thread nor the lock of the parent can be used."""
        self._waiting, self._changed, self._hurry = deque(), threading.Condition(), threading.Event()
        self._thread, self._busy, self._pid = None, False, os.getpid()
        drain = weakref.WeakMethod(self.drain)
        atexit.register(lambda: (bound := drain()) and bound())

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                if not self._waiting:
                    self._changed.wait_for(lambda: bool(self._waiting), IDLE_S)
                if self._thread is not me:
                    return
                if not self._waiting:
                    self._thread = None
                    return
                message, self._busy = self._waiting.popleft(), True
            trouble = self._deliver(message)
            with self._changed:
                if self._thread is not me:  # given up by drain, which has counted this message
                    return
                self._busy = False
                self.sent += trouble is None
                self.failed += trouble is not None
                self.trouble = trouble or self.trouble
                self._changed.notify_all()

    def _deliver(self, message: Message) -> str | None:
        """Try a few times; return the reason of the failure, ``None`` after a success."""
        for attempt in range(self._tries):
            wait_s, retry = self._back_off_s * 2**attempt, True
            try:
                self._send(message)
            except Undelivered as error:
                trouble, retry = str(error), error.retry
                wait_s = wait_s if error.after_s is None else max(wait_s, error.after_s)
            except Exception as error:
                trouble = type(error).__name__  # its text may have the address in it
            else:
                return None
            if not retry or attempt + 1 == self._tries:
                break
            self._hurry.wait(min(wait_s, LONGEST_WAIT_S))
        return trouble
