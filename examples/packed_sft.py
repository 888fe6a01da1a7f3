"""Instruction tuning: padding, masked prompts and packing, and which document was worst. Numbers do not depend on it.

Run it:

    python examples/packed_sft.py
"""

import argparse
import base64
from pathlib import Path
from pydoc_data.topics import topics  # English that every Python carries: nothing to download

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pplmon

LENGTH, STEPS, BROKEN, IGNORED = 512, 60, 23, -100


def conversations() -> list[tuple[bytes, bytes]]:
    """Return (prompt, answer) pairs. One answer is base64: a file that nobody decoded."""
    pairs = [(f"What is {name}?\n".encode(), text.encode()[:200]) for name, text in sorted(topics.items())]
    pairs[BROKEN] = (pairs[BROKEN][0], base64.b64encode(pairs[BROKEN][1])[:200])
    return pairs


def padded(pairs: list[tuple[bytes, bytes]]) -> dict[str, Tensor]:
    """One conversation a row. Labels are the ids, but −100 for the prompt and the padding."""
    rows = [torch.tensor(list(prompt + answer)) for prompt, answer in pairs]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    for row, (prompt, _) in enumerate(pairs):
        labels[row, : len(prompt)] = IGNORED
    return {"ids": ids, "labels": labels, "sample_ids": torch.arange(len(pairs))}


def packed(pairs: list[tuple[bytes, bytes]]) -> dict[str, Tensor]:
    """Several conversations a row, told apart by ``document_ids``. A mask says what is scored."""
    rows: list[list[tuple[int, int, bool]]] = [[]]  # (id, document, scored)
    for document, (prompt, answer) in enumerate(pairs):
        if len(rows[-1]) + len(prompt + answer) > LENGTH:
            rows.append([])
        rows[-1] += [(byte, document, at >= len(prompt)) for at, byte in enumerate(prompt + answer)]
    filled = torch.tensor([row + [(0, -1, False)] * (LENGTH - len(row)) for row in rows])
    return {"ids": filled[..., 0], "document_ids": filled[..., 1], "mask": filled[..., 2].bool()}


def main(out: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small a model is fastest on one
    pairs = conversations()
    rows, packs = padded(pairs), packed(pairs)
    # It sees one byte back, so packing cannot change what it predicts: the two layouts have to agree.
    model = nn.Embedding(256, 256)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    # shift=True: logits at t predict the label at t+1. It moves the labels; the logits are never copied.
    tally = pplmon.TokenTally(ignore_index=IGNORED, shift=True)
    monitor = pplmon.Monitor(every_n_steps=STEPS // 2, tally=tally, alerts=[], sinks=[pplmon.sinks.Journal(out)])
    for _ in range(STEPS):
        logits = model(packs["ids"])
        monitor.observe(logits, packs["ids"], mask=packs["mask"], document_ids=packs["document_ids"])
        labels = packs["ids"].masked_fill(~packs["mask"], IGNORED)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.step()
    last = monitor.close()
    print(f"the last {STEPS // 2} steps: perplexity {last.perplexity:.2f} over {last.tokens} bytes of answers")

    # The same weights, measured in both layouts.
    with torch.no_grad():
        by_row, by_document, naive = tally.clone(), tally.clone(), tally.clone()
        by_row.update(model(rows["ids"]), rows["labels"], sample_ids=rows["sample_ids"])
        by_document.update(model(packs["ids"]), packs["ids"], mask=packs["mask"], document_ids=packs["document_ids"])
        naive.update(model(rows["ids"]), rows["ids"])  # what a forgotten mask gives: prompts and padding are scored
    one, other = by_row.report(), by_document.report()
    print(f"padded: {one.cross_entropy:.9f} nats per byte over {one.tokens}, in {one.sequences} answers")
    print(f"packed: {other.cross_entropy:.9f} nats per byte over {other.tokens}, in {other.sequences} answers")
    wrong = naive.report()
    print(f"without the mask it would read {wrong.cross_entropy:.9f} over {wrong.tokens}: plausible, and wrong")

    row, document, second = one.worst_sequences[0], *other.worst_sequences[:2]
    print(
        f"worst row: {row.sample_id}; worst document: {document.document_id}, {document.loss:.2f} nats per byte "
        f"(the next one: {second.loss:.2f})"
    )
    start = document.position + len(pairs[BROKEN][0])
    answer = bytes(packs["ids"][document.sequence, start : start + 24].tolist()).decode()
    print(f"it is in pack {document.sequence} from column {document.position}; its answer begins {answer!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/packed_sft"))
    main(parser.parse_args().out)
