"""The words that all findings share."""

from __future__ import annotations

TARGETS = {-1: "targets[t-1]", 0: "targets[t]", 1: "targets[t+1]", 2: "targets[t+2]"}
GIVE_LABELS = "Give the labels as the batch has them, with shift=True"
PLAIN_LOSS = {
    0: "loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())",
    1: "loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())",
}


def nats(value: float) -> str:
    """Return a value in five digits."""
    return f"{value:.5g}"


def both(loss: float, mean: float) -> str:
    """Return the two values that every finding about a loss gives."""
    return f"the loss is {nats(loss)}, the cross-entropy {nats(mean)}"
