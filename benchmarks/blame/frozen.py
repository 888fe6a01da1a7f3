"""Make the bed of trials: losses of a frozen model, clean steps without end, and steps in which one thing is wrong.

    python -m benchmarks.blame.frozen --to benchmarks/blame/bed                 # 20 CPU minutes, or what --minutes says
    python -m benchmarks.blame.frozen --to benchmarks/blame/bed --steps 100000  # more clean steps; it goes on where it was

Nothing trains but the model, once, so that a step costs a forward pass: 8 sequences of 128 bytes, on two ranks with two
micro-batches of two rows each. Text is cut into pieces that are used once. bed/README.md says what the files hold.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gzip
import io
import itertools
import json
import math
import random
import re
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.blame.faults import NEVER, Model, docstrings, prose
from pplmon.testing import corrupted

RANKS, MICRO_BATCHES, ROWS, LENGTH = 2, 2, 2, 128
PLACES = list(itertools.product(range(RANKS), range(MICRO_BATCHES), range(ROWS)))  # in the order of the columns
VOCAB = 256 + NEVER
DOMAINS = ("prose", "python", "headers")
PACKAGES = ("numpy", "torch", "torchmetrics", "pytorch_lightning")  # whose docstrings are prose, too
TRAINED, LEARNING_RATE = 2500, 1e-3
AT_ONCE = 32  # steps in one forward pass
HISTORY, AFTER = 300, 20  # clean steps before and after a fault that a trial has
BLOCK = 2000  # steps of one split
LASTING = 24  # steps that a fault of all sequences lasts
HELD_OUT, TUNE = 60, 20  # trials of each kind and dose; of kinds that last half as many
SEQUENCE_KINDS = ("garbage", "shuffled", "copied", "shifted", "repeated", "halves", "mojibake", "wrong_language")
SEQUENCE_KINDS += ("tokenizer_mismatch",)
DOSES: dict[str, tuple[float, float, float]] = dict.fromkeys(SEQUENCE_KINDS, (0.25, 0.5, 1.0)) | {
    "label_noise": (0.005, 0.01, 0.04),  # of all labels
    "sick_rank": (0.1, 0.2, 0.4),  # of the weights' standard deviation, as noise on one rank
    "stale_batch": (2, 4, 8),  # times that one batch is trained on again
}
NUMBERS = ("cross_entropy", "token_accuracy", "max_token_loss", "max_sequence_loss", "worst_1pct_loss")


@dataclass(frozen=True)
class Fault:
    """One trial: what is wrong, from which step of which domain, and where (``None``: in no single place)."""

    trial: int
    domain: str
    step: int
    kind: str
    dose: float
    rank: int | None
    micro_batch: int | None
    row: int | None
    split: str
    steps: int  # that it lasts
    document: int | None = None  # rows are whole


# The text.


@lru_cache
def pieces(domain: str) -> Tensor:
    """Return pieces of text [N, 129] of one domain, each different from all others, in random order."""
    whole = b"\n".join(_texts(domain))
    usable = len(whole) // (LENGTH + 1) * (LENGTH + 1)
    cut = torch.frombuffer(bytearray(whole[:usable]), dtype=torch.uint8).view(-1, LENGTH + 1)
    distinct = torch.unique(cut, dim=0)  # licences and tables stand in many files
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(DOMAINS.index(domain)))
    return distinct[order]


def _texts(domain: str) -> Iterator[bytes]:
    library, packages = Path(sysconfig.get_paths()["stdlib"]), Path(sysconfig.get_paths()["purelib"])
    if domain == "prose":
        roots = (library, *(packages / name for name in PACKAGES))
        yield "\n\n".join(prose([page for root in roots for page in docstrings(root)])).encode()
        return
    root, pattern = (library, "*.py") if domain == "python" else (packages / "torch" / "include", "*.h")
    for path in sorted(root.rglob(pattern)):
        if "site-packages" not in path.relative_to(root).parts:
            yield path.read_bytes()


@lru_cache
def foreign() -> bytes:
    """Return text in other languages: the translations that apprise ships."""
    root = Path(sysconfig.get_paths()["purelib"]) / "apprise" / "i18n"
    found: list[str] = []
    for language in ("ar", "de", "es", "fr", "hi", "ja", "ko", "pl", "pt", "ru", "th", "tr", "vi", "zh"):
        page = (root / language / "LC_MESSAGES" / "apprise.po").read_text(encoding="utf-8")
        found += re.findall(r'^msgstr "(.{20,})"$', page, re.MULTILINE)
    random.Random(0).shuffle(found)
    return "\n".join(found).encode()


# The model and its losses.


def trained(kept: Path) -> Model:
    """Return the frozen model: it is trained once on a part of the text that trials never use."""
    torch.manual_seed(0)
    model = Model(VOCAB)
    if kept.is_file():
        model.load_state_dict(torch.load(kept, weights_only=True))
        return model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    chance = torch.Generator().manual_seed(1)
    for step in range(TRAINED):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1, (step + 1) / 100)
        batch = torch.cat([_for_training(domain)[torch.randint(4000, (6,), generator=chance)] for domain in DOMAINS])
        _loss(model, batch.long()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.state_dict(), kept)
    return model


def _for_training(domain: str) -> Tensor:
    return pieces(domain)[-4000:]


def _loss(model: Model, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def tokens(model: Model, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return every token's loss in nats and whether it was right, both [B, T]."""
    logits = model(inputs)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return losses, logits.argmax(-1) == targets


