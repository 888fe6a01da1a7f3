"""Checkpoint and SaveBatch: in a plain loop, under Lightning, and on ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pplmon
from pplmon.alerts import at_fault
from pplmon.report.worst import WorstSequence, WorstToken
from pplmon.testing import run_on_ranks
from tests import action_tasks as tasks
from tests.launch import run_script
from tests.models import make_module, rows

pl = pytest.importorskip("pytorch_lightning")
from tests.resume_script import Resumable  # noqa: E402 - it needs Lightning

RULE = pplmon.Above("max_token_loss", 40.0)
BAD = 21  # the row of the data that has the token that nobody expects


def planted(count: int = 48) -> list[dict[str, Tensor]]:
    """Rows of which one has a target that the model of ``fit`` gives no chance."""
    data = rows(count, ignored=False)
    for index, item in enumerate(data):
        item["labels"][item["labels"] == 5] = 6
        item["weights"] = torch.ones(3)  # not ids
        if index == BAD:
            item["labels"][7] = 5
    return data


def fit(root: Path, on_alert: Any, ckpt_path: Any = None, batch_size: int = 2, **settings: Any) -> Any:
    """Train on ``planted`` and return the trainer and the callback."""
    module = make_module(pl.LightningModule, lr=0.0)
    module.head.bias.data[5] = -50.0
    monitor = pplmon.PerplexityMonitor(
        alerts=settings.pop("alerts", [RULE]),
        on_alert=on_alert,
        judge_every_n_steps=settings.pop("judge_every_n_steps", 1),
        every_n_steps=settings.pop("every_n_steps", 3),
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[monitor],
        logger=settings.pop("logger", False),
        default_root_dir=root,
        max_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **settings,
    )
    trainer.fit(module, Resumable(planted(), batch_size=batch_size), ckpt_path=ckpt_path)  # type: ignore[arg-type]
    return trainer


# SaveBatch.


@pytest.mark.parametrize("judge", [1, 4])
def test_the_saved_batch_is_the_planted_one_under_accumulation(tmp_path: Path, judge: int) -> None:
    """Rows 20 and 21 are the third micro-batch of step 2 (four to a step): ids only, by one line of code."""
    trainer = fit(tmp_path, pplmon.SaveBatch(), accumulate_grad_batches=4, judge_every_n_steps=judge, every_n_steps=4)
    (path,) = tmp_path.rglob("*.pt")
    assert path == tmp_path / "alerts" / f"Above-max_token_loss-step={3 if judge == 4 else 2}-rank=0.pt"
    saved = torch.load(path, weights_only=True)
    assert {name: saved[name] for name in ("step", "micro_batch", "rank", "sequence", "position", "sample_id")} == {
        "step": 2, "micro_batch": 2, "rank": 0, "sequence": 1, "position": 7, "sample_id": BAD,
    }  # fmt: skip
    assert set(saved["batch"]) == {"x", "labels", "sample_ids"}  # the weights are no ids
    for name in saved["batch"]:
        assert torch.equal(saved["batch"][name], torch.stack([planted()[row][name] for row in (BAD - 1, BAD)]))
    assert saved["rule"] == "Above" and saved["left_out"] == [] and saved["changed_in_place"] == []
    assert trainer.global_step == 6
    assert not list(tmp_path.rglob("*.tmp"))


def test_only_the_last_steps_are_held(tmp_path: Path) -> None:
    """What may still be complained about: the step under way and those that are judged with it; references, no copies."""
    save = pplmon.SaveBatch(tmp_path)
    monitor = pplmon.Monitor(judge_every_n_steps=3, alerts=[], on_alert=save)
    for step in range(10):
        for _ in range(2):
            logits, targets = torch.randn(2, 4, 9), torch.randint(9, (2, 4))
            monitor.observe(logits, targets)
            held = [tensor for seen in save._seen for tensor in seen.tensors.values()]
            assert held[-1].data_ptr() == targets.data_ptr()
            assert not any(tensor.is_floating_point() for tensor in held)
        monitor.step()
        assert {seen.step for seen in save._seen} == set(range(max(0, step - 3), step + 1))
    with monitor.stage("val"):
        monitor.observe(logits, targets)  # of training only
    assert len(save._seen) == 8
    monitor.close()


def spoiled(save: pplmon.SaveBatch, batch: dict[str, Tensor], change: bool = False) -> None:
    """A plain loop that meets one bad token, at row 1 and column 2 of ``batch``."""
    monitor = pplmon.Monitor(alerts=[RULE], on_alert=save)
    for step in range(3):
        logits = torch.zeros(2, 4, 9)
        if step == 1:
            logits[1, 2, 3] = 60.0
        monitor.observe(logits, batch["targets"], **{k: v for k, v in batch.items() if k != "targets"})
        if change:
            batch["targets"].zero_()
        monitor.step()
    monitor.close()


def test_a_plain_loop_saves_what_observe_was_given_but_no_logits(tmp_path: Path) -> None:
    batch = {"targets": torch.ones(2, 4, dtype=torch.int64), "input_ids": torch.arange(8).view(2, 4)}
    spoiled(pplmon.SaveBatch(tmp_path, everything=True), {**batch, "scores": torch.rand(2, 4)})
    (path,) = tmp_path.glob("*.pt")
    saved = torch.load(path, weights_only=True)
    assert set(saved["batch"]) == {"targets", "input_ids", "scores"}
    assert torch.equal(saved["batch"]["input_ids"], batch["input_ids"])
    assert (saved["step"], saved["sequence"], saved["position"]) == (1, 1, 2)


def test_a_large_batch_is_cut_to_the_row_at_fault_and_then_to_what_fits(tmp_path: Path) -> None:
    batch = {"targets": torch.ones(2, 4, dtype=torch.int64), "input_ids": torch.arange(8).view(2, 4)}
    spoiled(pplmon.SaveBatch(tmp_path / "a", max_bytes=64), batch)
    saved = torch.load(*(tmp_path / "a").glob("*.pt"), weights_only=True)
    assert saved["batch"]["input_ids"].tolist() == [[4, 5, 6, 7]] and saved["left_out"] == []
    spoiled(pplmon.SaveBatch(tmp_path / "b", max_bytes=32), batch)
    saved = torch.load(*(tmp_path / "b").glob("*.pt"), weights_only=True)
    assert len(saved["batch"]) == len(saved["left_out"]) == 1
    wide = {"targets": torch.ones(2, 4, dtype=torch.int64), "input_ids": torch.zeros(2, 100_000, dtype=torch.int64)}
    spoiled(pplmon.SaveBatch(tmp_path / "c", max_bytes=900_000), {**wide, "input_ids": wide["input_ids"][:, ::2]})
    (path,) = (tmp_path / "c").glob("*.pt")
    assert path.stat().st_size < 900_000  # not what lies behind the view


def test_a_batch_that_was_written_over_is_named(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="targets of the micro-batch was written to in place"):
        spoiled(pplmon.SaveBatch(tmp_path), {"targets": torch.ones(2, 4, dtype=torch.int64)}, change=True)
    assert torch.load(*tmp_path.glob("*.pt"), weights_only=True)["changed_in_place"] == ["targets"]


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        (torch.arange(4), {"batch"}),
        ([torch.arange(4), (torch.arange(2), torch.rand(2))], {"0", "1/0"}),
        ({"a": {"b": torch.arange(2)}, "text": ["x", "y"], "n": 3, "none": None}, {"a/b"}),
        (type("Batch", (), {})(), set()),
    ],
)
def test_a_batch_of_any_form_is_seen(batch: Any, names: set[str]) -> None:
    save = pplmon.SaveBatch("never written")
    pplmon.Monitor(on_alert=save)
    save.see(0, 0, batch)
    assert set(save._seen[-1].tensors) == names
    everything = pplmon.SaveBatch("never written", everything=True)
    pplmon.Monitor(on_alert=everything)
    everything.see(0, 0, batch)
    assert everything._seen[-1].plain == ({"text": ["x", "y"], "n": 3} if "a/b" in names else {})


def test_what_an_alert_is_about() -> None:
    """A number of tokens points at the worst token, another at the worst sequence."""
    token, sequence = WorstToken(9.0), WorstSequence(3.0)

    def culprit(metric: str | None) -> Any:
        return at_fault(pplmon.Alert("r", "t", metric, worst=(token,), worst_sequences=(sequence,)))

    assert [culprit(m) for m in ("max_token_loss", "nonfinite_tokens", None)] == [token] * 3
    assert [culprit(m) for m in ("cross_entropy", "max_sequence_loss", "worst_1pct_loss")] == [sequence] * 3
    assert at_fault(pplmon.Alert("r", "t", "cross_entropy", worst=(token,))) == token
    assert at_fault(pplmon.Alert("r", "t")) is None


@pytest.mark.ranks
def test_the_rank_that_had_the_batch_writes_it(tmp_path: Path) -> None:
    """Two ranks; rank 1 meets the bad token, rank 0 writes reports."""
    run_on_ranks(tasks.save_on_owner, 2, str(tmp_path))
    (path,) = tmp_path.glob("*.pt")
    assert path.name == "Above-max_token_loss-step=4-rank=1.pt"
    saved = torch.load(path, weights_only=True)
    assert saved["rank"] == 1 and saved["batch"]["input_ids"].tolist() == tasks.ids(1, 4).tolist()


# Checkpoint.


def test_a_checkpoint_is_saved_and_training_goes_on(tmp_path: Path) -> None:
    """One per step though two rules fire; it loads with weights_only and holds the step after the alert's."""
    rules = [RULE, pplmon.Above("max_token_loss", 41.0)]
    trainer = fit(tmp_path, pplmon.Checkpoint(tmp_path / "kept"), alerts=rules, batch_size=4)
    (path,) = (tmp_path / "kept").iterdir()
    assert path.name == "Above-max_token_loss-step=5.ckpt"
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == 7  # steps 0 to 6: the alert about step 5 comes in step 6
    assert trainer.global_step == 12
    state = next(value["monitor"] for key, value in saved["callbacks"].items() if "PerplexityMonitor" in key)
    assert state["step"] == 7


