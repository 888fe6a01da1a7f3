"""Plant faults in small real training runs, and write each run's judged numbers, worst addresses and planted addresses.

    python -m benchmarks.blame.faults --to benchmarks/blame/data      # all runs: about twenty minutes on one core
    python -m benchmarks.blame.faults --to /tmp/x --only word-packed  # some of them

A run is one gzip CSV; README.md says how to read it. Text, tokens and models are made from what every Python carries.
Shapes: B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

import argparse
import ast
import csv
import gzip
import io
import json
import math
import re
import sysconfig
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import pplmon
from pplmon.demo.text import language_reference
from pplmon.testing import corrupted, run_on_ranks

WIDTH, HEADS = 64, 2
WORDS = 2048  # V of the word-level models
NEVER = 4  # ids at the end of every vocabulary that no text holds: special tokens in the wrong place are made of them
FIRST, SPACING, PER_RUN = 120, 210, 8  # steps; a rule may be quiet for 200 steps after an alert
TRAINED = 3000  # steps before a run begins: what is monitored is mostly a model that knows something
LEARNING_RATE = 1e-3

SEQUENCE_FAULTS = ("garbage", "shuffled", "copied", "shifted", "halves", "repeated")
TOKEN_FAULTS = ("wrong_targets", "extreme_tokens")
MODEL_FAULTS = ("lr_jump", "weight_noise", "head_row", "nan")
ALWAYS = ("garbage", "shuffled", "copied")  # in every run; three others of the data and two of the model take turns

NUMBERS = (
    *("cross_entropy", "token_accuracy", "mean_target_probability", "max_token_loss", "max_sequence_loss"),
    *("token_loss_p50", "token_loss_p90", "token_loss_p99", "token_loss_p999", "worst_1pct_loss", "worst_1pct_share"),
    *("above_uniform_rate", "max_token_excess", "overconfident_error_rate", "nonfinite_tokens", "tokens", "sequences"),
)
KEPT = 2  # worst sequences and tokens of each step


@dataclass(frozen=True)
class Setup:
    """One run. ``split``: "tune" or "held-out", which of the two its results may be used for."""

    name: str
    model: str  # byte or word
    seed: int
    split: str
    faulty: bool = True
    ranks: int = 1
    accumulate: int = 1
    packed: bool = False
    steps: int = FIRST + SPACING * PER_RUN - 100
    trained: int = TRAINED

    @property
    def length(self) -> int:
        """T: a packed row holds several documents."""
        return 256 if self.packed else 128

    @property
    def rows(self) -> int:
        """B of one micro-batch on one rank: a step has 12 rows of bytes or 8 of words, half as many where packed."""
        return (12 if self.model == "byte" else 8) * 128 // self.length // self.accumulate // self.ranks


@dataclass(frozen=True)
class Fault:
    """One planted fault: what, when, and where (``None``: in no single place)."""

    kind: str
    step: int
    rank: int | None = None
    micro_batch: int | None = None
    row: int | None = None
    document: int | None = None

    def address(self) -> str:
        """``kind@rank.micro_batch.row.document``, with nothing for what it has not."""
        parts = (self.rank, self.micro_batch, self.row, self.document)
        return f"{self.kind}@" + ".".join("" if part is None else str(part) for part in parts)


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate": 2},
    "packed": {"packed": True},
    "both": {"accumulate": 2, "packed": True},
}
TUNE_SEEDS = (0, 100)  # no held-out run shares a seed with these: the same seed draws the same sequences, however cut


def setups() -> list[Setup]:
    """Every published run; rules may be tuned on those of ``TUNE_SEEDS``, which come first, the others are held out."""
    runs = []
    for model in ("byte", "word"):
        for shape, seed in (("plain", 0), ("both", 0), ("accumulated", 1), ("packed", 2), ("plain", 3), ("both", 4)):
            runs.append(_setup(model, shape, seed))
        tuned, kept = ("plain", "both") if model == "byte" else ("both", "plain")
        for shape, seed in ((tuned, 100), (kept, 101)):
            runs.append(_setup(model, shape, seed, "-clean", faulty=False, steps=2000))
        runs.append(_setup(model, kept, 50, "-ranks", ranks=2))
    return sorted(runs, key=lambda run: run.split != "tune")


def _setup(model: str, shape: str, seed: int, note: str = "", **more: Any) -> Setup:
    split = "tune" if seed in TUNE_SEEDS else "held-out"
    return Setup(f"{model}-{shape}{note}-{seed}", model, seed, split, **SHAPES[shape], **more)


# The text and the model.


@lru_cache
def text(model: str) -> tuple[Tensor, int]:
    """Return ids [N] and V: the language reference and the standard library's docstrings, as bytes or as words."""
    pages = [
        bytes(language_reference()[0].tolist()).decode("utf-8", "replace"),
        *docstrings(Path(sysconfig.get_paths()["stdlib"])),
    ]
    whole = "\n\n".join(prose(pages))
    if model == "byte":
        return torch.frombuffer(bytearray(whole.encode()), dtype=torch.uint8).long(), 256 + NEVER
    words = re.findall(r" ?[A-Za-z][a-z]*|\d|\s|.", whole)
    common = [word for word, _ in Counter(words).most_common(WORDS - NEVER - 1)]
    index = {word: place for place, word in enumerate(common, start=1)}  # 0 is any other word
    return torch.tensor([index.get(word, 0) for word in words]), WORDS


