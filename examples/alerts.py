"""Alerts: the built-in rules, a rule of one's own, and what an alert knows of the sequence that broke a step.

Run it:

    python examples/alerts.py
"""

import argparse
import math
from pathlib import Path
from pydoc_data.topics import topics  # English that every Python carries: nothing to download

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pplmon

CONTEXT, BATCH, STEPS = 64, 16, 130
BAD_STEP, BAD_ROW = 110, 5  # Spike has to see 64 steps before it judges


def worse_than_a_guess(report: pplmon.Report) -> pplmon.Alert | None:
    """A rule of one's own: one sequence costs twice what a uniform guess over 256 bytes would."""
    if (report.max_sequence_loss or 0) > 2 * math.log(256):
        return pplmon.Alert("worse_than_a_guess", f"a sequence costs {report.max_sequence_loss:.1f} nats a byte")
    return None


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


def decode(ids: list[int]) -> str:
    """What a tokenizer's ``decode`` is elsewhere. It is never given a negative id."""
    return bytes(ids).decode("latin-1")


def show(alert: pplmon.Alert) -> None:
    """A handler: it gets every alert with the worst tokens and sequences of the step that was judged."""
    print(alert)
    token, sequence = alert.worst[0], alert.worst_sequences[0]
    print(f"    worst sequence: row {sequence.sample_id} of the data, {sequence.loss:.1f} nats per byte")
    print(f"    worst token: {token.target_text!r}, {token.loss:.1f} nats, in {token.context_text!r}")


def main(out: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small a model is fastest on one
    text = torch.tensor(list("\n\n".join(topics.values()).encode()))
    rows = text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    rows = rows[torch.randperm(len(rows))[: STEPS * BATCH]]
    bad = BAD_STEP * BATCH + BAD_ROW
    rows[bad] = torch.randint(256, (CONTEXT + 1,))  # as if a binary file had slipped into the corpus
    print(f"row {bad} of the data is random bytes; step {BAD_STEP} trains on it")

    model = ByteModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    alerts: list[pplmon.Alert] = []
    monitor = pplmon.Monitor(
        every_n_steps=50,
        judge_every_n_steps=1,  # the default: a bad step is known one step later, long before its window is logged
        alerts=[
            *pplmon.default_alerts(),  # one bad sequence is a notice of theirs: it stands in the journal and calls nobody
            pplmon.Above("max_token_loss", 25.0),  # nats; a person's own threshold calls at the first crossing
            worse_than_a_guess,
        ],
        on_alert=[show, alerts.append],  # if one fails, it is told once, and training goes on
        decode=decode,
        sinks=[pplmon.sinks.Journal(out)],  # it has an alert on the disk before anything else hears of it
    )
    for step, ids in enumerate(rows.split(BATCH)):
        logits, targets = model(ids[:, :-1]), ids[:, 1:]
        monitor.observe(logits, targets, sample_ids=torch.arange(step * BATCH, (step + 1) * BATCH))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.step()
        if abs(step - BAD_STEP) <= 1:
            print(f"step {step}: the loss of the batch is {loss.item():.2f}")
    monitor.close()

    found = {alert.worst_sequences[0].sample_id for alert in alerts if alert.step == BAD_STEP}
    print(f"{len(alerts)} alerts; the rows they name: {sorted(found)}; it begins {decode(rows[bad].tolist())[:16]!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/alerts"))
    main(parser.parse_args().out)
