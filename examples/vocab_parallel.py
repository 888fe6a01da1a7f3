"""Tensor parallel: each rank has the logits of a part of the vocabulary, and they are measured without being gathered.

On two ranks, or on one, with the same numbers:

    torchrun --nproc-per-node 2 examples/vocab_parallel.py
    python examples/vocab_parallel.py
"""

import argparse
import os
import re
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics  # English that every Python carries: nothing to download

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, loss_parallel, parallelize_module

import pplmon

VOCAB, CONTEXT, BATCH, STEPS = 4000, 32, 8, 60


def words() -> tuple[Tensor, list[str]]:
    """Return the text as ids, and the word of each id; id 0 is every word that is too rare."""
    found = re.findall(r"\w+|[^\w\s]", "\n".join(topics.values()))
    known = ["…", *(word for word, _ in Counter(found).most_common(VOCAB - 1))]
    ids = {word: index for index, word in enumerate(known)}
    return torch.tensor([ids.get(word, 0) for word in found]), known


class WordModel(nn.Module):
    """Predicts the next word from the last two."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, 64)
        self.mix = nn.Linear(2 * 64, 64)
        self.head = nn.Linear(64, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        last_two = torch.stack([F.pad(ids[:, :-1], (1, 0)), ids], dim=2)
        return self.head(torch.relu(self.mix(self.words(last_two).flatten(2))))


def main(out: Path) -> None:
    mesh = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(0)
    torch.set_num_threads(1)
    text, known = words()
    # The head's output stays a DTensor of which each rank holds its own columns.
    columns = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    model = parallelize_module(WordModel(), mesh["tp"], {"head": columns})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, foreach=False)

    first = dist.get_rank() == 0
    monitor = pplmon.Monitor(
        every_n_steps=20,
        # Ranks that share a vocabulary hold the same tokens. Count over the ranks that hold different ones.
        tally=pplmon.TokenTally(process_group=mesh["dp"].get_group()),
        sinks=[pplmon.sinks.Console(), pplmon.sinks.Journal(out)] if first else [],
        decode=lambda ids: " ".join(known[index] for index in ids),
    )
    for _ in range(STEPS):
        starts = torch.randint(len(text) - CONTEXT, (BATCH,))
        ids = torch.stack([text[start : start + CONTEXT + 1] for start in starts.tolist()])
        logits, targets = model(ids[:, :-1]), ids[:, 1:]
        monitor.observe(logits, targets)  # on every rank; one collective of 20 bytes a token
        with loss_parallel():
            F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.step()
    last = monitor.close()

    whole = logits.full_tensor()  # what pplmon does not do
    here, there = pplmon.token_stats(logits, targets), pplmon.token_stats(whole, targets)
    # The same without DTensors: say which part of the vocabulary the tensor holds. Made once, by every rank together.
    part = logits.to_local()
    start = dist.get_rank() * part.shape[-1]
    shard = pplmon.VocabShard(mesh["tp"].get_group(), start, start + part.shape[-1], size=VOCAB)
    plain = pplmon.token_stats(part, targets, vocab_shard=shard)
    assert torch.equal(here.predicted, there.predicted)
    assert torch.equal(here.nll, plain.nll)
    if first:
        worst = last.worst[0]
        print(f"perplexity {last.perplexity:.2f} over {last.tokens} words")
        print(f"the word that cost most: {worst.target_text!r}, {worst.loss:.1f} nats, in: {worst.context_text}")
        if dist.get_world_size() > 1:
            print(f"each rank gave 20 bytes a word; to gather the logits it would give {part.shape[-1] * 4}")
        print(f"the same ids are predicted; losses differ by at most {(here.nll - there.nll).abs().max():.0e} nats")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/vocab_parallel"))
    options = parser.parse_args()
    if "RANK" in os.environ:  # torchrun
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    main(options.out)
    dist.destroy_process_group()
