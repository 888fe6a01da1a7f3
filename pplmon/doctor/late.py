"""Read a few numbers of the device once they have been copied: nobody waits for them."""

from __future__ import annotations

import torch
from torch import Tensor


class Late:
    """A copy of a small tensor to the host that was started, and has arrived or not."""

    def __init__(self, tensor: Tensor) -> None:
        self._host, self._copied = tensor.detach(), None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(tensor.device))  # the current device may be another

    @property
    def arrived(self) -> bool:
        """Tell whether ``values`` would not wait."""
        return self._copied is None or bool(self._copied.query())  # type: ignore[no-untyped-call]

    def values(self) -> list[float]:
        """Return the numbers, and wait for them where they have not arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        return list(self._host.tolist())
