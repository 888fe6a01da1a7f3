"""The waits that are meant, where the user has made every wait an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def waiting_allowed(device: torch.device) -> Iterator[None]:
    """Let the host wait for ``device`` within, also under ``torch.cuda.set_sync_debug_mode``: once, before a first batch.

    Whoever looks for waits in a training step sets that mode from the start. A kernel that could not be compared with the
    reference there would be given up for the whole run.
    """
    before = torch.cuda.get_sync_debug_mode() if device.type == "cuda" else 0
    if not before:  # to set the mode, even to what it is, makes PyTorch warn
        yield
        return
    torch.cuda.set_sync_debug_mode(0)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
