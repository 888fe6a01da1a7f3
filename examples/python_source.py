"""A small model of Python source, and what its perplexity hides: names, its own text, sureness, files, and chance.

It learns from modules of the standard library, in a few minutes on two CPU cores, and prints a table:

    python examples/python_source.py
    python examples/python_source_pictures.py    # the pictures of docs/beyond-perplexity.md
"""

import argparse
import sysconfig
from pathlib import Path

import pytorch_lightning as pl
import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import pplmon

CONTEXT, WIDTH, VOCAB, DOMAINS = 128, 128, 2048, ["asyncio", "email", "json", "other"]
KEYS = ("input_ids", "targets", "document_ids", "group_ids")
PROGRAM = """def count(words, limit):
    total = 0
    for word in words:
        if word in limit:
            total = total + limit[word]
        else:
            total = total + 1
    return total
"""


class Coder(pl.LightningModule):
    """Four blocks of causal attention over pieces of source code."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.pieces, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        block = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=ids.device)
        x = self.pieces(ids) + self.places.weight[:length]
        return self.head(self.norm(self.blocks(x, mask=mask, is_causal=True)))

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        logits = self(batch["input_ids"])
        return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self(batch["input_ids"])  # the hook on the head sees the logits

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, self.steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def modules() -> list[Path]:
    """The standard library's modules, in a fixed order."""
    top = Path(sysconfig.get_path("stdlib"))
    found = [p for p in top.rglob("*.py") if not {"site-packages", "test", "tests", "idlelib"} & {*p.parts}]
    return sorted(p for p in found if 2_000 < p.stat().st_size < 60_000)


def windows(paths: list[Path], tokenizer: tokenizers.Tokenizer, most: int = 8) -> TensorDataset:
    """Windows of ids side by side, at most a few of a module; a document is a module, a group its package."""
    rows = []
    for number, path in enumerate(paths):
        ids = torch.tensor(tokenizer.encode(path.read_text("utf-8", "replace")).ids)
        domain = DOMAINS.index(path.parent.name) if path.parent.name in DOMAINS else len(DOMAINS) - 1
        for row in ids[: CONTEXT * most + 1].unfold(0, CONTEXT + 1, CONTEXT) if len(ids) > CONTEXT else ():
            rows.append((row[:-1], row[1:], torch.full((CONTEXT,), number), torch.tensor(domain)))
    return TensorDataset(*(torch.stack(column) for column in zip(*rows)))


def loader(data: TensorDataset, shuffle: bool = False) -> DataLoader:
    """Batches of 16 rows, as a dict."""
    return DataLoader(data, 16, shuffle, collate_fn=lambda rows: dict(zip(KEYS, default_collate(rows))))


def main() -> None:
    """Train, validate four times, and print the last pass and what other names cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", default="runs/python_source")
    options = parser.parse_args()
    pl.seed_everything(0)
    paths = modules()
    held_out, learnt = paths[::10], [path for number, path in enumerate(paths) if number % 10]
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train([str(path) for path in learnt], vocab_size=VOCAB, show_progress=False)
    val = windows(held_out, tokenizer)
    classes, groups = pplmon.TokenClasses.code(tokenizer), pplmon.Groups(DOMAINS)
    extras = [classes, pplmon.Novelty(), pplmon.Rollouts(), pplmon.Calibration(), groups, pplmon.Positions()]
    tally = pplmon.TokenTally(extras=[*extras, pplmon.Uncertainty()], token_bytes=pplmon.bytes_per_token(tokenizer))
    probe = pplmon.FreeRunningProbe(val.tensors[0][:: len(val) // 64][:64], horizon=32, batch_size=32)
    every = max(options.steps // 4, 1)
    monitor = pplmon.PerplexityMonitor("head", "targets", tally=tally, probes=[probe], every_n_steps=every)
    trainer = pl.Trainer(
        max_steps=options.steps, val_check_interval=every, check_val_every_n_epoch=None, callbacks=[monitor],
        default_root_dir=options.out, logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
    )  # fmt: skip
    model = Coder(options.steps)
    trainer.fit(model, loader(windows(learnt, tokenizer, 100), True), loader(val))
    for name, value in trainer.callback_metrics.items():
        if name.startswith("val/"):
            print(f"{name:55} {value:.4f}")
    print(pplmon.rename_gap(model, PROGRAM, {"total": "result", "limit": "table"}, tokenizer))


if __name__ == "__main__":
    main()
