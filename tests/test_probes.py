"""``FreeRunningProbe``: what it generates is greedy generation, and what it measures is what its numbers' names say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pplmon
from pplmon.monitor.probes.greedy import continue_greedily
from pplmon.sinks import read_journal
from tests.models import make_module, rows
from tests.probe_tasks import (
    HORIZON,
    LENGTHS,
    VOCAB,
    Recurrent,
    failing,
    on_rank,
    on_sharded_rank,
    sequences,
    step_by_step,
)
from tests.ranks import Ranks
from tests.test_lightning import trainer_for, windows

HEAD = "free_running/"


@pytest.fixture(scope="module")
def model() -> Recurrent:
    """One model for all tests that do not change it."""
    return Recurrent()


def numbers_of(probe: pplmon.FreeRunningProbe, model: nn.Module) -> dict[str, Any]:
    """A probe's numbers, without their common head."""
    found = probe.run(model).report().numbers
    return {name.removeprefix(HEAD): value for name, value in found.items() if name.startswith(HEAD)}


def float64_losses(model: nn.Module, prompt: Tensor, written: Tensor, correct: Tensor) -> list[float]:
    """The nll of each correct token after the prompt and what was written before it."""
    with torch.no_grad():
        ids = torch.cat([prompt, written])
        logits = model(ids[None])[0].double()[len(prompt) - 1 : -1]
    return (-logits.log_softmax(-1).gather(1, correct[:, None]))[:, 0].tolist()  # type: ignore[no-any-return]


def test_the_numbers_are_their_definition(model: Recurrent) -> None:
    """By greedy generation token after token, and float64 losses, over sequences of unlike lengths."""
    given = sequences(model)
    found = numbers_of(pplmon.FreeRunningProbe(given, HORIZON, batch_size=3), model)
    model.eval()
    free: list[tuple[int, bool, float, float, bool, bool]] = []
    matches = []
    for row in given:
        prompt, correct = row[:-HORIZON], row[-HORIZON:]
        written = step_by_step(model, prompt, HORIZON)
        hits = (written == correct).tolist()
        matches.append([*hits, False].index(False))
        forced = float64_losses(model, prompt, correct, correct)
        forced_hits = [
            bool(step_by_step(model, torch.cat([prompt, correct[:place]]), 1)[0] == correct[place])
            for place in range(HORIZON)
        ]
        losses = float64_losses(model, prompt, written, correct)
        free += [
            (place, place > matches[-1], losses[place], forced[place], hits[place], forced_hits[place])
            for place in range(HORIZON)
        ]
    assert len({*matches}) > 3 and max(matches) < HORIZON, "they leave the text at unlike places"

    def mean(values: list[Any]) -> Any:
        return pytest.approx(sum(values) / len(values) if values else math.nan, rel=1e-5, nan_ok=True)

    after = [token for token in free if token[1]]
    parts = {0: (0, 1), 1: (1, 2), 2: (2, 4), 4: (4, 8)}
    groups = {"": free, "after/": after}
    groups |= {f"position/{start}/": [t for t in free if low <= t[0] < high] for start, (low, high) in parts.items()}
    for head, tokens in groups.items():
        assert found[f"{head}cross_entropy"] == mean([token[2] for token in tokens])
        assert found[f"{head}teacher_forced_cross_entropy"] == mean([token[3] for token in tokens])
        assert found[f"{head}token_accuracy"] == mean([token[4] for token in tokens])
        assert found[f"{head}teacher_forced_token_accuracy"] == mean([token[5] for token in tokens])
    assert found["before/cross_entropy"] == mean([token[2] for token in free if not token[1]])
    assert found["mean_match"] == mean(matches)
    assert found["diverged"] == 1.0 and found["unsettled_tokens"] == 0