def line(step: int, losses: Tensor, right: Tensor) -> dict[str, Any]:
    """Return the numbers of one step, by the formulas of docs/numbers.md, and the loss of every sequence."""
    sequences = losses.mean(1).tolist()
    worst = losses.flatten().topk(math.ceil(losses.numel() / 100)).values
    numbers = (
        losses.mean().item(),
        right.float().mean().item(),
        losses.max().item(),
        max(sequences),
        worst.mean().item(),
    )
    cells = {name: f"{value:.5g}" for name, value in zip(NUMBERS, numbers)}
    return {"step": step, **cells, **{_column(place): f"{loss:.4g}" for place, loss in zip(PLACES, sequences)}}


def _column(place: tuple[int, int, int]) -> str:
    return "loss@{}.{}.{}".format(*place)


def batch(domain: str, step: int) -> Tensor:
    """Return the ids of one step [8, 129]; no piece of text stands in two steps."""
    return pieces(domain)[step * len(PLACES) : (step + 1) * len(PLACES)].long()


def most_steps(domain: str) -> int:
    """Return how many clean steps the text is enough for."""
    return (len(pieces(domain)) - 4000) // len(PLACES)


def clean(model: Model, domain: str, begin: int, end: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of steps ``begin`` to ``end``."""
    for first in range(begin, end, AT_ONCE):
        steps = range(first, min(first + AT_ONCE, end))
        ids = torch.cat([batch(domain, step) for step in steps])
        losses, right = tokens(model, ids[:, :-1], ids[:, 1:])
        for step, own, correct in zip(steps, losses.split(len(PLACES)), right.split(len(PLACES))):
            yield line(step, own, correct)


# The faults.


def spoilt(kind: str, ids: Tensor, dose: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets [T] of one sequence [T + 1] whose last part, ``dose`` of it, is wrong."""
    begin = round((1 - dose) * LENGTH)
    inputs, targets, part = ids[:-1].clone(), ids[1:].clone(), ids[begin:]
    if kind == "copied":  # labels that are a copy of the inputs: nobody shifted them
        targets[begin:] = inputs[begin:]
        return inputs, targets
    if kind == "shifted":  # labels that were shifted twice
        targets[begin:] = targets[begin:].roll(-1)
        return inputs, targets
    wrong = torch.cat([ids[:begin], _wrong(kind, part, seed)])
    return wrong[:-1], wrong[1:]


def _wrong(kind: str, part: Tensor, seed: int) -> Tensor:
    if kind == "mojibake":  # accents that were encoded twice
        accents = {b"a"[0]: "á", b"e"[0]: "é", b"i"[0]: "í", b"o"[0]: "ó", b"u"[0]: "ú"}
        text = "".join(accents.get(byte, chr(byte)) for byte in part.tolist())
        return _bytes(text.encode().decode("latin-1").encode(), len(part))
    if kind == "wrong_language":
        start = random.Random(seed).randrange(len(foreign()) - 2 * LENGTH)
        return _bytes(foreign()[start:], len(part))
    if kind == "tokenizer_mismatch":  # the ids of another tokenizer, with its own order
        order = torch.randperm(256, generator=torch.Generator().manual_seed(9))
        return order[part]
    return corrupted(part, {"halves": "copied"}.get(kind, kind), 256, seed)  # the test kit's "copied": a half twice


def _bytes(text: bytes, length: int) -> Tensor:
    return torch.tensor(list(text[:length]))


def faulty(model: Model, fault: Fault) -> Iterator[dict[str, Any]]:
    """Yield the lines of the steps in which a fault stands."""
    if fault.kind in SEQUENCE_KINDS:
        ids = batch(fault.domain, fault.step)
        inputs, targets = ids[:, :-1].clone(), ids[:, 1:].clone()
        place = PLACES.index((fault.rank or 0, fault.micro_batch or 0, fault.row or 0))
        inputs[place], targets[place] = spoilt(fault.kind, ids[place], fault.dose, fault.trial)
        yield line(fault.step, *tokens(model, inputs, targets))
    elif fault.kind == "stale_batch":
        yield from _stale(model, fault)
    else:
        sick = _with_noise(model, fault.dose, fault.trial) if fault.kind == "sick_rank" else model
        for step in range(fault.step, fault.step + fault.steps):
            yield line(step, *_everywhere(model, sick, fault, step))


def _everywhere(model: Model, sick: Model, fault: Fault, step: int) -> tuple[Tensor, Tensor]:
    """Return the tokens of a step with noise in all labels, or with one rank whose weights are not the others'."""
    ids = batch(fault.domain, step)
    inputs, targets = ids[:, :-1], ids[:, 1:].clone()
    if fault.kind == "label_noise":
        chance = torch.Generator().manual_seed(1000 * fault.trial + step)
        hit = torch.rand(targets.shape, generator=chance) < fault.dose
        targets[hit] = torch.randint(256, (int(hit.sum()),), generator=chance)
    parts = []
    for rank in range(RANKS):
        rows = slice(rank * MICRO_BATCHES * ROWS, (rank + 1) * MICRO_BATCHES * ROWS)
        parts.append(tokens(sick if rank == fault.rank else model, inputs[rows], targets[rows]))
    return torch.cat([losses for losses, _ in parts]), torch.cat([right for _, right in parts])


def _with_noise(model: Model, share: float, seed: int) -> Model:
    sick, chance = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sick.parameters():
            if parameter.dim() > 1:
                parameter += share * parameter.std() * torch.randn(parameter.shape, generator=chance)
    return sick


def _stale(model: Model, fault: Fault) -> Iterator[dict[str, Any]]:
    """Yield the losses of a batch that is trained on again and again, from its second time on."""
    model, ids = copy.deepcopy(model), batch(fault.domain, fault.step - 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for step in range(fault.step, fault.step + fault.steps):
        _loss(model, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield line(step, *tokens(model, ids[:, :-1], ids[:, 1:]))


def blocks(steps: int, split: str) -> list[tuple[int, int]]:
    """Return the stretches of a domain's steps that are of one split, or all; more steps leave those before as they are."""
    found = []
    for first in range(0, steps, BLOCK):
        own = "tune" if first // BLOCK % 4 == 1 else "held-out"
        if split in ("all", own) and min(first + BLOCK, steps) - first > 2 * HISTORY:
            found.append((first, min(first + BLOCK, steps)))
    return found


def plan(steps: dict[str, int]) -> list[Fault]:
    """Return every trial; those for tuning and those held out stand in different blocks of a domain's steps."""
    chance, faults = random.Random(5), []
    for kind, doses in DOSES.items():
        whole = kind in SEQUENCE_KINDS
        for dose in doses:
            for split, count in (("tune", TUNE), ("held-out", HELD_OUT)):
                for number in range(count if whole else count // 2):
                    domain = DOMAINS[number % len(DOMAINS)]
                    first, end = chance.choice(blocks(steps[domain], split))
                    step = chance.randrange(first + HISTORY, end - LASTING - AFTER)
                    rank, micro_batch, row = chance.choice(PLACES)
                    lasts = 1 if whole else int(dose) if kind == "stale_batch" else LASTING
                    place = (rank, micro_batch, row) if whole else (rank if kind == "sick_rank" else None, None, None)
                    faults.append(Fault(len(faults), domain, step, kind, dose, *place, split, lasts))
    return faults


# The files.


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write lines as gzip CSV; the same lines are the same file."""
    page = io.StringIO()
    table = csv.DictWriter(page, list(lines[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    path.write_bytes(gzip.compress(page.getvalue().encode(), mtime=0))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines that were written before."""
    if not path.is_file():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as page:
        return list(csv.DictReader(page))


def extend(folder: Path, model: Model, steps: int, until: Callable[[], bool]) -> dict[str, int]:
    """Add clean steps to each domain up to ``steps``, or until it is time; return how many there are."""
    found = {domain: read(folder / f"{domain}.csv.gz") for domain in DOMAINS}
    while not until() and any(len(found[d]) < min(steps, most_steps(d)) for d in DOMAINS):
        for domain in DOMAINS:
            begin = len(found[domain])
            found[domain] += clean(model, domain, begin, min(begin + 512, steps, most_steps(domain)))
            write(folder / f"{domain}.csv.gz", found[domain])
        print(*(f"{domain} {len(lines):,}" for domain, lines in found.items()), flush=True)
    return {domain: len(lines) for domain, lines in found.items()}


def main() -> None:
    """Make the model, the clean steps and the trials."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--to", type=Path, required=True, help="a folder for the files")
    parser.add_argument("--steps", type=int, default=7000, help="clean steps of each domain")
    parser.add_argument("--minutes", type=float, default=20.0, help="of CPU time for clean steps")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    model = trained(Path(tempfile.gettempdir()) / f"pplmon-blame-frozen-{TRAINED}.pt")
    ends = time.process_time() + 60 * options.minutes
    steps = extend(options.to, model, options.steps, lambda: time.process_time() > ends)
    if not (options.to / "faults.json").is_file():  # trials stay where they were planted when clean steps are added
        faults = plan(steps)
        lines = [{"trial": fault.trial, **row} for fault in faults for row in faulty(model, fault)]
        write(options.to / "faulty.csv.gz", lines)
        rows = ",\n".join(json.dumps(asdict(fault)) for fault in faults)
        (options.to / "faults.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    print(steps)


if __name__ == "__main__":
    main()
