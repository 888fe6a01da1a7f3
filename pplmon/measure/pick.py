"""Pick the kernel that measures logits.

``eager`` is the reference and runs on every device; ``compiled`` and ``triton`` give the same numbers, faster.
"""

from __future__ import annotations

from torch import Tensor

from pplmon.measure.triton import launch as triton

KERNELS = ("eager", "compiled", "triton")


def check_kernel(kernel: str | None) -> None:
    """Raise ValueError for a name that no kernel has."""
    if kernel is not None and kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, or None for the fastest, got {kernel!r}")


def pick(kernel: str | None, logits: Tensor, is_shard: bool = False) -> str:
    """Return the name of the kernel that measures ``logits``: the one asked for, else the fastest that runs there.

    A shard of a vocabulary that is cut over ranks is measured by ``vocab_parallel`` with eager's arithmetic.
    """
    check_kernel(kernel)
    if is_shard:
        if kernel not in (None, "eager"):
            raise ValueError(
                f"a vocabulary that is cut over ranks is measured by kernel='eager' or None, got {kernel!r}"
            )
        return "eager"
    if kernel == "triton":
        triton.check(logits)
    return kernel or ("triton" if triton.fits(logits) else "eager")