def test_up_to_the_first_difference_both_losses_are_one(model: Recurrent) -> None:
    """The same bits: what was read is the same."""
    (row,) = sequences(model, (30,))
    ids = row[None]
    model.eval()
    found = continue_greedily(lambda x: model(x), ids, torch.tensor([30 - HORIZON]), HORIZON, HORIZON)
    model.train()
    first = (found.generated[0] == ids[0, -HORIZON:]).long().cumprod(0).sum().item()
    again = pplmon.token_stats(found.logits, ids[:, -HORIZON:], ignore_index=None)
    assert torch.equal(again.nll[: first + 1], found.forced.nll[: first + 1])


def test_what_a_text_model_generates(model: Recurrent) -> None:
    """Token for token that of generation one after the other, for every sequence."""
    given = sequences(model)
    model.eval()
    for row in given:
        start = torch.tensor([len(row) - HORIZON])
        found = continue_greedily(lambda x: model(x), row[None], start, HORIZON, HORIZON)
        assert found.settled.all() and found.forwards <= HORIZON
        assert torch.equal(found.generated[0], step_by_step(model, row[:-HORIZON], HORIZON))
    model.train()


@pytest.mark.parametrize("cached", [True, False])
def test_a_hugging_face_model_generates_with_its_cache(cached: bool) -> None:
    """Prompts of one length: the same integers by ``generate`` and by forwards, and as step by step; ``generate`` was used."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    gpt = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        gpt.lm_head.weight.mul_(40)
    used = []
    original = gpt.generate
    gpt.generate = lambda *args, **kwargs: used.append(1) or original(*args, **kwargs)  # type: ignore[func-returns-value]
    given = torch.randint(0, VOCAB, (5, 20))
    forward = None if cached else lambda model, ids: model(ids).logits
    probe = pplmon.FreeRunningProbe(given, HORIZON, forward=forward)
    numbers = numbers_of(probe, gpt)
    gpt.eval()
    matches = []
    for row in given:
        hits = (step_by_step(gpt, row[:-HORIZON], HORIZON) == row[-HORIZON:]).tolist()
        matches.append([*hits, False].index(False))
    assert numbers["mean_match"] == sum(matches) / len(matches)
    assert bool(used) == cached
    if cached:
        assert numbers["forwards"] == 2, "one with the correct tokens, one that checks what was generated"


def test_tokens_beyond_the_budget_are_left_out_and_the_others_are_right(model: Recurrent) -> None:
    """Fewer forwards: fewer tokens are counted, each as it would be with all of them."""
    given = sequences(model)
    all_of_them = pplmon.FreeRunningProbe(given, HORIZON)
    counted = []
    for most in range(1, HORIZON + 1):
        probe = pplmon.FreeRunningProbe(given, HORIZON, max_forwards=most)
        found = numbers_of(probe, model)
        assert found["forwards"] <= most
        assert found["mean_match"] == numbers_of(all_of_them, model)["mean_match"]
        assert found["position/0/cross_entropy"] == numbers_of(all_of_them, model)["position/0/cross_entropy"]
        counted.append(found["unsettled_tokens"])
    assert counted == sorted(counted, reverse=True) and counted[0] > 0 and counted[-1] == 0


def test_batches_do_not_matter(model: Recurrent) -> None:
    """The same numbers however sequences are cut into batches, but for the rounding of the model's own products."""
    given = sequences(model)
    whole, *others = (numbers_of(pplmon.FreeRunningProbe(given, HORIZON, batch_size=size), model) for size in (7, 1, 2))
    for found in others:
        assert found | {"forwards": 0} == pytest.approx(whole | {"forwards": 0}, rel=1e-5)


def test_a_module_trains_or_not_as_before(model: Recurrent) -> None:
    """Dropout is off while the probe runs, and each part is as it was afterwards."""
    model.train()
    model.read.eval()
    numbers_of(pplmon.FreeRunningProbe(sequences(model), HORIZON), model.train())
    model.read.eval()
    first = numbers_of(pplmon.FreeRunningProbe(sequences(Recurrent()), HORIZON), model)
    assert model.training and model.drop.training and not model.read.training
    assert first == numbers_of(pplmon.FreeRunningProbe(sequences(Recurrent()), HORIZON), model)
    model.train()


