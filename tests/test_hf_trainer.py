"""``pplmon.watch(trainer)`` under the Hugging Face ``Trainer``: its own logs have numbers that equal float64."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pplmon
from pplmon.sinks import read_journal

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tests.hf_kit import Heard, InOrder, Mine, Sums, arguments, build, collate, logged, mean, rows, trainer  # noqa: E402
from tests.test_sinks_tensorboard import charts, read  # noqa: E402
from tests.test_sinks_wandb import finished  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Heard, Path]:
    """Seven steps of four uneven micro-batches, logged every other step, evaluated every third, then tested."""
    where = tmp_path_factory.mktemp("run")
    made = trainer(where, max_steps=7, eval_strategy="steps", eval_steps=3, report_to=["tensorboard"])
    heard = Heard(made.model)
    pplmon.watch(made, numbers=["perplexity", "cross_entropy", "token_accuracy", "tokens"])
    made.train()
    made.predicted = made.predict(rows(10, seed=2)).metrics
    return made, heard, where


def test_train_rows_have_the_window_of_their_own_loss(run: tuple[Any, Heard, Path]) -> None:
    """In one row with it, at its step; the last, shorter window has a row of its own."""
    made, heard, _ = run
    cut = [heard.train[i : i + 8] for i in range(0, 28, 8)]
    assert logged(made, "cross_entropy") == [
        (step, pytest.approx(mean(part), abs=1e-6)) for step, part in zip((2, 4, 6, 7), cut)
    ]
    assert [value for _, value in logged(made, "tokens")] == [sum(part.tokens for part in parts) for parts in cut]
    together = [row["step"] for row in made.state.log_history if {"loss", "perplexity"} <= set(row)]
    assert together == [2, 4, 6]
    for (_, perplexity), part in zip(logged(made, "perplexity"), cut):
        assert perplexity == pytest.approx(math.exp(mean(part)), rel=1e-6)


def test_evaluation_adds_to_the_loops_own_metrics(run: tuple[Any, Heard, Path]) -> None:
    """So that the history has them, and ``predict`` returns them. The trainer's own is a mean of batch means."""
    made, heard, _ = run
    passes = [heard.eval[i : i + 4] for i in range(0, 16, 4)]
    expected = [pytest.approx(mean(part), abs=1e-6) for part in passes]
    assert logged(made, "eval_cross_entropy") == list(zip((3, 6, 7), expected))
    assert made.predicted["test_cross_entropy"] == expected[3]
    for (_, own), part in zip(logged(made, "eval_loss"), passes):
        means = [sums.nll / sums.tokens for sums in part]
        assert own == pytest.approx((sum(means[:3]) * 3 + means[3]) / 10, abs=1e-6)
        assert abs(own - mean(part)) > 1e-4


def test_report_to_targets_get_each_number_once(run: tuple[Any, Heard, Path]) -> None:
    """In the trainer's own event file."""
    made, _, where = run
    files = list(where.rglob("events.out.tfevents*"))
    assert len(files) == 1
    events = EventAccumulator(str(files[0]), size_guidance={"scalars": 0})
    events.Reload()
    for key, tag in (("perplexity", "train/perplexity"), ("eval_perplexity", "eval/perplexity")):
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        assert shown == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged(made, key)]


def test_the_journal_has_it_all_and_its_steps_are_0_based(run: tuple[Any, Heard, Path]) -> None:
    """Windows, passes and read-outs, in the trainer's output directory."""
    _, _, where = run
    reports = [row for row in read_journal(where) if row["kind"] == "report"]
    assert [(row["stage"], row["step"]) for row in reports] == [
        ("train", 1), ("val", 2), ("train", 3), ("train", 5), ("val", 5), ("val", 6), ("train", 6), ("test", 6),
    ]  # fmt: skip
    worst = reports[0]["worst"][0]
    assert worst["step"] in (0, 1)
    assert worst["micro_batch"] in range(4)


def test_an_evaluation_alone_is_watched(tmp_path: Path) -> None:
    """Without training, and again."""
    made = trainer(tmp_path)
    heard = Heard(made.model)
    pplmon.watch(made)
    for _ in range(2):
        heard.eval.clear()
        assert made.evaluate()["eval_cross_entropy"] == pytest.approx(mean(heard.eval), abs=1e-6)
    assert [row["stage"] for row in read_journal(tmp_path) if row["kind"] == "report"] == ["val"]


