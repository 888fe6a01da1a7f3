"""A fused loss never holds logits. What it knows of each token becomes the same report.

Run it, with the loss that you use (torch needs no package; liger, cce and trl those of that name), and in Lightning:

    python examples/fused_losses.py
    python examples/fused_losses.py --loss liger --lightning
"""

import argparse
import os
from pydoc_data.topics import topics  # English that every Python carries: nothing to download

import torch

# Liger's kernels on a CPU: slow, to look at. Triton reads this when it is first imported.
os.environ.setdefault("TRITON_INTERPRET", str(int(not torch.cuda.is_available())))

import pytorch_lightning as pl
import torch.nn.functional as F
from torch import Tensor, nn

import pplmon

CONTEXT, BATCH, VOCAB, STEPS = 16, 4, 256, 12

# Each takes hidden [N, H], the head's weight [V, H] and targets [N]; returns what its loss knows [N] as from_losses says.


def with_torch(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Tensor]:
    options = torch.nn.LinearCrossEntropyOptions()  # without options it makes the logits after all
    return {"nll": F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)}


def with_liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Tensor]:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    out = LigerFusedLinearCrossEntropyLoss(reduction="none", return_predicted_tokens=True)(weight, hidden, targets)
    return {"nll": out.loss, "predicted": out.predicted_tokens}


def with_cce(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Tensor]:
    from cut_cross_entropy import linear_cross_entropy

    how = {"reduction": "none", "impl": "cce" if hidden.is_cuda else "torch_compile"}
    return {"nll": linear_cross_entropy(hidden, weight, targets, **how)}


def with_trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Tensor]:
    from trl.kernels import ChunkedLogProbFunction

    ids = targets.clamp(min=0)  # it ignores no target: leave ignored ones out of the mean yourself
    options = (1.0, 128, None, 1.0, ("entropy", "is_top1"))
    log_probs, entropy, _, _, is_top1 = ChunkedLogProbFunction.apply(hidden, weight, None, ids, *options)
    return {"nll": -log_probs, "correct": is_top1, "entropy": entropy}


LOSSES = {"torch": with_torch, "liger": with_liger, "cce": with_cce, "trl": with_trl}


class ByteModel(pl.LightningModule):
    """Predicts the next byte from the last one."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        self.body = nn.Embedding(VOCAB, 32)
        self.head = nn.Linear(32, VOCAB, bias=False)
        self.loss = LOSSES[loss]

    def losses(self, ids: Tensor) -> tuple[Tensor, pplmon.TokenStats]:
        hidden, targets = self.body(ids[:, :-1]), ids[:, 1:]
        known = self.loss(hidden.flatten(0, 1), self.head.weight, targets.flatten())
        known = {
            name: value.view(targets.shape) for name, value in known.items()
        }  # [B, T]: with it, sequences are known
        return known["nll"], pplmon.TokenStats.from_losses(targets=targets, vocab_size=VOCAB, **known)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        nll, stats = self.losses(batch)
        pplmon.observe(self, stats)
        return nll.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.03)


def main(loss: str, lightning: bool) -> None:
    torch.manual_seed(0)
    text = torch.tensor(list("\n".join(topics.values()).encode()))
    batches = text[: STEPS * BATCH * (CONTEXT + 1)].view(STEPS, BATCH, CONTEXT + 1)
    model = ByteModel(loss)
    if lightning:
        monitor = pplmon.PerplexityMonitor(every_n_steps=STEPS // 2, alerts=[])
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = pl.Trainer(accelerator="cpu", max_steps=STEPS, callbacks=[monitor], **quiet)
        trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))
        print(f"train/cross_entropy {trainer.callback_metrics['train/cross_entropy']:.4f}")
        return
    monitor, optimizer = pplmon.Monitor(every_n_steps=STEPS // 2, alerts=[]), model.configure_optimizers()
    reports = []
    for batch in batches:
        nll, stats = model.losses(batch)
        monitor.observe(stats)
        nll.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        reports.append(monitor.step())
    for report in filter(None, [*reports, monitor.close()]):
        accuracy = "unknown" if report.token_accuracy is None else f"{report.token_accuracy:.3f}"
        print(
            f"step {report.step}: {report.tokens} tokens, cross-entropy {report.cross_entropy:.4f}, accuracy {accuracy}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loss", choices=LOSSES, default="torch")
    parser.add_argument("--lightning", action="store_true")
    options = parser.parse_args()
    main(options.loss, options.lightning)
