"""pplmon.diagnose: each kind of finding on a batch made by hand, with two right set-ups beside it in which nothing is said."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pplmon
from pplmon import Finding, diagnose
from pplmon.doctor import KINDS, Loss, Observation, Run, judge, measure

VOCAB, ROWS, LENGTH, PAD, MARK = 40, 6, 24, 0, 1


@dataclass(frozen=True)
class Given:
    """The arguments of diagnose; a decoder-only model's batch with padding on the right, and a prompt in each row."""

    logits: Tensor
    targets: Tensor
    loss: Tensor | None
    shift: bool
    input_ids: Tensor | None
    attention_mask: Tensor | None

    def said(self, **more: Any) -> list[Finding]:
        return diagnose(**vars(self), **more)


def cross(logits: Tensor, targets: Tensor, shift: int = 1, **kwargs: Any) -> Tensor:
    """The loss as a training step would have it."""
    length = logits.shape[1] - abs(shift)
    return F.cross_entropy(
        logits[:, max(-shift, 0) :][:, :length].float().flatten(0, 1),
        targets[:, max(shift, 0) :][:, :length].flatten(),
        **kwargs,
    )


def plain(seed: int = 0, trained: bool = True) -> Given:
    """A right set-up: a model that knows the next id of its input mostly, or nothing yet."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCAB, (ROWS, LENGTH), generator=made)
    ends = torch.tensor([24, 20, 17, 24, 12, 15])
    ids[torch.arange(ROWS), torch.tensor([3, 5, 2, 8, 4, 6])] = MARK  # the prompt's end
    mask = (torch.arange(LENGTH) < ends[:, None]).long()
    ids = ids.masked_fill(mask == 0, PAD)
    logits = torch.randn(ROWS, LENGTH, VOCAB, generator=made)
    if trained:
        logits += 4 * F.one_hot(ids.roll(-1, 1), VOCAB) * torch.rand(ROWS, LENGTH, 1, generator=made).round()
    labels = ids.masked_fill(mask == 0, -100)
    return Given(logits, labels, cross(logits, labels), True, ids, mask)


def answers(g: Given) -> Tensor:
    """Labels that ignore the prompt, too."""
    assert g.input_ids is not None
    return g.targets.masked_fill((g.input_ids == MARK).flip(1).cumsum(1).flip(1) > 0, -100)


def scored(g: Given, targets: Tensor) -> Given:
    """The same targets for pplmon and for the loss."""
    return replace(g, targets=targets, loss=cross(g.logits, targets))


def cut(g: Given, columns: int) -> Given:
    assert g.input_ids is not None and g.attention_mask is not None
    parts = [x[:, :columns] for x in (g.logits, g.targets, g.input_ids, g.attention_mask)]
    return Given(parts[0], parts[1], cross(parts[0], parts[1]), True, *parts[2:])


def ahead(x: Tensor) -> Tensor:
    return F.pad(x[:, 1:], (0, 1), value=-100)


def losses(g: Given) -> tuple[Tensor, Tensor]:
    """The losses and the mask of a right set-up."""
    each = F.cross_entropy(g.logits[:, :-1].transpose(1, 2), g.targets[:, 1:], reduction="none")
    return each, (g.targets[:, 1:] != -100).float()


def naive(g: Given, repeats: int) -> Tensor:
    """A sum in bf16 that adds one token at a time."""
    each, mask = losses(g)
    total = torch.zeros((), dtype=torch.bfloat16)
    for loss in each[mask.bool()].bfloat16().repeat(repeats):
        total += loss
    return total / (repeats * int(mask.sum()))


def unknown(g: Given, share: float) -> Given:
    chosen = torch.rand(g.targets.shape, generator=torch.Generator().manual_seed(1)) < share
    return scored(g, g.targets.masked_fill(chosen & (g.targets != -100), 2))


def without_targets(g: Given, rows: list[int]) -> Given:
    targets = g.targets.clone()
    targets[rows] = -100
    return scored(g, targets)


def renumbered(g: Given) -> Given:
    order = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(1))
    return scored(g, torch.where(g.targets == -100, -100, order[g.targets.clamp_min(0)]))


def at_infinity(g: Given, columns: int, targets: bool) -> Given:
    logits = g.logits.clone()
    logits[..., VOCAB - columns :] = -math.inf
    kept = g.targets if targets else g.targets.masked_fill(g.targets >= VOCAB - columns, -100)
    return replace(g, logits=logits, targets=kept, loss=None if targets else cross(logits, kept))


def over_rows(g: Given) -> Tensor:
    each, mask = losses(g)
    return ((each * mask).sum(1) / mask.sum(1)).mean()


def z_loss(g: Given, weight: float) -> Tensor:
    assert g.loss is not None
    _, mask = losses(g)
    return g.loss + weight * (g.logits[:, :-1].logsumexp(-1) ** 2 * mask).sum() / mask.sum()


Case = tuple[str, Callable[[Given], Given], Callable[[Given], Given], Callable[[Given], Given]]

# A mistake, and two right set-ups that look like it.
CASES: dict[str, Case] = {
    "no shift": (
        "shift",
        lambda g: replace(g, shift=False),
        lambda g: replace(g, targets=ahead(g.targets), shift=False),
        lambda g: replace(g, input_ids=None),
    ),
    "no shift, and nothing but the loss tells": (
        "shift",
        lambda g: replace(g, shift=False, input_ids=None, attention_mask=None),
        lambda g: replace(g, targets=ahead(g.targets), shift=False, input_ids=None, attention_mask=None),
        lambda g: replace(g, input_ids=None, attention_mask=None),
    ),
    "shifted twice by pplmon": (
        "shift",
        lambda g: replace(g, targets=ahead(g.targets)),
        lambda g: replace(g, targets=ahead(g.targets), shift=False),
        lambda g: g,
    ),
    "shifted twice by the loss": (
        "shift",
        lambda g: replace(g, loss=cross(g.logits, g.targets, 2)),
        lambda g: replace(g, loss=cross(g.logits, ahead(g.targets), 0)),
        lambda g: g,
    ),
    "moved backwards": (
        "shift",
        lambda g: replace(g, loss=cross(g.logits, g.targets, -1)),
        lambda g: g,
        lambda g: replace(g, attention_mask=None),
    ),
    "leakage": (
        "target_leakage",
        lambda g: replace(g, shift=False, loss=cross(g.logits, g.targets, 0)),
        lambda g: replace(g, shift=False, loss=cross(g.logits, g.targets, 0), input_ids=None),  # a tagger of one's own
        lambda g: g,
    ),
    "padding in the targets": (
        "padding_scored",
        lambda g: replace(g, targets=g.input_ids),
        lambda g: scored(g, torch.where((g.targets == -100) & (g.targets.roll(1, 1) != -100), PAD, g.targets)),
        lambda g: scored(replace(g, attention_mask=torch.ones_like(g.targets), input_ids=None), g.targets),
    ),
    "padding in both": (
        "padding_scored",
        lambda g: scored(g, g.input_ids),
        lambda g: scored(e := cut(g, 12), e.input_ids),  # where no row has padding
        lambda g: g,
    ),
    "padding in the loss": (
        "padding_scored",
        lambda g: replace(g, loss=cross(g.logits, g.input_ids)),
        lambda g: g,
        lambda g: replace(g, loss=cross(g.logits, g.input_ids.masked_fill(g.input_ids == PAD, -100))),
    ),
    "prompts in the loss": (
        "prompt_scored",
        lambda g: replace(g, targets=answers(g)),
        lambda g: scored(g, answers(g)),
        lambda g: g,
    ),
    "prompts in the targets": (
        "prompt_scored",
        lambda g: replace(g, loss=cross(g.logits, answers(g))),
        lambda g: scored(g, answers(g)),
        lambda g: g,
    ),
    "no mask in the loss": (
        "mask_dropped",
        lambda g: replace(g, targets=answers(g), loss=cross(g.logits, g.input_ids)),
        lambda g: scored(g, answers(g)),
        lambda g: g,
    ),
    "the neighbour's mask": (
        "mask_off_by_one",
        lambda g: replace(g, targets=answers(g), loss=cross(
            g.logits, g.input_ids.masked_fill(answers(g).roll(1, 1) == -100, -100))),
        lambda g: scored(g, answers(g)),
        lambda g: g,
    ),
    "nothing to score": (
        "all_ignored",
        lambda g: scored(g, torch.full_like(g.targets, -100)),
        lambda g: scored(g, g.targets.masked_fill(torch.arange(LENGTH) != 9, -100)),
        lambda g: g,
    ),
    "a first column alone, shifted": (
        "all_ignored",
        lambda g: scored(g, g.targets.masked_fill(torch.arange(LENGTH) > 0, -100)),
        lambda g: scored(g, g.targets.masked_fill(torch.arange(LENGTH) > 1, -100)),
        lambda g: replace(g, targets=g.targets.masked_fill(torch.arange(LENGTH) > 0, -100), shift=False, input_ids=None,
                          loss=cross(g.logits, g.targets.masked_fill(torch.arange(LENGTH) > 0, -100), 0)),
    ),
    "answers cut off": (
        "truncated_rows",
        lambda g: without_targets(g, [0, 3]),  # which have no padding
        lambda g: without_targets(g, [1]),
        lambda g: scored(g, g.targets.masked_fill((torch.arange(LENGTH) < LENGTH - 1) & (torch.arange(ROWS)[:, None] == 0), -100)),
    ),
    "an unknown id": (
        "one_id",
        lambda g: unknown(g, 0.7),
        lambda g: unknown(g, 0.2),
        lambda g: g,
    ),
    "a larger tokenizer": (
        "outside_vocabulary",
        lambda g: replace(g, targets=torch.where(g.targets % 5 == 3, g.targets + VOCAB, g.targets), loss=None),
        lambda g: scored(g, torch.where(g.targets % 5 == 3, -100, g.targets)),
        lambda g: replace(g, loss=None),
    ),
    "other numbers": (
        "other_labels",
        renumbered,
        lambda g: replace(renumbered(g), input_ids=None),
        lambda g: g,
    ),
    "targets at -inf": (
        "padded_vocabulary",
        lambda g: at_infinity(g, 5, targets=True),
        lambda g: at_infinity(g, 5, targets=False),
        lambda g: g,
    ),
    "columns left out": (
        "padded_vocabulary",
        lambda g: replace(at_infinity(g, 4, targets=False), logits=g.logits),
        lambda g: at_infinity(g, 4, targets=False),
        lambda g: scored(g, g.targets.masked_fill(g.targets >= VOCAB - 4, -100)),
    ),
    "another mark": (
        "ignore_index",
        lambda g: replace(g, targets=g.targets.masked_fill(g.targets == -100, -1)),
        lambda g: g,
        lambda g: scored(g, g.targets.clamp_min(-100)),
    ),
    "smoothed labels": (
        "label_smoothing",
        lambda g: replace(g, loss=cross(g.logits, g.targets, label_smoothing=0.1)),
        lambda g: replace(g, loss=cross(g.logits, g.targets, label_smoothing=0.0)),
        lambda g: replace(g, logits=0 * g.logits, loss=cross(0 * g.logits, g.targets, label_smoothing=0.1)),
    ),
    "a z-loss": (
        "z_loss",
        lambda g: replace(g, loss=z_loss(g, 1e-4)),
        lambda g: replace(g, loss=z_loss(g, 0.0)),
        lambda g: replace(g, loss=z_loss(g, 1e-9)),
    ),
    "an auxiliary term": (
        "further_term",
        lambda g: replace(g, loss=g.loss + 0.0317),
        lambda g: replace(g, loss=(g.loss + 0.0317) - 0.0317),
        lambda g: g,
    ),
    "a third of it": (
        "scaled_loss",
        lambda g: replace(g, loss=g.loss / 3),
        lambda g: replace(g, loss=g.loss / 3 * 3),
        lambda g: g,
    ),
    "a mean of sequences": (
        "per_sequence_mean",
        lambda g: replace(g, loss=over_rows(g)),
        lambda g: replace(e := scored(g, g.targets.masked_fill(torch.arange(LENGTH) > 9, -100)), loss=over_rows(e)),
        lambda g: g,
    ),
    "a mean over all positions": (
        "denominator",
        lambda g: replace(g, loss=(losses(g)[0] * losses(g)[1]).mean()),
        lambda g: replace(g, loss=(losses(g)[0] * losses(g)[1]).sum() / losses(g)[1].sum()),
        lambda g: replace(e := cut(g, 12), loss=losses(e)[0].mean()),
    ),
    "a sum": (
        "denominator",
        lambda g: replace(g, loss=cross(g.logits, g.targets, reduction="sum")),
        lambda g: replace(g, loss=cross(g.logits, g.targets, reduction="sum") / (g.targets[:, 1:] != -100).sum()),
        lambda g: g,
    ),
    "bits": (
        "unit",
        lambda g: replace(g, loss=g.loss / math.log(2)),
        lambda g: g,
        lambda g: replace(g, loss=g.loss.double()),
    ),
    "a perplexity": (
        "unit",
        lambda g: replace(g, loss=g.loss.exp()),
        lambda g: g,
        lambda g: replace(g, loss=g.loss.exp().log()),
    ),
    "a sum in bf16": (
        "low_precision_loss",
        lambda g: replace(g, loss=naive(g, 10)),
        lambda g: replace(g, loss=F.cross_entropy(g.logits[:, :-1].bfloat16().flatten(0, 1), g.targets[:, 1:].flatten())),
        lambda g: replace(g, loss=g.loss.bfloat16().float()),
    ),
    "another model": (
        "another_loss",
        lambda g: replace(g, loss=plain(5).loss - 0.5),
        lambda g: g,
        lambda g: plain(5),
    ),
    "probabilities": (
        "not_logits",
        lambda g: replace(g, logits=g.logits.softmax(-1)),
        lambda g: replace(g, logits=g.logits.log_softmax(-1)),
        lambda g: g,
    ),
    "a row divided by nothing": (
        "nonfinite",
        lambda g: replace(e := without_targets(g, [1]), loss=over_rows(e)),
        lambda g: without_targets(g, [1]),
        lambda g: g,
    ),
    "logits that are NaN": (
        "nonfinite",
        lambda g: replace(g, logits=g.logits.index_fill(1, torch.tensor([3]), math.nan), loss=None),
        lambda g: replace(g, loss=None),
        lambda g: scored(g, g.targets.index_fill(1, torch.tensor([4]), -100)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "fresh"])
@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_named_and_its_neighbours_are_right(name: str, trained: bool) -> None:
    """One finding of its kind and no other; in two set-ups that look like it nothing is said."""
    kind, mistake, *neighbours = CASES[name]
    found = mistake(plain(trained=trained)).said()
    assert [f.kind for f in found] == [kind], [str(f) for f in found]
    for neighbour in neighbours:
        assert neighbour(plain(trained=trained)).said() == []


@pytest.mark.parametrize("name", CASES)
def test_a_finding_gives_both_values_and_a_line_to_write(name: str) -> None:
    """One line of text, with the values that disagree, and a fix. Its kind is one of those that are documented."""
    given = CASES[name][1](plain())
    (found,) = given.said()
    assert found.kind in KINDS and found.fix and found.evidence
    assert "\n" not in str(found) and found.text in str(found) and found.fix in str(found)
    for value in ("loss", "cross_entropy"):
        if isinstance(found.evidence.get(value), float) and found.kind != "low_precision_loss":
            assert f"{found.evidence[value]:.5g}" in found.text
    if given.loss is not None and "loss" in found.evidence and found.evidence["loss"] is not None:
        assert found.evidence["loss"] == pytest.approx(given.loss.item(), nan_ok=True)


def test_kinds_are_all_tried() -> None:
    """Every kind that one batch can show stands in the table above; the others need a run, and are tested below and beside."""
    assert set(KINDS) - {case[0] for case in CASES.values()} == {
        "accumulation",
        "ranks",
        "several_fit",
        "repeated_rows",
        "mask_opposite",
    }


@pytest.mark.parametrize(
    ("change", "offset", "line"),
    [
        (lambda g: replace(g, shift=False), 0, "Pass shift=True"),
        (lambda g: replace(g, targets=ahead(g.targets)), 2, "Pass shift=False"),
        (lambda g: replace(g, targets=ahead(ahead(g.targets)), shift=False), 2, "Give the labels as the batch has them, with shift=True"),
        (lambda g: replace(g, targets=g.input_ids.roll(1, 1).index_fill(1, torch.tensor([0]), -100), shift=False, attention_mask=None),
         -1, "Give the labels as the batch has them, with shift=True"),
    ],
)  # fmt: skip
def test_the_shift_is_told_by_the_ids_alone(change: Callable[[Given], Given], offset: int, line: str) -> None:
    """Without a loss: where the targets stand among the inputs, and what to write for it."""
    found = [f for f in replace(change(plain()), loss=None).said() if f.kind in ("shift", "target_leakage")]
    assert [(f.evidence["offset"], f.fix) for f in found] == [(offset, line)]


def test_what_a_wrong_shift_costs_is_told() -> None:
    """The number that is shown, and that of the next ids."""
    given = replace(plain(), shift=False, loss=None)
    (found,) = given.said()
    shown, true = cross(given.logits, given.targets, 0).item(), cross(given.logits, given.targets).item()
    assert found.kind == "target_leakage"
    assert (found.evidence["cross_entropy"], found.evidence["of_next"]) == pytest.approx((shown, true))


def test_who_is_wrong_is_told_by_the_ids() -> None:
    """Where the ids say that pplmon is right, the line to write is the loss's."""
    given = replace(plain(), loss=cross(plain().logits, plain().targets, 2))
    (found,) = given.said()
    assert found.fix == "loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())"
    assert "the input ids say targets[t+1]" in found.text