def test_a_run_resumed_from_it_counts_every_token_once(tmp_path: Path) -> None:
    """And alerts no second time."""
    fit(tmp_path, pplmon.Checkpoint(tmp_path), batch_size=4)
    whole = fit(tmp_path, (), batch_size=4).callback_metrics
    heard: list[pplmon.Alert] = []
    (path,) = tmp_path.glob("*.ckpt")
    resumed = fit(tmp_path, heard.append, ckpt_path=str(path), batch_size=4).callback_metrics
    assert heard == []
    for name in ("tokens_seen", "cross_entropy", "max_token_loss_epoch", "cross_entropy_epoch"):
        assert resumed[f"train/{name}"] == whole[f"train/{name}"], name


def test_an_alert_at_the_last_step_is_saved_at_the_end_of_fit(tmp_path: Path) -> None:
    fit(tmp_path, pplmon.Checkpoint(tmp_path), batch_size=2, limit_train_batches=BAD // 2 + 1)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == [f"Above-max_token_loss-step={BAD // 2}.ckpt"]


def test_saving_does_not_judge_for_ever_and_is_bounded(tmp_path: Path) -> None:
    """A rule that always fires: asking for the state judges a step, which alerts, which would save again."""

    def always(report: pplmon.Report) -> pplmon.Alert:
        return pplmon.Alert("always", "again")

    trainer = fit(tmp_path, pplmon.Checkpoint(tmp_path, at_most=2), alerts=[always], batch_size=4)
    assert len(list(tmp_path.glob("*.ckpt"))) == 2
    assert trainer.global_step == 12


def test_stop_and_checkpoint_together(tmp_path: Path) -> None:
    trainer = fit(tmp_path, [pplmon.Stop(), pplmon.Checkpoint(tmp_path)], batch_size=4)
    assert trainer.global_step == 7 and len(list(tmp_path.glob("*.ckpt"))) == 1


def test_a_fast_dev_run_leaves_no_files(tmp_path: Path) -> None:
    def always(report: pplmon.Report) -> pplmon.Alert:
        return pplmon.Alert("always", "again")

    fit(tmp_path, [pplmon.Checkpoint(), pplmon.SaveBatch()], alerts=[always], fast_dev_run=3)
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.ckpt"))


def test_a_plain_loop_says_how_to_save(tmp_path: Path) -> None:
    kept: list[str] = []
    checkpoint = pplmon.Checkpoint(tmp_path / "a", save=kept.append, at_most=1)
    monitor = pplmon.Monitor(alerts=[pplmon.Above("max_token_loss", 1.0)], on_alert=checkpoint)
    for _ in range(4):
        monitor.observe(torch.zeros(2, 4, 9), torch.ones(2, 4, dtype=torch.int64))
        monitor.step()
    monitor.close()
    assert kept == [str(tmp_path / "a" / "Above-max_token_loss-step=0.ckpt")]


def test_a_trainer_saves_nothing_for_an_alert_of_one_rank_alone(tmp_path: Path) -> None:
    """The others would not come to its barrier. What saves without a trainer saves."""

    class Owner:
        trainer, log_dir = object(), None

    alone, kept = pplmon.Alert("mine", "x", step=3, ranks_missing=1), []
    checkpoint = pplmon.Checkpoint(tmp_path)
    checkpoint.bind(Owner())
    with pytest.warns(RuntimeWarning, match="a trainer saves on all ranks together, and this rank has lost the others"):
        checkpoint(alone)
    checkpoint.settle()
    own = pplmon.Checkpoint(tmp_path, save=kept.append)
    own.bind(Owner())
    own(alone)
    own.settle()
    assert len(kept) == 1


def test_a_save_that_fails_is_one_warning(tmp_path: Path) -> None:
    def failing(path: str) -> None:
        raise OSError("no space left")

    checkpoint = pplmon.Checkpoint(tmp_path, save=failing)
    monitor = pplmon.Monitor(alerts=[lambda report: pplmon.Alert("r", "t")], on_alert=checkpoint)

    def run() -> None:
        for _ in range(8):
            monitor.observe(torch.zeros(2, 4, 9), torch.ones(2, 4, dtype=torch.int64))
            monitor.step()
        monitor.close()

    with pytest.warns(RuntimeWarning, match="could not save: OSError: no space left. Training goes on") as caught:
        run()
    assert len(caught) == 1


def test_what_cannot_work_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match="Checkpoint has no trainer here: say how to save"):
        pplmon.Monitor(on_alert=pplmon.Checkpoint("a"))
    with pytest.raises(ValueError, match=r'SaveBatch without a directory.*write SaveBatch\("runs/a/alerts"\)'):
        pplmon.Monitor(on_alert=pplmon.SaveBatch())
    with pytest.raises(ValueError, match="Checkpoint: at_most must be an integer of at least 1, got 0"):
        pplmon.Checkpoint(at_most=0)
    assert repr([pplmon.Checkpoint(), pplmon.SaveBatch("a"), pplmon.Stop()]) == "[Checkpoint(), SaveBatch('a'), Stop()]"


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_save_together_and_survive_a_disk_that_refuses(tmp_path: Path) -> None:
    """DDP: one file though both ranks save; where rank 0 cannot write, both ranks train on."""
    done = run_script("tests.action_script", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["steps"] for rank in ranks] == [6, 6]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert [path.name for path in (tmp_path / "good").iterdir()] == ["Above-max_token_loss-step=3.ckpt"]
    saved = torch.load(tmp_path / "good" / "Above-max_token_loss-step=3.ckpt", weights_only=True)
    assert saved["global_step"] == 5
    assert [path.name for path in (tmp_path / "batches").iterdir()] == ["Above-max_token_loss-step=3-rank=1.pt"]
    assert "could not save" in ranks[0]["warnings"] and "could not save" not in ranks[1]["warnings"]