# In a pass.


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Two ranks."""
    with Ranks(2, tmp_path_factory.mktemp("probes")) as ranks:
        yield ranks


@pytest.mark.ranks
def test_two_ranks_share_the_sequences(two: Ranks, model: Recurrent) -> None:
    """The numbers of one rank; as many forwards on both, also where one has nothing to count."""
    for count in (len(LENGTHS), 1):
        (first, told, calls), (second, _, other_calls) = two.run(on_rank, count)
        alone = pplmon.FreeRunningProbe(sequences(model)[:count], HORIZON, batch_size=count).run(model).report().numbers
        expected = {name: repr(value) for name, value in alone.items() if name.startswith(HEAD)}
        assert first == second
        assert first.pop(f"{HEAD}forwards") and expected.pop(f"{HEAD}forwards")
        assert first == expected
        assert calls == other_calls and not told


@pytest.mark.ranks
def test_a_failure_on_one_rank_leaves_nobody_waiting(two: Ranks) -> None:
    """Both leave the probe out of the pass, each with one warning, and go on."""
    (first, told, _), (second, other, _) = two.run(on_rank, 3, True)
    assert not first and not second
    assert told == [
        "pplmon: FreeRunningProbe could not run the model: 1 of the other ranks failed; this pass has no numbers of it"
    ]
    assert other == [
        "pplmon: FreeRunningProbe could not run the model: out of memory, say; this pass has no numbers of it"
    ]


@pytest.mark.ranks
@pytest.mark.parametrize("count", [len(LENGTHS), 1])
def test_a_sharded_model_gives_the_same_and_nobody_waits(two: Ranks, count: int) -> None:
    """Weights in two halves, each forward a collective: as with whole weights, also where one rank has no sequence."""
    (whole, _), (first, second) = two.run(on_sharded_rank, count, False), two.run(on_sharded_rank, count, True)
    assert first == second == whole and float(whole[f"{HEAD}diverged"]) > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_its_forwards_are_those_of_validation(precision: str, tmp_path: Path) -> None:
    """In the trainer's precision: with a prompt of one token the teacher-forced loss is that of the whole pass."""
    pl = pytest.importorskip("pytorch_lightning")
    model = Recurrent()
    ids = torch.randint(0, VOCAB, (4, 12))

    class Reads(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.reads, self.kinds = model, []

        def forward(self, ids: Tensor) -> Tensor:
            logits = self.reads(ids)
            self.kinds.append(logits.dtype)
            return logits

        def validation_step(self, batch: Tensor, index: int) -> None:
            pplmon.observe(self, self(batch), batch)

    module, probe = Reads(), pplmon.FreeRunningProbe(ids, horizon=11)
    monitor = pplmon.PerplexityMonitor(probes=[probe], tally=pplmon.TokenTally(shift=True))
    trainer_for(tmp_path, monitor, precision=precision).validate(module, torch.utils.data.DataLoader(ids, 4))
    (row,) = windows(tmp_path, "val")
    numbers = row["numbers"]
    kind = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "64-true": torch.float64}[precision]
    assert {*module.kinds} == {kind} and len(module.kinds) > 2
    assert numbers[f"{HEAD}teacher_forced_cross_entropy"] == numbers["cross_entropy"]