def test_a_run_whose_ranks_are_lost_keeps_its_counts_through_evaluation(tmp_path: Path) -> None:
    """No new session begins in the middle of training."""

    class LosesRanks(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                callback.session.monitor._link.sever()

    made = trainer(tmp_path, callbacks=[LosesRanks()], eval_strategy="steps", eval_steps=2)
    heard = Heard(made.model)
    callback = pplmon.watch(made)
    began: list[Any] = []
    begin = callback.begin
    callback.begin = lambda *args: began.append(begin(*args)) or began[-1]
    made.train()
    assert len(began) == 1 and began[0].monitor.ended
    assert began[0].monitor.close().numbers["tokens_seen"] == sum(part.tokens for part in heard.train)


def test_several_eval_sets_have_a_pass_each(tmp_path: Path) -> None:
    """Under the trainer's own prefixes, and under names of their own in the journal; a rule judges each by itself."""
    sets = {"wiki": rows(5, seed=3), "code": rows(6, seed=4)}
    made = trainer(tmp_path, eval_dataset=sets, eval_strategy="steps", eval_steps=4)
    heard = Heard(made.model)
    alerts: list[pplmon.Alert] = []
    rules = [pplmon.Above("cross_entropy", 1.0, stage="val"), pplmon.Above("cross_entropy", 1.1, stage="val/code")]
    pplmon.watch(made, alerts=rules, on_alert=alerts.append)
    made.train()
    assert [(alert.stage, alert.threshold) for alert in alerts] == [
        ("val/wiki", 1.0),
        ("val/code", 1.0),
        ("val/code", 1.1),
    ]
    assert alerts[0].text.startswith("step 3: val/wiki/cross_entropy ")
    assert logged(made, "eval_wiki_cross_entropy") == [(4, pytest.approx(mean(heard.eval[:2]), abs=1e-6))]
    assert logged(made, "eval_code_cross_entropy") == [(4, pytest.approx(mean(heard.eval[2:]), abs=1e-6))]
    stages = [row["stage"] for row in read_journal(tmp_path) if row["kind"] == "report"]
    assert stages == ["train", "train", "val/wiki", "val/code"]


@pytest.mark.parametrize("given", [{}, {"numbers": ["perplexity"]}])
def test_a_row_has_ten_keys_more_or_those_that_are_asked_for(given: dict[str, Any], tmp_path: Path) -> None:
    """The journal has all of them in both."""
    plain = trainer(tmp_path / "plain", max_steps=2, eval_strategy="steps", eval_steps=2)
    made = trainer(tmp_path / "watched", max_steps=2, eval_strategy="steps", eval_steps=2)
    pplmon.watch(made, **given)
    for one in (plain, made):
        one.train()
    before, after = ([set(row) for row in one.state.log_history[:2]] for one in (plain, made))
    more = [row - old for row, old in zip(after, before)]
    assert {f"eval_{key}" for key in more[0]} == more[1]
    assert more[0] == {"perplexity"} if given else len(more[0]) == 10
    reports = [row for row in read_journal(tmp_path / "watched") if row["kind"] == "report"]
    assert all({"perplexity", "max_sequence_loss", "worst_1pct_loss"} <= row["numbers"].keys() for row in reports)


@pytest.mark.parametrize("prefix", ["", "my_"])
def test_charts_find_the_curves_of_the_trainer(prefix: str, tmp_path: Path) -> None:
    """In its own event file, under its own tags: one number a chart, of each data set."""
    sets = {"wiki": rows(5, seed=3), "code": rows(6, seed=4)}
    made = trainer(tmp_path, eval_dataset=sets, eval_strategy="steps", eval_steps=4, report_to=["tensorboard"])
    pplmon.watch(made, numbers="all", prefix=prefix)
    made.train()
    events = read(next(tmp_path.rglob("events.out.tfevents*")).parent)
    tags, found = events.Tags()["scalars"], charts(events)
    for title, wanted in (
        ("Perplexity, train", ["train/{}perplexity"]),
        ("Perplexity, val", ["eval/wiki_{}perplexity", "eval/code_{}perplexity"]),
        ("Token loss: mean (nats)", ["train/{}cross_entropy"]),
    ):
        drawn = [tag for tag in tags if re.match(found[title], tag)]
        assert sorted(drawn) == sorted(tag.format(prefix) for tag in wanted)


def test_labels_that_smoothing_takes_out_of_the_batch_are_found(tmp_path: Path) -> None:
    """The model is called without them; the loss is not the cross-entropy, which is measured all the same."""
    model = build()
    seen: list[torch.Tensor] = []
    model.register_forward_hook(lambda module, args, output: seen.append(output.logits.detach()))
    made = trainer(tmp_path, model, label_smoothing_factor=0.1, max_steps=2)
    pplmon.watch(made)
    made.train()
    batches = [collate(rows(64)[i : i + 2])["labels"] for i in range(0, 16, 2)]
    expected = mean([Sums.of(logits, labels) for logits, labels in zip(seen, batches)])
    assert logged(made, "cross_entropy") == [(2, pytest.approx(expected, abs=1e-6))]
    seen.clear()
    assert made.evaluate()["eval_cross_entropy"] == pytest.approx(
        mean([Sums.of(x, collate(rows(10, seed=2)[i : i + 3])["labels"]) for x, i in zip(seen, (0, 3, 6, 9))]), abs=1e-6
    )


def test_the_best_checkpoint_is_really_the_best(tmp_path: Path) -> None:
    """transformers would take the highest perplexity: its name does not end in "loss"."""
    made = trainer(
        tmp_path, max_steps=6, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_perplexity",
    )  # fmt: skip
    assert made.args.greater_is_better is True
    pplmon.watch(made)
    with pytest.warns(
        UserWarning, match="pplmon: the best eval_perplexity is the lowest: greater_is_better=False is set"
    ):
        made.train()
    seen = logged(made, "eval_perplexity")
    best = min(seen, key=lambda pair: pair[1])
    assert made.state.best_metric == best[1]
    assert made.state.best_model_checkpoint.endswith(f"checkpoint-{best[0]}")
    assert made.evaluate()["eval_perplexity"] == pytest.approx(best[1], rel=1e-6)


def test_an_evaluation_under_a_prefix_of_its_own(tmp_path: Path) -> None:
    """Its keys begin with it, a chart finds them, and the trainer the one that its best checkpoint is chosen by."""
    made = trainer(
        tmp_path, kind=Mine, max_steps=6, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, metric_for_best_model="mine_perplexity", greater_is_better=False,
        report_to=["tensorboard"], learning_rate=0.3,
    )  # fmt: skip
    heard = Heard(made.model)
    pplmon.watch(made, alerts=[])
    made.train()
    passes = [mean(heard.eval[i : i + 4]) for i in (0, 4, 8)]
    assert logged(made, "mine_cross_entropy") == list(
        zip((2, 4, 6), (pytest.approx(each, abs=1e-6) for each in passes))
    )
    assert made.state.best_metric == pytest.approx(math.exp(min(passes)), rel=1e-6)
    assert made.state.best_model_checkpoint.endswith(f"checkpoint-{2 + 2 * passes.index(min(passes))}")
    events = read(next(tmp_path.rglob("events.out.tfevents*")).parent)
    drawn = [tag for tag in events.Tags()["scalars"] if re.match(charts(events)["Perplexity, val"], tag)]
    assert "train/mine_perplexity" in drawn and "train/perplexity" not in drawn


def test_early_stopping_finds_a_number_that_is_not_even_logged(tmp_path: Path) -> None:
    """``max_token_loss`` rises when the learning rate is absurd."""
    made = trainer(
        tmp_path, max_steps=12, eval_strategy="steps", eval_steps=1, metric_for_best_model="eval_bits_per_token",
        greater_is_better=False, learning_rate=3.0, callbacks=[transformers.EarlyStoppingCallback(2)],
    )  # fmt: skip
    pplmon.watch(made, alerts=[])
    made.train()
    assert made.state.global_step < 12


def test_stop_ends_the_run_through_control(tmp_path: Path) -> None:
    """The alert of the first step is known after the second."""
    alerts: list[pplmon.Alert] = []
    made = trainer(tmp_path, max_steps=9)
    pplmon.watch(made, alerts=[pplmon.Above("cross_entropy", 1.0)], on_alert=[alerts.append, pplmon.Stop()])
    made.train()
    assert made.state.global_step == 2
    assert [alert.step for alert in alerts] == [0]


def test_nan_is_seen_though_the_trainer_filters_it(tmp_path: Path) -> None:
    """It logs the mean of earlier losses in place of NaN."""
    model = build()

    def break_one(module: Any, args: Any, output: Any) -> None:
        if module.training:
            module.calls = getattr(module, "calls", 0) + 1
            if module.calls == 6:
                output.logits[:, 5] = float("nan")
                output["loss"] = output.loss * float("nan")

    model.register_forward_hook(break_one)
    alerts: list[pplmon.Alert] = []
    made = trainer(tmp_path, model, max_grad_norm=0.0, learning_rate=0.0, max_steps=2)
    pplmon.watch(made, on_alert=alerts.append)
    made.train()
    assert logged(made, "nonfinite_tokens") == [(2, 2)]
    assert math.isfinite(logged(made, "loss")[0][1])
    assert [(alert.rule, alert.step) for alert in alerts] == [("NonFinite", 1)]


def test_without_logits_a_run_is_warned_and_goes_on(tmp_path: Path) -> None:
    """Nothing has tokens to predict here."""

    class Regression(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.layer(x) - labels).square().mean()}

    data = [{"x": torch.randn(4), "labels": torch.randn(1)} for _ in range(64)]
    made = trainer(
        tmp_path,
        Regression(),
        train_dataset=data,
        eval_dataset=data[:4],
        data_collator=transformers.default_data_collator,
    )
    pplmon.watch(made)
    with pytest.warns(
        UserWarning, match=r"(?s)found no logits and targets in the first train batch.*pplmon.watch\(trainer, "
    ):
        made.train()
    assert made.state.global_step == 4
    assert logged(made, "loss")
    assert not logged(made, "perplexity")


