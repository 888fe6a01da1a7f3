"""Fused losses, called as docs/fused_losses.md says. Run as a script where kernels have to be interpreted.

Triton reads TRITON_INTERPRET when it is first imported, so Liger's kernels on a CPU need a process of their own:
``fused_script.py OUT`` writes what the test reads.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

VOCAB, HIDDEN, TOKENS = 50, 16, 40
Given = dict[str, Tensor]


def problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [N, H], a head's weight [V, H], and targets [N], some ignored and some easy."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator)
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator)
    easy = torch.arange(TOKENS) % 2 == 0
    targets[easy] = (hidden @ weight.T).argmax(-1)[easy]
    targets[::7] = -100
    return hidden.to(dtype), weight.to(dtype), targets


def of_torch(hidden: Tensor, weight: Tensor, targets: Tensor) -> Given:
    options = torch.nn.LinearCrossEntropyOptions()
    return {"nll": F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)}


def of_liger_fused(hidden: Tensor, weight: Tensor, targets: Tensor) -> Given:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    out = LigerFusedLinearCrossEntropyLoss(reduction="none", return_predicted_tokens=True)(weight, hidden, targets)
    return {"nll": out.loss, "predicted": out.predicted_tokens}


def of_liger(hidden: Tensor, weight: Tensor, targets: Tensor, **more: Any) -> Given:
    from liger_kernel.transformers import LigerCrossEntropyLoss

    loss = LigerCrossEntropyLoss(reduction="none", return_predicted_tokens=True, **more)
    out = loss(F.linear(hidden, weight), targets)
    return {"nll": out.loss if out.z_loss is None else out.loss - out.z_loss, "predicted": out.predicted_tokens}


def of_liger_z(hidden: Tensor, weight: Tensor, targets: Tensor) -> Given:
    return of_liger(hidden, weight, targets, lse_square_scale=1e-2, return_z_loss=True)


def of_cce(hidden: Tensor, weight: Tensor, targets: Tensor) -> Given:
    from cut_cross_entropy import linear_cross_entropy

    return {"nll": linear_cross_entropy(hidden, weight, targets, reduction="none", impl="torch_compile")}


def of_trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> Given:
    from trl.kernels import ChunkedLogProbFunction

    ids = targets.clamp(min=0)
    options = (1.0, 16, None, 1.0, ("entropy", "is_top1"))
    log_probs, entropy, _, _, is_top1 = ChunkedLogProbFunction.apply(hidden, weight, None, ids, *options)
    return {"nll": -log_probs, "correct": is_top1, "entropy": entropy}


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Given]] = {
    "torch": of_torch,
    "liger_fused": of_liger_fused,
    "liger": of_liger,
    "liger_z": of_liger_z,
    "cce": of_cce,
    "trl": of_trl,
}


def known(name: str, dtype: torch.dtype) -> Given:
    """What a loss knows of ``problem``'s tokens, and the gradient of its mean with respect to the hidden states."""
    hidden, weight, targets = problem(dtype)
    hidden.requires_grad_()
    given = LOSSES[name](hidden, weight, targets)
    (given["nll"] * (targets != -100)).sum().backward()
    return {**{key: value.detach() for key, value in given.items()}, "grad": hidden.grad}


def overwritten(**more: Any) -> list[str]:
    """What a monitor says that sees logits after Liger's loss, which writes gradients over them."""
    from liger_kernel.transformers import LigerCrossEntropyLoss

    import pplmon

    monitor = pplmon.Monitor(alerts=[])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(2):
            torch.manual_seed(seed)
            logits = (torch.randn(12, 64, requires_grad=True) * 3).view(2, 6, 64)
            targets = torch.randint(64, (2, 6))
            LigerCrossEntropyLoss(**more)(logits.flatten(0, 1), targets.flatten())
            assert logits._version == 0  # which is why it takes a look at the values
            monitor.observe(logits, targets)
    return [str(found.message) for found in caught if str(found.message).startswith("pplmon")]


def patched_llama(dtype: torch.dtype) -> float:
    """The largest change that Liger's patch makes to the logits that a Hugging Face model returns beside its loss."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).to(dtype)
    off = dict.fromkeys(("rope", "rms_norm", "swiglu", "fused_linear_cross_entropy"), False)
    apply_liger_kernel_to_llama(cross_entropy=True, **off)
    ids = torch.randint(64, (2, 8))
    clean = model(input_ids=ids).logits.detach()
    return float((model(input_ids=ids, labels=ids).logits.detach() - clean).abs().max())


if __name__ == "__main__":
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in ("liger_fused", "liger", "liger_z"):
        for dtype in (torch.float32, torch.bfloat16):
            found[f"{name} {dtype}"] = known(name, dtype)
    found["mean"], found["sum"] = overwritten(), overwritten(reduction="sum")
    found["z_loss"] = overwritten(lse_square_scale=1e-3)
    found["smoothed"] = overwritten(label_smoothing=0.1)
    found["llama"] = {str(dtype): patched_llama(dtype) for dtype in (torch.float32, torch.bfloat16)}
    torch.save(found, sys.argv[1])