def test_the_callback_logs_judges_and_keeps_the_pass_as_it_was(tmp_path: Path) -> None:
    """In validation, every second time: for loggers, rules, callbacks and the journal; the pass's own tokens are no others."""
    pl = pytest.importorskip("pytorch_lightning")
    data = [{**row} for row in rows(16)]
    loaders = [torch.utils.data.DataLoader(data, batch_size=4) for _ in range(2)]  # type: ignore[arg-type]
    module = make_module(pl.LightningModule)
    ids = torch.stack([row["x"] for row in data[:4]])
    probe = pplmon.FreeRunningProbe(ids, horizon=ids.shape[1] // 2, every_n_validations=2)
    alerts = [pplmon.Above("free_running/forwards", 0.5, stage="val")]
    heard: list[pplmon.Alert] = []
    seen: list[bool] = []

    class Sees(pl.Callback):  # type: ignore[misc, name-defined]
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            if not trainer.sanity_checking:
                seen.append("val/free_running/cross_entropy" in trainer.callback_metrics)

    monitor = pplmon.PerplexityMonitor(probes=[probe], alerts=alerts, on_alert=heard.append)
    trainer = trainer_for(tmp_path, monitor, max_epochs=3)
    trainer.callbacks.append(Sees())
    trainer.fit(module, *loaders)
    passes = windows(tmp_path, "val")
    with_probe = ["free_running/cross_entropy" in row["numbers"] for row in passes]
    assert with_probe == [True, False, True] and seen[0]
    assert {row["numbers"]["tokens"] for row in passes} == {sum(int((row["labels"] != -100).sum()) for row in data)}
    assert [alert.stage for alert in heard] == ["val"]
    (journal,) = tmp_path.rglob("pplmon.jsonl")
    assert any("free_running/diverged" in row.get("numbers", {}) for row in read_journal(journal))


def test_outside_a_pass_it_is_told(model: Recurrent) -> None:
    """A plain loop runs it within a stage."""
    monitor, probe = pplmon.Monitor(), pplmon.FreeRunningProbe(sequences(model), HORIZON)
    with pytest.raises(RuntimeError, match=r'call it inside with monitor.stage\("val"\)'):
        monitor.probe(probe, model)


# What cannot work.


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"sequences": []}, ValueError, "at least one sequence, got none"),
        ({"sequences": torch.zeros(2, 40)}, TypeError, r"integer ids, .*torch.float32 \(40,\)"),
        (
            {"sequences": torch.zeros(40, dtype=torch.long)},
            TypeError,
            r"list of 1-dim ones; one of them is torch.int64 \(\)",
        ),
        ({"sequences": [[1, 2, 3]]}, ValueError, "3 ids, but horizon=32 of them are the continuation"),
        ({"sequences": [[1] * 40], "horizon": 0}, ValueError, "horizon must be an integer of at least 1, got 0"),
        ({"sequences": [[1] * 40], "batch_size": 0}, ValueError, "batch_size must be an integer of at least 1, got 0"),
        (
            {"sequences": [[1] * 40] * 9, "max_forwards": 1},
            ValueError,
            "max_forwards=1 is less than one forward for each of 2",
        ),
    ],
)
def test_what_cannot_work_is_told_at_once(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    """When it is made, with what to change."""
    with pytest.raises(error, match=text):
        pplmon.FreeRunningProbe(**arguments)


def test_a_model_that_gives_no_logits_is_told(model: Recurrent) -> None:
    """What it gave, and the argument that mends it; in a pass it is a warning."""
    probe = pplmon.FreeRunningProbe(sequences(model), HORIZON, forward=lambda model, ids: model(ids).sum(-1))
    with pytest.raises(RuntimeError, match=r"expected logits \[B, T, V\] for ids .* give forward=lambda model, ids"):
        probe.run(model)
    monitor = pplmon.Monitor(alerts=[])
    ids = torch.randint(0, VOCAB, (2, 9))
    with monitor.stage("val") as val:
        monitor.observe(model(ids[:, :-1]).detach(), ids[:, 1:])
        with pytest.warns(RuntimeWarning, match="this pass has no numbers of it"):
            monitor.probe(pplmon.FreeRunningProbe(sequences(model), HORIZON, forward=failing), model)
    assert val.report is not None and val.report.numbers["tokens"] == 16


def test_probes_is_a_list() -> None:
    """One that is not in a list is told."""
    with pytest.raises(TypeError, match=r"probes takes a list, as in probes=\[pplmon.FreeRunningProbe\(ids\)\]"):
        pplmon.PerplexityMonitor(probes=pplmon.FreeRunningProbe([[1] * 40]))  # type: ignore[arg-type]