def test_a_callback_by_itself_has_the_train_numbers_in_sinks_of_its_own(tmp_path: Path) -> None:
    """And a warning names the line that binds it."""
    made = trainer(tmp_path, callbacks=[pplmon.PerplexityCallback()], eval_strategy="steps", eval_steps=2)
    heard = Heard(made.model)
    with pytest.warns(UserWarning, match=r"bind it: pplmon.watch\(trainer\)"):
        made.train()
    assert not logged(made, "perplexity")
    reports = [row for row in read_journal(tmp_path) if row["kind"] == "report"]
    assert [(row["stage"], row["step"]) for row in reports] == [("train", 1), ("train", 3)]
    for row, part in zip(reports, (heard.train[:8], heard.train[8:])):
        assert row["numbers"]["cross_entropy"] == pytest.approx(mean(part), abs=1e-6)


def test_watch_binds_a_callback_that_is_there(tmp_path: Path) -> None:
    """With its own settings; and no trainer is watched twice."""
    callback = pplmon.PerplexityCallback(numbers=["perplexity"], prefix="my_")
    made = trainer(tmp_path, callbacks=[callback])
    with pytest.raises(ValueError, match="has a PerplexityCallback already: give alerts to it"):
        pplmon.watch(made, alerts=[])
    assert pplmon.watch(made) is callback
    with pytest.raises(ValueError, match="watched already"):
        pplmon.watch(made)
    made.train()
    assert [step for step, _ in logged(made, "my_perplexity")] == [2, 4]