def test_a_forgotten_shift_is_told_by_a_trained_model() -> None:
    """Without loss and ids: worse than a guess, and good at the next ids. A fresh one tells nothing, nor a right one."""
    alone = {"loss": None, "input_ids": None, "attention_mask": None}
    sure = plain()
    assert sure.input_ids is not None
    sure = replace(sure, logits=sure.logits + 8 * F.one_hot(sure.input_ids.roll(-1, 1), VOCAB), **alone)
    (found,) = replace(sure, shift=False).said()
    assert found.kind == "shift" and found.fix == "Pass shift=True"
    assert replace(plain(trained=False), shift=False, **alone).said() == []
    assert sure.said() == []


def test_padding_is_told_by_the_ids_where_there_is_no_mask() -> None:
    """Rows that end in one id that stands nowhere else. What the loss does to it is not guessed."""
    given = replace(plain(), targets=plain().input_ids, attention_mask=None, loss=None)
    (found,) = given.said()
    assert found.kind == "padding_scored" and found.evidence["targets"] == 28
    assert replace(given, targets=plain().targets).said() == []
    text = torch.where(given.targets == PAD, torch.randint(2, VOCAB, given.targets.shape), given.targets)
    assert replace(given, targets=text, input_ids=text).said() == []


def test_two_mistakes_are_two_findings() -> None:
    """A wrong shift does not hide a smoothed loss."""
    given = plain()
    given = replace(given, shift=False, loss=cross(given.logits, given.targets, label_smoothing=0.1))
    assert [f.kind for f in given.said()] == ["target_leakage", "label_smoothing"]


