"""Packed rows: the documents are read from what a batch, or a call of the model, says of them by other names than ours."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import pplmon
from pplmon.trainers.capture.documents import LOOKS, Documents
from tests.models import VOCAB, make_module
from tests.test_lightning import trainer_for, windows

pl = pytest.importorskip("pytorch_lightning")

LENGTHS = ((20, 17, 23), (30, 30), (60,))  # of the documents in each row of 60
PADDED = ((20, 17), (30, 19), (41,))  # rows of 60 that end, or begin, with padding


def packed(lengths: tuple[int, ...], width: int = 60, left: bool = False) -> dict[str, Tensor]:
    """One row, with all the names under which its documents could be given."""
    fill = width - sum(lengths)
    positions = torch.cat([torch.arange(n) for n in lengths])
    numbers = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    parts = {
        "position_ids": (positions, 1 if left else 0),
        "seq_idx": (numbers, -1),
        "segments": (numbers + 1, 0),
        "attention_mask": (torch.ones_like(numbers), 0),
        "labels": (torch.randint(VOCAB, (sum(lengths),)), -100),
    }
    side = (fill, 0) if left else (0, fill)
    row = {name: torch.nn.functional.pad(value, side, value=pad) for name, (value, pad) in parts.items()}
    return {**row, "x": row["labels"].clamp(min=0)}


def stacked(rows: list[dict[str, Tensor]], names: Collection[str]) -> dict[str, Tensor]:
    """A batch that has some of the names only. ``segments`` are called attention_mask, as in the batches of packers."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in {"x", "labels", *names}}
    if "segments" in batch:
        batch["attention_mask"] = batch.pop("segments")
    return batch


def expected(rows: list[dict[str, Tensor]]) -> list[list[int]]:
    """The columns of each row at which a document begins, by its own numbers."""
    return [[0, *(i for i in range(1, 60) if row["seq_idx"][i] != row["seq_idx"][i - 1])] for row in rows]


def borders(documents: Tensor | None) -> list[list[int]]:
    """Where documents that were read begin."""
    assert documents is not None
    return [[0, *(i for i in range(1, len(row)) if row[i] != row[i - 1])] for row in documents.tolist()]


READ = [("position_ids",), ("seq_idx",), ("segments",), ("position_ids", "attention_mask")]
READ += [("position_ids", "segments"), ("position_ids", "seq_idx", "attention_mask")]


@pytest.mark.parametrize("names", READ, ids=" ".join)
def test_documents_are_read_under_each_name(names: tuple[str, ...]) -> None:
    """Rows of several documents and of one, in one batch."""
    rows = [packed(lengths) for lengths in LENGTHS]
    batch = stacked(rows, names)
    assert borders(Documents().of("train", batch, batch["labels"])) == expected(rows)