def test_wrong_arguments_say_what_is_meant(tmp_path: Path) -> None:
    """Another trainer, and a setting that there is not."""
    with pytest.raises(TypeError, match="takes a transformers.Trainer or a subclass of it, got int; under Lightning"):
        pplmon.watch(1)
    with pytest.raises(TypeError, match="'alert' is no setting: did you mean alerts"):
        pplmon.watch(trainer(tmp_path), alert=[])
    with pytest.raises(TypeError, match="'wire' is no setting: there are logits, targets"):
        pplmon.PerplexityCallback(wire="loop")
    with pytest.raises(ValueError, match="this trainer logs grad_norm, before clipping, by itself; leave it out"):
        pplmon.PerplexityCallback(grad_norm=True)


def test_a_key_that_the_trainer_has_itself_keeps_its_place(tmp_path: Path) -> None:
    """In metrics, and in rows that a subclass adds to, as TRL's trainers do."""

    class Adds(InOrder):
        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                logs["token_accuracy"] = 0.5
            super().log(logs, *args, **kwargs)

    made = trainer(
        tmp_path, kind=Adds, compute_metrics=lambda prediction: {"perplexity": 7.0}, eval_strategy="steps", eval_steps=4
    )
    pplmon.watch(made)
    with pytest.warns(UserWarning, match="the trainer logs 'token_accuracy' itself"):
        made.train()
    assert logged(made, "token_accuracy") == [(2, 0.5), (4, 0.5)]
    assert [step for step, _ in logged(made, "pplmon/token_accuracy")] == [4]
    assert logged(made, "eval_perplexity") == [(4, 7.0)]
    assert logged(made, "eval_pplmon/perplexity")[0][1] != 7.0