def test_the_smoothing_is_fitted() -> None:
    """Its ε is in the evidence; an unusual one is fitted from two batches, and is a further term on one."""
    assert CASES["smoothed labels"][1](plain()).said()[0].evidence["epsilon"] == 0.1
    batches = [replace(g := plain(seed), loss=cross(g.logits, g.targets, label_smoothing=0.037)) for seed in (1, 2)]
    assert [f.kind for f in batches[0].said()] == ["further_term"]
    (found,) = judge([observed(batch) for batch in batches])
    assert (found.kind, found.evidence["epsilon"]) == ("label_smoothing", 0.037)


def test_a_loss_of_low_precision_is_never_unexplained() -> None:
    """However far it is off, no other loss is suspected; what is above by a tenth holds something more."""
    for value in (0.01, 0.9, 1.1, 1.5, 40.0):
        for dtype in (torch.bfloat16, torch.float16):
            given = plain()
            found = replace(given, loss=(given.loss * value).to(dtype)).said()
            assert {f.kind for f in found} <= {"low_precision_loss", "further_term", "scaled_loss", "unit"}, value


def observed(given: Given, run: Run | None = None) -> Observation:
    """What a callback hands to the judge."""
    arguments = {name: value for name, value in vars(given).items() if name != "loss"}
    measured = measure(**arguments)
    return Observation(measured.facts(), Loss.of(given.loss), run or Run(), measured)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "fresh"])
