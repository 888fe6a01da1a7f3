"""Notice that two processes write one file at the same moment."""

from __future__ import annotations

import errno
from typing import BinaryIO


def has_another_writer(file: BinaryIO) -> bool:
    """Mark an open file as this process's; return True if another process has marked it.

    The mark goes with the process, however it ends. Where the system or its file system has none, False is returned.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False