def test_a_cadence_of_its_own_has_rows_of_its_own(tmp_path: Path) -> None:
    """Between those of the trainer, at their own steps."""
    made = trainer(tmp_path, max_steps=6, logging_steps=3)
    pplmon.watch(made, every_n_steps=2)
    made.train()
    assert [step for step, _ in logged(made, "perplexity")] == [2, 4, 6]
    assert [step for step, _ in logged(made, "loss")] == [3, 6]


@pytest.mark.parametrize("bound", [True, False])
def test_a_trainer_that_logs_by_epoch_has_windows_of_an_epoch(bound: bool, tmp_path: Path) -> None:
    """Every token of the epoch, at its end."""
    made = trainer(tmp_path, train_dataset=rows(16), max_steps=-1, num_train_epochs=2, logging_strategy="epoch")
    heard = Heard(made.model)
    callback = pplmon.PerplexityCallback()
    made.add_callback(callback)
    if bound:
        pplmon.watch(made)
        made.train()
    else:
        with pytest.warns(UserWarning, match="by itself"):
            made.train()
    reports = [row for row in read_journal(tmp_path) if row["kind"] == "report"]
    expected = [pytest.approx(mean(part), abs=1e-6) for part in (heard.train[:8], heard.train[8:])]
    assert [(row["step"], row["numbers"]["cross_entropy"]) for row in reports] == list(zip((1, 3), expected))
    assert logged(made, "cross_entropy") == (list(zip((2, 4), expected)) if bound else [])