@pytest.mark.parametrize(
    ("times", "run", "kind", "word"),
    [
        (1 / 4, Run(accumulation=4), "accumulation", "once more"),
        (1.0, Run(accumulation=4), None, ""),
        (1 / 4, Run(accumulation=4, divided=True), None, ""),
        (1 / 16, Run(accumulation=4, divided=True), "accumulation", "once more"),
        (1.0, Run(accumulation=4, divided=True), "accumulation", "not divided by the 4"),
        (8.0, Run(ranks=8), "ranks", "multiplied by 8"),
        (1 / 8, Run(ranks=8), "ranks", "divided by 8"),
        (1.0, Run(ranks=8), None, ""),
    ],
)
def test_what_the_run_is_known_to_do(times: float, run: Run, kind: str | None, word: str, trained: bool) -> None:
    """Accumulated batches and ranks: divided twice, not at all, or as it should be."""
    given = plain(trained=trained)
    found = judge([observed(replace(given, loss=given.loss * times), run)])
    assert [f.kind for f in found] == ([] if kind is None else [kind])
    assert all(word in f.text for f in found)


def test_the_items_of_a_batch_are_its_denominator() -> None:
    """A sum over the tokens of all accumulated batches, on one rank or on several, agrees; over another number it does not."""
    given = plain()
    total = cross(given.logits, given.targets, reduction="sum")
    assert judge([observed(replace(given, loss=total / 700), Run(items=700.0))]) == []
    assert judge([observed(replace(given, loss=total * 4 / 700), Run(items=700.0, ranks=4))]) == []
    assert [f.kind for f in judge([observed(replace(given, loss=total / 700), Run(items=701.0))])] != []


