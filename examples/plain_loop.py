"""The same numbers without a framework: a plain PyTorch loop, watched by ``pplmon.Monitor``.

Run it, and look at it:

    python examples/plain_loop.py
    pplmon view runs/plain_loop
"""

import argparse
from pathlib import Path
from pydoc_data.topics import topics  # English that every Python carries: nothing to download

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pplmon

CONTEXT, BATCH, ACCUMULATE, STEPS = 64, 8, 2, 120


class ByteModel(nn.Module):
    """Predicts the next byte from the last eight."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, 32)
        self.mix = nn.Linear(8 * 32, 256)
        self.head = nn.Linear(256, 256)

    def forward(self, ids: Tensor) -> Tensor:
        last_eight = F.pad(ids, (7, 0)).unfold(1, 8, 1)
        return self.head(torch.relu(self.mix(self.bytes(last_eight).flatten(2))))


def main(out: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small a model is fastest on one
    text = torch.tensor(list("\n\n".join(topics.values()).encode()))
    training, held_out = text[:-20_000], text[-20_000:]
    model = ByteModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    monitor = pplmon.Monitor(
        every_n_steps=40,  # optimizer steps in a logged window
        # Nothing is made before the first window; each place fails by itself, and training goes on.
        sinks=[pplmon.sinks.Console(), pplmon.sinks.TensorBoard(out), pplmon.sinks.Journal(out)],
        decode=lambda ids: bytes(ids).decode("latin-1"),
    )
    for step in range(STEPS):
        for _ in range(ACCUMULATE):
            starts = torch.randint(len(training) - CONTEXT, (BATCH,))
            ids = torch.stack([training[start : start + CONTEXT + 1] for start in starts.tolist()])
            logits, targets = model(ids[:, :-1]), ids[:, 1:]
            monitor.observe(logits, targets, sample_ids=starts)  # every micro-batch; never waits for the device
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            (loss / ACCUMULATE).backward()
        optimizer.step()
        optimizer.zero_grad()
        # Every optimizer step. The report comes one step late, so that no step waits for it.
        report = monitor.step()
        if report is not None:
            print(f"  {report.tokens} tokens in the window that ended at step {report.step}; now at step {step}")

    # A pass over other data is counted apart, and is one window however many batches it has.
    with torch.no_grad(), monitor.stage("val") as val:
        for ids in held_out.unfold(0, CONTEXT + 1, CONTEXT).split(64):
            monitor.observe(model(ids[:, :-1]), ids[:, 1:])
    last = monitor.close()  # waits for what is under way, and returns the last report

    print(f"val: perplexity {val.report.perplexity:.2f}, {val.report.bits_per_token:.2f} bits per byte")
    print(f"train: the worst 1 % of {last.tokens} bytes hold {last.worst_1pct_share:.0%} of the loss")
    worst = last.worst[0]
    print(
        f"the byte of the last window that cost most: {worst.target_text!r}, {worst.loss:.1f} nats at step {worst.step}, micro-batch "
        f"{worst.micro_batch}, sequence {worst.sequence}, position {worst.position}: {worst.context_text!r}"
    )
    at = worst.sample_id + 1 + worst.position  # sample_ids were the places in the text
    assert int(training[at]) == worst.target
    print(f"so it is byte {at} of the text; all numbers are in {out / 'pplmon.jsonl'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/plain_loop"))
    main(parser.parse_args().out)