def test_seq2seq_that_generates_in_evaluation(tmp_path: Path) -> None:
    """The calls of ``generate`` are not counted; an encoder–decoder model does not shift its labels."""
    model = build("t5")
    heard = Heard(model, shift=False)
    given = arguments(
        tmp_path, kind=transformers.Seq2SeqTrainingArguments, predict_with_generate=True, generation_max_length=6,
        eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    made = transformers.Seq2SeqTrainer(
        model, given, data_collator=collate, train_dataset=rows(32), eval_dataset=rows(10, seed=2),
        compute_metrics=lambda prediction: {},
    )  # fmt: skip
    pplmon.watch(made)
    # The trainer leaves the accumulation to T5, which leaves it to the trainer: its loss is four times too large.
    with pytest.warns(UserWarning, match=r"is 4.79\d+ nats per token, but training_step returned a loss of 19.1"):
        made.train()
    assert [value for _, value in logged(made, "cross_entropy")] == [
        pytest.approx(mean(part), abs=1e-6) for part in (heard.train[:8], heard.train[8:])
    ]
    assert [value for _, value in logged(made, "eval_cross_entropy")] == [
        pytest.approx(mean(part), abs=1e-6) for part in (heard.eval[:4], heard.eval[4:])
    ]


def generating(where: Path, **given: Any) -> Any:
    """A trainer of T5 that generates in evaluation, and measures in training by its calls."""
    told = arguments(
        where, kind=transformers.Seq2SeqTrainingArguments, predict_with_generate=True, generation_max_length=6,
        gradient_accumulation_steps=1, max_steps=2, remove_unused_columns=False,
    )  # fmt: skip
    own = {"data_collator": collate, "train_dataset": rows(16), "eval_dataset": rows(10, seed=2), **given}
    return transformers.Seq2SeqTrainer(build("t5"), told, compute_metrics=lambda prediction: {}, **own)


def test_a_run_after_an_evaluation_that_failed_to_generate_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had not been called."""
    made = generating(tmp_path)
    heard = Heard(made.model, shift=False)
    pplmon.watch(made)
    with monkeypatch.context() as patch:
        patch.setattr(made.model, "generate", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made.evaluate()
    made.train()
    assert logged(made, "cross_entropy") == [(2, pytest.approx(mean(heard.train), abs=1e-6))]


def test_a_collators_words_reach_pplmon_where_the_trainer_generates(tmp_path: Path) -> None:
    """A mask of the first five targets of each row, and the rows' ids."""

    def with_words(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        row = collate([each["ids"] for each in batch])
        mask = torch.zeros_like(row["labels"], dtype=torch.bool)
        mask[:, :5] = True
        return {**row, "mask": mask, "sample_ids": torch.tensor([each["id"] for each in batch])}

    data = [{"ids": row, "id": 100 + index} for index, row in enumerate(rows(10, seed=2))]
    made = generating(tmp_path, data_collator=with_words, eval_dataset=data)
    scored: list[Sums] = []

    def score(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if kwargs.get("labels") is not None:
            scored.append(Sums.of(output.logits[:, :5], kwargs["labels"][:, :5], shift=False))

    made.model.register_forward_hook(score, with_kwargs=True)
    pplmon.watch(made)
    assert made.evaluate()["eval_cross_entropy"] == pytest.approx(mean(scored), abs=1e-6)
    (report,) = [row for row in read_journal(tmp_path) if row["kind"] == "report"]
    assert report["numbers"]["tokens"] == 50
    assert all(row["sample_id"] == 100 + row["micro_batch"] * 3 + row["sequence"] for row in report["worst"])


def test_a_collators_words_to_pplmon_reach_it_and_not_the_model(tmp_path: Path) -> None:
    """``sample_ids`` name the row of the data set in every address."""

    def with_ids(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {**collate([row["ids"] for row in batch]), "sample_ids": torch.tensor([row["id"] for row in batch])}

    data = [{"ids": row, "id": 100 + index} for index, row in enumerate(rows(64))]
    made = trainer(
        tmp_path,
        train_dataset=data,
        eval_dataset=data[:6],
        data_collator=with_ids,
        remove_unused_columns=False,
        max_steps=2,
    )
    pplmon.watch(made)
    made.train()
    made.evaluate()
    for report in [row for row in read_journal(tmp_path) if row["kind"] == "report"]:
        for worst in report["worst"]:
            place = worst["micro_batch"] * 2 + worst["sequence"] + 8 * worst["step"]
            place = place if report["stage"] == "train" else worst["micro_batch"] * 3 + worst["sequence"]
            assert worst["sample_id"] == 100 + place


def test_an_exception_leaves_the_model_alone_and_the_window_on_disk(tmp_path: Path) -> None:
    """The trainer tells no callback of it."""
    made = trainer(tmp_path, max_steps=8, logging_steps=5)

    class Breaks(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    made.add_callback(Breaks())
    pplmon.watch(made)
    hooks = len(made.model._forward_hooks)
    with pytest.raises(KeyboardInterrupt):
        made.train()
    assert len(made.model._forward_hooks) == hooks
    assert [(row["stage"], row["step"]) for row in read_journal(tmp_path) if row["kind"] == "report"] == [("train", 1)]
    made.pop_callback(Breaks)
    made.train()
    assert logged(made, "perplexity")


def test_a_killed_run_that_is_resumed_goes_on(tmp_path: Path) -> None:
    """In the middle of a window: windows, counts and alerts are those of a run that was never killed."""
    given = {"max_steps": 8, "logging_steps": 4, "save_strategy": "steps", "save_steps": 3}
    alerts = [pplmon.Spike("max_token_loss", window=4, gap=1, quiet_steps=3)]
    straight = trainer(tmp_path / "straight", **given)
    pplmon.watch(straight, alerts=alerts)
    straight.train()

    class Dies(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise SystemExit

    killed = trainer(tmp_path / "killed", callbacks=[Dies()], **given)
    pplmon.watch(killed, alerts=alerts)
    with pytest.raises(SystemExit):
        killed.train()
    resumed = trainer(tmp_path / "killed", **given)
    pplmon.watch(resumed, alerts=alerts)
    resumed.train(resume_from_checkpoint=True)
    for key in ("cross_entropy", "tokens_seen", "max_token_loss"):
        assert logged(resumed, key)[-2:] == logged(straight, key) != []

    def kept(where: Path) -> list[dict[str, Any]]:
        return [row for row in read_journal(where) if row["kind"] in ("report", "alert")]

    assert kept(tmp_path / "killed") == kept(tmp_path / "straight")


def test_a_state_that_cannot_be_read_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    """It counts anew from there, at the trainer's step."""
    given = {"max_steps": 4, "logging_steps": 1, "save_strategy": "steps", "save_steps": 2}
    first = trainer(tmp_path, **given)
    pplmon.watch(first)
    first.train()
    path = tmp_path / "checkpoint-2" / "pplmon.pt"
    path.write_bytes(b"torn")
    again = trainer(tmp_path, **given)
    pplmon.watch(again)
    with pytest.warns(RuntimeWarning, match="counts and rules begin anew at this step"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [step for step, _ in logged(again, "perplexity")] == [1, 2, 3, 4]


@pytest.mark.parametrize("part", ["eval/", "eval/wiki_", "train/mine_"])
def test_the_run_of_wandb_is_the_trainers_own(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run has the trainer's rows with our numbers, the alerts and the best values."""
    wandb = pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("DIR", str(tmp_path))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()  # it remembers the directory of the first run in the process
    data = {"wiki": rows(5, seed=3), "code": rows(6, seed=4)} if "wiki" in part else rows(10, seed=2)
    kind = Mine if "mine" in part else InOrder
    made = trainer(tmp_path, kind=kind, report_to=["wandb"], eval_strategy="steps", eval_steps=4, eval_dataset=data)
    pplmon.watch(made, alerts=[pplmon.Above("cross_entropy", 1.0)])
    made.train()
    wandb.finish()
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    run = finished(path)
    for key in ("train/perplexity", f"{part}perplexity"):
        shown = [(row["train/global_step"], row[key]) for row in run.history if key in row]
        assert shown == logged(made, key.replace("train/", "").replace("/", "_")) != []
    assert [alert.title for alert in run.alerts] == ["Above: train/cross_entropy"]
    assert (
        run.summary[f"{part}perplexity_min"]
        == logged(made, f"{part.replace('train/', '').replace('/', '_')}perplexity")[0][1]
    )
    assert not [key for key in run.summary if key.startswith("val/")]


def test_a_compiled_model_is_heard(tmp_path: Path) -> None:
    """In training, and in an evaluation after it, when the hooks come back."""
    made = trainer(tmp_path, max_steps=2, torch_compile=True, torch_compile_backend="eager", learning_rate=0.0)
    pplmon.watch(made)
    made.train()
    model = build().eval()
    with torch.no_grad():
        expected = [
            mean([Sums.of(model(row[None]).logits, row[None]) for row in data])
            for data in (rows(64)[:16], rows(10, seed=2))
        ]
    assert logged(made, "cross_entropy") == [(2, pytest.approx(expected[0], abs=1e-6))]
    assert made.evaluate()["eval_cross_entropy"] == pytest.approx(expected[1], abs=1e-6)


def test_a_state_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    """It is told, and the trainer's own checkpoint is whole."""

    class InTheWay(transformers.TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (tmp_path / f"checkpoint-{state.global_step}" / "pplmon.pt").mkdir()

    made = trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2, callbacks=[InTheWay()])
    pplmon.watch(made)
    with pytest.warns(
        RuntimeWarning, match="pplmon.pt could not be written .*: a run that is resumed from there counts anew"
    ):
        made.train()
    assert made.state.global_step == 2 and (tmp_path / "checkpoint-2" / "trainer_state.json").is_file()