def test_several_explanations_decide_nothing() -> None:
    """Two ids of equal number under three shifts, but not under the one that was told: the loss is one of the three."""
    p, q = 3, 7
    targets = torch.tensor([[p, q, p, q, q, p], [p, q, p, q, p, q]])
    logits = F.one_hot(torch.full_like(targets, q), VOCAB) * 2.0 - 1
    (found,) = diagnose(logits, targets, cross(logits, targets, 0), shift=True)
    assert found.kind == "several_fit"
    assert found.evidence["fit"] == ["targets[t-1], told", "targets[t], told", "targets[t+2], told"]
    assert diagnose(logits, targets, cross(logits, targets, 0), shift=False) == []


def test_flat_logits() -> None:
    """[N, V] have no shift, and agree or not as they are."""
    given = plain()
    flat = {"logits": given.logits.flatten(0, 1), "targets": ahead(given.targets).flatten()}
    assert diagnose(**flat, loss=given.loss) == []
    assert [f.kind for f in diagnose(**flat, loss=given.loss / 3)] == ["scaled_loss"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_any_dtype_of_logits_and_loss(dtype: torch.dtype) -> None:
    """The loss of these very logits agrees, as a tensor, a float or numpy's, with a graph or without."""
    given = plain()
    logits = given.logits.to(dtype).requires_grad_()
    loss = cross(logits, given.targets)
    for value in (loss, loss.item(), np.float32(loss.item()), loss.double(), loss.reshape(1, 1)):
        assert replace(given, logits=logits, loss=value).said() == []
    assert [f.kind for f in replace(given, logits=logits, loss=loss.item() / 3).said()] == ["scaled_loss"]


def test_another_ignore_index() -> None:
    """As told to the tally; None ignores nothing."""
    given = plain()
    assert replace(given, targets=given.input_ids).said(ignore_index=PAD) == []
    assert replace(given, targets=given.targets.masked_fill(given.targets == -100, -1)).said(ignore_index=-1) == []
    assert [f.kind for f in given.said(ignore_index=None)] == ["ignore_index"]


def test_nothing_is_changed() -> None:
    """Neither logits nor targets, and no gradient flows."""
    given = plain()
    logits, targets = given.logits.clone().requires_grad_(), given.targets.clone()
    diagnose(logits, targets, given.loss, True, given.input_ids, given.attention_mask)
    assert torch.equal(logits, given.logits) and torch.equal(targets, given.targets) and logits.grad is None


def test_a_finding_is_frozen() -> None:
    """It can be compared, and kept in a set; nothing of it can be assigned."""
    found = Finding("shift", "a", "b", {"x": 1.0})
    assert found == Finding("shift", "a", "b", {"x": 1.0}) and len({found, found}) == 1
    assert str(found) == "shift: a. b"
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.kind = "other"  # type: ignore[misc]
    assert pplmon.Finding is Finding


X, T = torch.randn(2, 6, 9), torch.randint(9, (2, 6))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"logits": T, "targets": X}, TypeError, "logits must be floating point, got torch.int64; were logits and targets passed in the wrong order?"),
        ({"logits": X, "targets": T[:, :5]}, ValueError, r"targets must have the shape of logits \(2, 6, 9\) without V, \(2, 6\), got \(2, 5\)"),
        ({"logits": X, "targets": T, "loss": torch.randn(2)}, ValueError, r"loss must be one number, got shape \(2,\); give the mean that backward"),
        ({"logits": X, "targets": T, "loss": torch.tensor(3)}, TypeError, "loss must be floating point, got torch.int64; give the mean"),
        ({"logits": X, "targets": T, "loss": "2.0"}, TypeError, "loss must be a number or a tensor of one number, got str; give output.loss"),
        ({"logits": X, "targets": T, "loss": True}, TypeError, "loss must be a number or a tensor of one number, got bool"),
        ({"logits": X, "targets": T, "input_ids": X[..., 0]}, TypeError, "input_ids must be an integer tensor, got torch.float32; give the batch's own input_ids"),
        ({"logits": X, "targets": T, "attention_mask": [1]}, TypeError, "attention_mask must be an integer tensor, got list"),
        ({"logits": X, "targets": T, "input_ids": T[:, :4]}, ValueError, r"input_ids must have the shape of targets, \(2, 6\), got \(2, 4\); leave it out where it is an encoder's"),
        ({"logits": X.flatten(0, 1), "targets": T.flatten(), "shift": True}, ValueError, "a flat batch has no next column"),
        ({"logits": X[:0], "targets": T[:0]}, ValueError, r"diagnose needs at least one target, got shape \(0, 6\); give a batch with rows"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    """What was expected, what came, and the likely fix."""
    with pytest.raises(error, match=text):
        diagnose(**arguments)


def test_a_bool_mask_is_one() -> None:
    """As well as 0 and 1, and other numbers that mark documents."""
    given = plain()
    assert given.attention_mask is not None
    wrong = replace(given, targets=given.input_ids)
    for mask in (given.attention_mask.bool(), given.attention_mask * 3, given.attention_mask.int()):
        assert [f.kind for f in replace(wrong, attention_mask=mask).said()] == ["padding_scored"]