@pytest.mark.parametrize("name", ["cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "cu_seqlens_q"])
@pytest.mark.parametrize("flat", [False, True])
def test_documents_are_read_from_their_borders(name: str, flat: bool) -> None:
    """The cumulated lengths that variable-length attention takes, of one row, or of flat targets."""
    row = packed(LENGTHS[0])
    given = {name: torch.tensor([0, 20, 37, 60], dtype=torch.int32)}
    targets = row["labels"] if flat else row["labels"][None]
    found = Documents().of("train", given, targets)
    assert found is not None and found.shape == targets.shape
    assert borders(found.view(1, -1)) == [[0, 20, 37]]


PLAIN = {
    "a mask of padding on the right": ({"attention_mask"}, False),
    "a mask of padding on the left": ({"attention_mask"}, True),
    "positions of padding on the left": ({"attention_mask", "position_ids"}, True),
    "nothing": (set[str](), False),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_padding_makes_no_documents(kind: str) -> None:
    """A border there would leave out the first token's target, which the model scores."""
    names, left = PLAIN[kind]
    batch = stacked([packed((n,), left=left) for n in (60, 41, 30)], names)
    found = Documents().of("train", batch, batch["labels"])
    if "position_ids" in names:
        assert borders(found) == [[0]] * 3
    else:
        assert found is None


def test_positions_that_tell_nothing_make_no_documents() -> None:
    """All of them 0, going on from an earlier row, of another shape, or three for each token."""
    targets = torch.zeros(2, 6, dtype=torch.int64)
    for positions in (torch.zeros_like(targets), torch.arange(7, 13).expand(2, 6)):
        assert borders(Documents().of("train", {"position_ids": positions}, targets)) == [[0], [0]]
    for odd in (torch.arange(6)[None], torch.zeros(3, 2, 6), [0, 1], None):
        assert Documents().of("train", {"position_ids": odd, "attention_mask": odd, "seq_idx": odd}, targets) is None


def test_a_mask_that_numbers_documents_is_known_by_the_first_few() -> None:
    """They are looked at, which waits; later ones are not, and each stage has its own."""
    documents, plain = Documents(), stacked([packed((60,))], {"attention_mask"})
    rows = [packed(LENGTHS[0])]
    numbered = stacked(rows, {"segments"})
    for _ in range(LOOKS - 1):
        assert documents.of("train", plain, plain["labels"]) is None
    assert borders(documents.of("train", numbered, numbered["labels"])) == expected(rows)
    for _ in range(LOOKS):
        assert documents.of("val", plain, plain["labels"]) is None
    meta = {"attention_mask": plain["attention_mask"].to("meta")}
    assert documents.of("val", meta, plain["labels"].to("meta")) is None  # whoever reads a meta tensor fails
    assert documents.of("train", meta, plain["labels"].to("meta")) is not None


def fit(where: Any, batches: list[dict[str, Tensor]], **settings: Any) -> dict[str, Any]:
    """Train on batches as they are; returns the numbers and worst sequences of the one window."""
    module = make_module(pl.LightningModule, "return", lr=0.0)
    monitor = pplmon.PerplexityMonitor(every_n_steps=len(batches), alerts=[], **settings)
    trainer = trainer_for(where, monitor, max_epochs=1)
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return windows(where)[0]


@pytest.mark.parametrize("names", READ, ids=" ".join)
@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.filterwarnings("ignore:pplmon. ")  # with the shift our targets are not those of the loss
def test_packed_and_unpacked_rows_have_the_same_numbers(names: set[str], shift: bool, tmp_path: Any) -> None:
    """Through the callback: with the shift no document's first token is scored; the worst sequence is a document."""
    torch.manual_seed(3)
    rows = [packed(lengths) for lengths in (*LENGTHS, *PADDED)]
    whole = fit(tmp_path / "packed", [stacked(rows[:3], names), stacked(rows[3:], names)], shift=shift)
    alone = []
    for row in rows:
        for number in range(int(row["seq_idx"].max()) + 1):
            kept = row["seq_idx"] == number
            alone.append({"x": row["x"][kept][None], "labels": row["labels"][kept][None]})
    each = fit(tmp_path / "alone", alone, shift=shift)
    differ = {name for name, value in whole["numbers"].items() if value != each["numbers"][name]}
    assert not differ
    assert (whole["numbers"]["sequences"], whole["numbers"]["tokens"]) == (11, 307 - 11 * shift)
    worst, same = whole["worst_sequences"][0], each["worst_sequences"][0]
    assert (worst["loss"], worst["tokens"]) == (same["loss"], same["tokens"])


def test_document_ids_that_are_stated_are_believed(tmp_path: Any) -> None:
    """Whatever else the batch has."""
    row = packed(LENGTHS[0])
    batch = {**stacked([row], {"position_ids"}), "document_ids": torch.zeros(1, 60, dtype=torch.int64)}
    assert fit(tmp_path, [batch], shift=False)["numbers"]["sequences"] == 1


@pytest.mark.parametrize(
    "kept", [("position_ids",), ("seq_idx", "position_ids"), ("cu_seq_lens_q", "position_ids")], ids=" ".join
)
@pytest.mark.parametrize("by_step", [False, True])
def test_a_flattened_batch_of_a_hugging_face_model_is_read(kept: tuple[str, ...], by_step: bool, tmp_path: Any) -> None:
    """transformers' own collator, in the batch or given to the model by the step alone; the loss is the model's own."""
    transformers = pytest.importorskip("transformers")
    from tests.test_huggingface import HF, V, build

    collate = transformers.DataCollatorWithFlattening(return_seq_idx=True, return_flash_attn_kwargs=True)
    torch.manual_seed(1)
    flat = collate([{"input_ids": torch.randint(3, V, (n,)).tolist()} for n in (18, 22, 20)])
    flat = {name: flat[name] for name in ("input_ids", "labels", *kept)}

    class Packs(HF):
        def training_step(self, batch: Any, index: int) -> Any:
            output = self.model(**(flat if by_step else batch))
            self.losses.append(output.loss.item())
            return output.loss

    batch = {"index": torch.zeros(1)} if by_step else flat
    module = Packs(build("llama"))
    trainer = trainer_for(tmp_path, pplmon.PerplexityMonitor(alerts=[]), max_epochs=1)
    trainer.fit(module, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    window = windows(tmp_path)[0]
    assert (window["numbers"]["sequences"], window["numbers"]["tokens"]) == (3, 57)
    assert window["numbers"]["cross_entropy"] == pytest.approx(module.losses[0], rel=1e-6)
    assert window["worst_sequences"][0]["tokens"] in (17, 21, 19)