def prose(pages: list[str]) -> Iterator[str]:
    """Every paragraph once that is mostly letters: data are filtered before a run, too."""
    paragraphs = dict.fromkeys(part.strip() for page in pages for part in re.split(r"\n\s*\n", page))
    for part in paragraphs:
        words = " ".join(part.split())
        if len(words) > 40 and sum(c.isalpha() or c == " " for c in words) >= 0.85 * len(words) and words.isascii():
            yield words


def docstrings(root: Path) -> Iterator[str]:
    """The docstrings of all modules in a folder, without tests: of the standard library, English that every Python carries."""
    for path in sorted(root.rglob("*.py")):
        if set(path.relative_to(root).parts) & {"test", "tests", "site-packages", "idlelib", "lib2to3", "turtledemo"}:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in others' files
            try:
                tree = ast.parse(path.read_bytes())
            except SyntaxError:  # for a newer Python
                continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                found = ast.get_docstring(node)
                if found and len(found) > 80:
                    yield found


class Model(nn.Module):
    """One pre-norm transformer layer, made small enough for a hundred faults in minutes."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab, WIDTH), nn.Embedding(256, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.qkv, self.mix = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, vocab, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.05)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits [B, T, V] for ids [B, T]."""
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        parts = self.qkv(self.norms[0](x)).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).flatten(2))
        return self.head(self.norms[2](x + self.feed(self.norms[1](x))))


@dataclass
class Batch:
    """One micro-batch; ``poisoned``: the row whose logits turn NaN."""

    inputs: Tensor  # [B, T]
    targets: Tensor  # [B, T]
    documents: Tensor | None  # [B, T], row·10 + the document's place in it
    poisoned: int | None = None

    def columns(self, row: int, document: int | None) -> slice:
        """The columns of a document, or of the whole row."""
        if document is None or self.documents is None:
            return slice(None)
        inside = (self.documents[row] == document).nonzero()
        return slice(int(inside[0]), int(inside[-1]) + 1)


# How a packed row of 256 columns is filled.
PACKINGS = ((128, 128), (64, 192), (192, 64), (96, 160), (80, 80, 96), (64, 64, 128), (100, 156), (256,))


class Feed:
    """Draws micro-batches for one rank: windows from random places of the text."""

    def __init__(self, setup: Setup, rank: int) -> None:
        self._ids, self.vocab = text(setup.model)
        self._setup = setup
        self._chance = torch.Generator().manual_seed(1000 * setup.seed + rank)
        within = [torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)]) for lengths in PACKINGS]
        begins = [torch.cat([torch.full((n,), sum(ls[:i])) for i, n in enumerate(ls)]) for ls in PACKINGS]
        self._within, self._begins = torch.stack(within), torch.stack(begins)  # [packings, 256]

    def draw(self) -> Batch:
        """Return the next micro-batch."""
        setup, chance = self._setup, self._chance
        columns = torch.arange(setup.length)
        starts = torch.randint(len(self._ids) - setup.length - 1, (setup.rows, 4), generator=chance)
        documents = None
        if setup.packed:
            packing = torch.randint(len(PACKINGS), (setup.rows,), generator=chance)
            within = self._within[packing]
            documents = within + 10 * torch.arange(setup.rows)[:, None]
            where = starts.gather(1, within) + columns - self._begins[packing]
        else:
            where = starts[:, :1] + columns
        return Batch(self._ids[where], self._ids[where + 1], documents)


# The faults.


def plan(setup: Setup) -> dict[int, Fault]:
    """Where and when this run's faults are planted, by step: data faults first, as those of the model leave traces."""
    if not setup.faulty:
        return {}
    chance = torch.Generator().manual_seed(setup.seed + 7)
    turn = setup.seed * 4 + setup.accumulate + 2 * setup.packed + (setup.model == "word")
    others = [kind for kind in SEQUENCE_FAULTS + TOKEN_FAULTS if kind not in ALWAYS]
    data = [*ALWAYS, *(others[(3 * turn + i) % len(others)] for i in range(3))]
    data = [data[i] for i in torch.randperm(len(data), generator=chance)]
    kinds = [*data, *(MODEL_FAULTS[(2 * turn + i) % len(MODEL_FAULTS)] for i in range(PER_RUN - len(data)))]
    faults = [_placed(kind, FIRST + SPACING * i, setup, chance) for i, kind in enumerate(kinds)]
    return {fault.step: fault for fault in faults}


