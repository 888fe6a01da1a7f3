"""The ways of measuring logits that ``benchmarks.measure`` compares: ours, and what people use today.

A way is made for one batch and gives a function to be timed. What it returns becomes the batch's mean loss, so that a way that is
fast because it is wrong is seen. A way that cannot run here says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import pplmon
from pplmon.measure.pick import KERNELS


class Way(NamedTuple):
    """What is timed, and the mean loss in nats that its result holds."""

    run: Callable[[], Any]
    mean: Callable[[Any], float]


class NotHereError(Exception):
    """Why a way does not run on this machine."""


Maker = Callable[[Tensor, Tensor], Way]


def ours(kernel: str, entropy: bool = False) -> Maker:
    """One kernel, per token: loss, argmax, probability."""

    def make(logits: Tensor, targets: Tensor) -> Way:
        if kernel not in KERNELS:
            raise NotHereError(f"pplmon has no kernel {kernel}")
        if kernel == "triton":
            _need_cuda(logits)
        return Way(
            lambda: pplmon.token_stats(logits, targets, entropy=entropy, kernel=kernel),
            lambda stats: stats.nll.double().mean().item(),
        )

    return make


def tally(logits: Tensor, targets: Tensor) -> Way:
    """The whole of what a step pays: the kernel that is taken by itself, and every number's states."""
    metric = pplmon.TokenTally().to(logits.device)
    return Way(lambda: metric.update(logits, targets), lambda _: metric.report().cross_entropy)


def torchmetrics_pair(logits: Tensor, targets: Tensor) -> Way:
    """Perplexity and micro accuracy: of all that we measure, these two."""
    from torchmetrics.classification import MulticlassAccuracy
    from torchmetrics.text import Perplexity

    perplexity = Perplexity(ignore_index=-100).to(logits.device)
    accuracy = MulticlassAccuracy(logits.shape[1], average="micro", ignore_index=-100).to(logits.device)

    def run() -> None:
        perplexity.update(logits[None], targets[None])
        accuracy.update(logits, targets)

    return Way(run, lambda _: perplexity.compute().double().log().item())


def _loss_and_hits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets


def _wide_loss_and_hits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return F.cross_entropy(logits.float(), targets, reduction="none"), logits.argmax(-1) == targets


def cross_entropy(logits: Tensor, targets: Tensor) -> Way:
    """In the dtype of the logits, as a training loss is taken."""
    return Way(lambda: _loss_and_hits(logits, targets), _mean_of_first)


def compiled_cross_entropy(logits: Tensor, targets: Tensor) -> Way:
    """Compiled for this very shape, which is the best that it can do."""
    loop = torch.compile(_wide_loss_and_hits, dynamic=False)
    return Way(lambda: loop(logits, targets), _mean_of_first)


def liger(logits: Tensor, targets: Tensor) -> Way:
    """Its cross-entropy, with accuracy and argmax; forward only, which leaves the logits as they are."""
    _need_cuda(logits)
    try:
        from liger_kernel.transformers import LigerCrossEntropyLoss
    except ImportError as error:
        raise NotHereError("liger-kernel is not installed") from error
    loss = LigerCrossEntropyLoss(reduction="none", return_token_accuracy=True, return_predicted_tokens=True)
    return Way(lambda: loss(logits, targets), lambda out: out.loss.double().mean().item())


def trl(logits: Tensor, targets: Tensor) -> Way:
    """Its kernel for log-probability and entropy; no argmax."""
    _need_cuda(logits)
    try:
        from trl.kernels import selective_log_softmax_and_entropy
    except ImportError as error:
        raise NotHereError("trl with trl.kernels is not installed") from error
    return Way(
        lambda: selective_log_softmax_and_entropy(logits, targets, 1.0, None),
        lambda out: -out[0].double().mean().item(),
    )


def _need_cuda(logits: Tensor) -> None:
    if not logits.is_cuda:
        raise NotHereError("needs a CUDA device")


def _mean_of_first(out: tuple[Tensor, Tensor]) -> float:
    return out[0].double().mean().item()


PEER = "torchmetrics Perplexity + accuracy"
WAYS: dict[str, Maker] = {
    "pplmon eager": ours("eager"),
    "pplmon eager, entropy": ours("eager", entropy=True),
    "pplmon compiled": ours("compiled"),
    "pplmon compiled, entropy": ours("compiled", entropy=True),
    "pplmon triton": ours("triton"),
    "pplmon triton, entropy": ours("triton", entropy=True),
    "pplmon TokenTally.update": tally,
    PEER: torchmetrics_pair,
    "F.cross_entropy + argmax": cross_entropy,
    "torch.compile(F.cross_entropy(x.float()) + argmax)": compiled_cross_entropy,
    "Liger cross-entropy": liger,
    "TRL log-probability and entropy": trl,
}