def _placed(kind: str, step: int, setup: Setup, chance: torch.Generator) -> Fault:
    if kind in MODEL_FAULTS and kind != "nan":
        return Fault(kind, step)
    rank, micro_batch, row = (
        int(torch.randint(size, (), generator=chance)) for size in (setup.ranks, setup.accumulate, setup.rows)
    )
    # wrong_targets are spread over a micro-batch; the document of the others is chosen when the row is known
    return Fault(kind, step, rank, micro_batch, None if kind == "wrong_targets" else row)


def spoil(batch: Batch, fault: Fault, vocab: int, seed: int = 0) -> Fault:
    """Plant a data fault in its micro-batch, and return it with the document that it hit."""
    seed = 100_003 * seed + fault.step
    chance = torch.Generator().manual_seed(seed)
    if fault.kind == "wrong_targets":
        places = torch.randperm(batch.targets.numel(), generator=chance)[:30]
        batch.targets.view(-1)[places] = torch.randint(vocab - NEVER, (30,), generator=chance)
        return fault
    row = fault.row or 0
    if fault.kind == "nan":
        batch.poisoned = row
        return fault
    document = None
    if batch.documents is not None:
        document = int(batch.documents[row, int(torch.randint(batch.inputs.shape[1], (), generator=chance))])
    columns = batch.columns(row, document)
    inputs, targets = batch.inputs[row, columns], batch.targets[row, columns]
    spoilt = _spoilt(fault.kind, inputs, targets, vocab, chance, seed)
    batch.inputs[row, columns], batch.targets[row, columns] = spoilt
    return Fault(fault.kind, fault.step, fault.rank, fault.micro_batch, row, document)


def _spoilt(
    kind: str, inputs: Tensor, targets: Tensor, vocab: int, chance: torch.Generator, seed: int
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets [L] of one sequence as a data bug would make them."""
    if kind == "copied":  # labels that are a copy of the inputs: nobody shifted them
        return inputs, inputs.clone()
    if kind == "shifted":  # labels that were shifted twice
        return inputs, targets.roll(-1)
    if kind == "extreme_tokens":
        targets = targets.clone()
        targets[torch.randperm(len(targets), generator=chance)[:3]] = vocab - 1
        return inputs, targets
    names = {"halves": "copied"}  # the test kit's "copied": the first half twice
    ids = torch.cat([inputs, targets[-1:]])
    ids = corrupted(ids, names.get(kind, kind), vocab - NEVER, seed)
    return ids[:-1], ids[1:]


class Disturbance:
    """Faults of the model and its optimizer."""

    def __init__(self, model: Model, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        self._until = -1

    def rate(self, step: int) -> None:
        """Set the learning rate: a warm-up of 50 steps, then constant; 30 times that during a jump."""
        jump = 30.0 if step < self._until else 1.0
        for group in self._optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50) * jump

    @torch.no_grad()
    def strike(self, fault: Fault, common: int) -> None:
        """Do what the fault does before its step. ``common``: the commonest id."""
        if fault.kind == "lr_jump":
            self._until = fault.step + 10
        if fault.kind == "head_row":
            self._model.head.weight[common] *= -4
        if fault.kind == "weight_noise":
            chance = torch.Generator().manual_seed(fault.step)
            for parameter in self._model.parameters():
                if parameter.dim() > 1:
                    noise = torch.randn(parameter.shape, generator=chance)
                    parameter += 0.5 * parameter.std() * noise


# One run.


def trained(name: str, steps: int) -> Model:
    """Return the model that every run of its kind begins with; it is trained once and kept with the temporary files."""
    model, kept = Model(text(name)[1]), Path(tempfile.gettempdir()) / f"pplmon-blame-{name}-{steps}.pt"
    if kept.is_file():
        model.load_state_dict(torch.load(kept, weights_only=True))
        return model
    torch.manual_seed(0)
    model = Model(text(name)[1])
    setup = Setup("", name, seed=1000, split="", packed=True)
    feed = Feed(setup, rank=0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 100) * (0.625 + 0.375 * math.cos(math.pi * step / steps))
        batch = feed.draw()
        F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten()).backward()
        _update(model, optimizer, ranks=1)
    if steps:
        torch.save(model.state_dict(), kept)
    return model


@dataclass
class Record:
    """A rule that raises nothing and keeps what rules see: the numbers and the worst addresses of every step."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, report: pplmon.Report) -> None:
        """Keep one judged report."""
        line: dict[str, Any] = {"step": report.step}
        line.update({name: _short(report.numbers[name]) for name in NUMBERS})
        line["worst_sequences"] = " ".join(
            f"{s.loss:.5g}@{s.rank}.{s.micro_batch}.{s.sequence}.{'' if s.document_id is None else s.document_id}"
            for s in report.worst_sequences[:KEPT]
        )
        line["worst_tokens"] = " ".join(
            f"{t.loss:.5g}@{t.rank}.{t.micro_batch}.{t.sequence}.{t.position}" for t in report.worst[:KEPT]
        )
        self.lines.append(line)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def train(rank: int, setup: Setup, more_rules: tuple[Any, ...] = ()) -> tuple[list[dict[str, Any]], list[Fault]]:
    """Train one run on one rank; return a line for every step and the planted faults with their documents."""
    torch.set_num_threads(1)
    torch.manual_seed(setup.seed)
    feed, record, faults = Feed(setup, rank), Record(), plan(setup)
    model = trained(setup.model, setup.trained)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    disturbance = Disturbance(model, optimizer)
    monitor = pplmon.Monitor(every_n_steps=None, alerts=[record, *more_rules], tally=pplmon.TokenTally(context=0))
    common = int(text(setup.model)[0].bincount().argmax())
    planted = []
    for step in range(setup.steps):
        fault = faults.get(step)
        disturbance.rate(step)
        if fault is not None:
            disturbance.strike(fault, common)
        for micro_batch in range(setup.accumulate):
            batch = feed.draw()
            if fault is not None and (fault.rank, fault.micro_batch) == (rank, micro_batch):
                fault = spoil(batch, fault, feed.vocab, setup.seed)
            _forward_and_backward(model, batch, monitor, setup)
        if fault is not None:
            planted.append(fault)
        _update(model, optimizer, setup.ranks)
        monitor.step()
    monitor.close()
    return record.lines, planted


def _forward_and_backward(model: Model, batch: Batch, monitor: pplmon.Monitor, setup: Setup) -> None:
    logits = model(batch.inputs)
    if batch.poisoned is not None:
        hit = torch.arange(len(logits)) == batch.poisoned
        logits = torch.where(hit[:, None, None], torch.nan, logits)
    monitor.observe(logits, batch.targets, document_ids=batch.documents)
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    (loss / setup.accumulate).backward()


def _update(model: Model, optimizer: torch.optim.Optimizer, ranks: int) -> None:
    """Average gradients over ranks and step; a step whose gradients are not finite is skipped, as a scaler does."""
    parameters = list(model.parameters())
    if ranks > 1:
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        dist.all_reduce(flat)
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad = part.view_as(p) / ranks
    norm = nn.utils.clip_grad_norm_(parameters, 1.0)
    if bool(norm.isfinite()):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def run(setup: Setup) -> tuple[list[dict[str, Any]], list[Fault]]:
    """Train one run on as many ranks as it wants; a fault is as the rank that planted it knows it."""
    if setup.ranks == 1:
        return train(0, setup)
    answers = run_on_ranks(train, setup.ranks, setup, timeout_s=1200.0)
    faults = [answers[fault.rank or 0][1][place] for place, fault in enumerate(answers[0][1])]
    return answers[0][0], faults


def write(setup: Setup, lines: list[dict[str, Any]], faults: list[Fault], folder: Path) -> Path:
    """Write a run as gzip CSV: a comment of JSON, a header, a line for every step."""
    planted = {fault.step: fault.address() for fault in faults}
    about = {**asdict(setup), "vocab_size": text(setup.model)[1], "rows": setup.rows, "length": setup.length}
    page = io.StringIO()
    page.write(f"# {json.dumps(about)}\n")
    table = csv.DictWriter(page, [*lines[0], "planted"], lineterminator="\n")
    table.writeheader()
    table.writerows({**line, "planted": planted.get(line["step"], "")} for line in lines)
    path = folder / f"{setup.name}.csv.gz"
    path.write_bytes(gzip.compress(page.getvalue().encode(), mtime=0))  # mtime: the same run is the same file
    return path


def main() -> None:
    """Generate runs, and say what each took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--to", type=Path, required=True, help="a folder for the files")
    parser.add_argument("--only", default="", help="runs whose name contains this")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    for setup in _wanted(options.only):
        trained(setup.model, setup.trained)  # here, not on each rank
        start = time.perf_counter()
        path = write(setup, *run(setup), options.to)
        print(f"{setup.name:24} {time.perf_counter() - start:6.1f} s {path.stat().st_size / 1e3:6.0f} kB", flush=True)


def _wanted(part: str) -> Iterator[Setup]:
    return (setup for setup in setups() if part in setup.name)


if __name__ == "__main__":
    main()
