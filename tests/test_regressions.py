"""Faults that were found once, each with the smallest case that shows it."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch

import pplmon
from pplmon.measure.tokens import TokenStats
from pplmon.report.saved import sizes_of


def one(*losses: float, targets: Any = None, vocab: int | None = 10) -> TokenStats:
    """One row of tokens with these losses."""
    ids = torch.zeros(1, len(losses), dtype=torch.int64) if targets is None else torch.tensor([targets])
    return TokenStats.from_losses(torch.tensor([losses]), ids, vocab_size=vocab)


def test_a_rule_on_a_number_that_cannot_be_had_warns_once() -> None:
    """Also on a known name; but not a rule that the user did not choose."""
    monitor = pplmon.Monitor(alerts=[pplmon.Above("bits_per_byte", 3.0)])
    monitor.observe(one(1.0))
    with pytest.warns(UserWarning, match="bits_per_byte"):
        monitor.flush()
    monitor.observe(one(1.0))
    default = pplmon.Monitor()
    default.observe(TokenStats.from_losses(torch.ones(3), torch.zeros(3, dtype=torch.int64)))  # no V, no sequences
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.flush()
        default.flush()


def test_a_window_of_non_finite_tokens_only_is_one_alert_of_the_default_set() -> None:
    """NonFinite says it; three spikes on NaN would say it again."""
    with_alerts: list[pplmon.Alert] = []
    monitor = pplmon.Monitor(on_alert=with_alerts.append)
    monitor.observe(one(math.nan, math.inf))
    monitor.close()
    assert [alert.rule for alert in with_alerts] == ["NonFinite"]


def test_a_state_of_another_shape_or_with_a_piece_missing_is_refused() -> None:
    """Before the next update, and saying why."""
    small, tally = pplmon.TokenTally(top_k=4), pplmon.TokenTally()
    with pytest.raises(RuntimeError, match="token_rows was saved with shape.*top_k"):
        tally.load_state_dict(small.state_dict())
    state = tally.state_dict()
    del state["sums"]
    with pytest.raises(RuntimeError, match="Missing key.*sums"):
        tally.load_state_dict(state)
    tally.update(one(1.0))
    assert tally.report().tokens == 1


def test_an_invalid_target_neither_hides_a_window_nor_moves_the_steps() -> None:
    """The error is about an earlier step: the step under way is counted, and ``close`` closes."""

    class Keeps(pplmon.sinks.Sink):
        closed = False

        def __init__(self) -> None:
            self.seen: list[int] = []

        def report(self, report: pplmon.Report, scalars: Any) -> None:
            self.seen.append(report.step)

        def close(self) -> None:
            self.closed = True

    sink = Keeps()
    monitor = pplmon.Monitor(every_n_steps=50, sinks=[sink], alerts=[])
    monitor.observe(one(1.0, 2.0, targets=[3, 99]))
    monitor.step()
    monitor.observe(one(5.0))
    with pytest.raises(ValueError, match="1 targets are outside"):
        monitor.step()
    monitor.observe(one(7.0))
    monitor.step()
    last = monitor.close()
    assert last is not None
    assert (last.tokens, last.step) == (3, 2)
    assert [(token.loss, token.step) for token in last.worst] == [(7.0, 2), (5.0, 1), (1.0, 0)]
    assert sink.closed and sink.seen == [2]


def test_close_closes_the_sinks_when_its_own_read_out_raises() -> None:
    """What was accumulated is logged, and files are let go."""
    closed = []

    class Closes(pplmon.sinks.Sink):
        def report(self, report: pplmon.Report, scalars: Any) -> None:
            closed.append(report.tokens)

        def close(self) -> None:
            closed.append("closed")

    monitor = pplmon.Monitor(sinks=[Closes()], alerts=[])
    monitor.observe(one(1.0, 2.0, targets=[3, 99]))
    with pytest.raises(ValueError, match="outside"):
        monitor.close()
    assert closed == [1, "closed"]


def test_decode_is_given_no_id_that_is_outside_the_vocabulary() -> None:
    """Nor a negative one: a tokenizer may raise, and the text of the whole report would be lost."""
    given: list[int] = []

    def decode(ids: list[int]) -> str:
        given.extend(ids)
        return "".join(map(str, ids))

    monitor = pplmon.Monitor(alerts=[], decode=decode)
    monitor.observe(one(1.0, 2.0, 3.0, targets=[3, -100, 4]))
    monitor.step()
    monitor.observe(one(1.0, 2.0, 3.0, targets=[3, 99, 4]))
    monitor.close()
    assert given and set(given) <= set(range(10))


def test_a_pass_has_micro_batches_of_its_own() -> None:
    """A pass between two micro-batches of one step neither takes nor resets their numbers."""
    monitor = pplmon.Monitor(alerts=[])
    monitor.observe(one(1.0))
    monitor.step()
    monitor.observe(one(5.0))
    with monitor.stage("val") as val:
        monitor.observe(one(8.0))
    assert val.report is not None
    assert [(w.step, w.micro_batch) for w in val.report.worst] == [(0, 0)]
    monitor.observe(one(6.0))
    monitor.step()
    last = monitor.close()
    assert last is not None
    assert [(w.loss, w.step, w.micro_batch) for w in last.worst] == [(6.0, 1, 1), (5.0, 1, 0), (1.0, 0, 0)]
    with pytest.raises(ValueError, match='a stage is "val" or "test"'), monitor.stage("vla"):
        pass


def test_a_target_across_a_document_border_is_no_target_whatever_its_id() -> None:
    """It is not scored, so it cannot be invalid."""
    tally = pplmon.TokenTally(shift=True)
    documents = torch.tensor([[0, 0, 1, 1]])
    tally.update(torch.zeros(1, 4, 5), torch.tensor([[0, 1, -1, 2]]), document_ids=documents)
    assert tally.report().invalid_targets == 0
    tally.update(torch.zeros(1, 4, 5), torch.tensor([[0, -1, 1, 2]]), document_ids=documents)
    assert tally.report().invalid_targets == 1


def test_the_perplexity_without_a_tail_that_holds_nearly_everything() -> None:
    """990 losses of 0.001 and ten of a thousand: what is left when the ten go is 0.001, not their 1 %."""
    tally = pplmon.TokenTally()
    tally.update(one(*[1e-3] * 990, 1007.9, *[1006.0] * 9))
    assert tally.report().perplexity_without_worst_1pct == pytest.approx(math.exp(1e-3), rel=1e-4)


def test_the_probability_of_a_non_finite_row_is_not_known() -> None:
    """Whatever the sign of its NaN."""
    for bad in (math.nan, -math.nan, math.inf):
        logits = torch.zeros(1, 1, 4)
        logits[0, 0, 2] = bad
        tally = pplmon.TokenTally()
        tally.update(logits, torch.tensor([[1]]))
        assert tally.report().worst[0].predicted_probability is None


def test_what_cannot_be_addressed_is_refused() -> None:
    """A micro-batch that does not fit its bits would read as another step."""
    with pytest.raises(ValueError, match="micro_batch must be from 0 to 2"):
        pplmon.TokenTally().update(one(1.0), micro_batch=2**20)
    with pytest.raises(ValueError, match="top_k"):
        pplmon.TokenTally(top_k=True)


def test_a_rule_that_answers_with_something_else_is_heard() -> None:
    """Somebody who returns a string meant to be told."""
    heard: list[pplmon.Alert] = []
    monitor = pplmon.Monitor(alerts=[lambda report: "look here"], on_alert=heard.append)  # type: ignore[list-item]
    monitor.observe(one(1.0))
    monitor.close()
    assert "look here" in heard[0].text


def test_copies_count_over_the_same_group() -> None:
    """``MetricCollection.clone`` deep-copies; a lost group would count all ranks, silently."""
    group = object()
    tally = pplmon.TokenTally(process_group=group)
    tally.update(one(1.0, 3.0))
    twin = copy.deepcopy(tally)
    assert twin.process_group is group
    assert twin.local_totals() == tally.local_totals()
    twin.update(one(1.0))
    assert tally.local_totals()["tokens"] == 2


def test_a_number_that_was_not_given_is_not_in_the_report() -> None:
    """``in`` and iteration agree."""
    report = pplmon.Report(step=1, numbers={"perplexity": 2.0})
    assert "perplexity" in report.numbers and "cross_entropy" not in report.numbers
    assert report.cross_entropy is None


def saved(**settings: Any) -> dict[str, Any]:
    """A monitor's state with an open window and tokens that were not read out."""
    monitor = pplmon.Monitor(alerts=[], tally=pplmon.TokenTally(**settings))
    for loss in (1.0, 2.0):
        monitor.observe(one(*[loss] * 20))
        monitor.step()
    monitor.observe(one(3.0))
    return monitor.state_dict()


@pytest.mark.parametrize("settings", [{"context": 2}, {"context": 20}, {"top_k": 3}, {"top_k": 30}])
def test_a_run_resumes_with_other_settings(settings: dict[str, int]) -> None:
    """Rows are cut or filled up; numbers are what they were."""
    monitor = pplmon.Monitor(alerts=[], tally=pplmon.TokenTally(**settings))  # type: ignore[arg-type]
    monitor.load_state_dict(saved())
    monitor.observe(one(4.0))
    report = monitor.close()
    assert report is not None and (report.tokens, report.max_token_loss) == (42, 4.0)
    assert {len(token.context_ids) for token in report.worst} == {2 * settings.get("context", 8) + 1}
    middle = settings.get("context", 8)
    assert all(token.context_losses[middle] == token.loss for token in report.worst)


def repr_of(extra: Any) -> str:
    """What a checkpoint calls an extra."""
    (name,) = sizes_of([extra])
    return name


class Halves:
    """An extra of a user's own that fails when it is asked for its number."""

    size = 1

    def update(self, stats: TokenStats, valid: Any, logits: Any, **data: Any) -> torch.Tensor:
        return valid.sum().reshape(1)

    def numbers(self, sums: Any) -> dict[str, float]:
        return {"mine/half": 1 / (sums[0] - 2)}


def test_an_extra_that_fails_costs_its_own_number_only() -> None:
    """And an extra that summed other integers when the state was saved begins anew."""
    monitor = pplmon.Monitor(alerts=[], tally=pplmon.TokenTally(extras=[Halves()]))
    monitor.observe(one(1.0, 2.0))
    with pytest.warns(RuntimeWarning, match=r"Halves\.numbers failed: ZeroDivisionError"):
        report = monitor.close()
    assert report is not None and report.cross_entropy == 1.5
    resumed = pplmon.Monitor(alerts=[], tally=pplmon.TokenTally(extras=[Halves()]))
    with pytest.warns(
        RuntimeWarning, match=r"holds what this run does not count: <.*Halves object>\. That is left out"
    ):
        resumed.load_state_dict({**saved(), "window": saved()["window"] | {"extras": {repr_of(Halves()): [1, 2]}}})
    resumed.observe(one(1.0))
    last = resumed.close()
    assert last is not None and last.tokens == 42


def test_a_state_of_another_version_begins_anew() -> None:
    """And says so."""
    monitor = pplmon.Monitor(alerts=[])
    with pytest.warns(RuntimeWarning, match="version 99"):
        monitor.load_state_dict({"version": 99})


def test_rules_of_one_kind_are_told_apart_in_a_checkpoint() -> None:
    """By stage and settings, and rules of the user's by their class, in order."""

    class Counts:
        def __init__(self) -> None:
            self.n = 0

        def __call__(self, report: pplmon.Report) -> None:
            self.n += 1

        def state_dict(self) -> dict[str, int]:
            return {"n": self.n}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.n = state["n"]

    first = [pplmon.NonFinite(), pplmon.NonFinite("val"), Counts()]
    monitor = pplmon.Monitor(alerts=first)
    monitor.observe(one(math.nan, 1.0))
    monitor.flush()
    second = [Counts(), pplmon.NonFinite("val"), pplmon.NonFinite()]
    resumed = pplmon.Monitor(alerts=second)
    resumed.load_state_dict(monitor.state_dict())
    assert second[0].n == 1  # type: ignore[union-attr]
    assert [rule.state_dict()["fired"] for rule in second[1:]] == [False, True]  # type: ignore[union-attr]
    assert repr(pplmon.Spike("cross_entropy", limit=8.0, stage="val")) == "Spike('cross_entropy', limit=8, stage='val')"


def test_a_pattern_is_its_settings_only() -> None:
    """What a tally counted before it became a pattern is not counted again."""
    pattern = pplmon.TokenTally()
    pattern.update(one(1.0, 2.0, 3.0))
    monitor = pplmon.Monitor(alerts=[], tally=pattern)
    monitor.observe(one(5.0))
    last = monitor.close()
    assert last is not None and last.tokens == 1


def test_a_list_of_numbers_logs_those_and_core_logs_extras_too() -> None:
    """An extra was asked for; a list names everything that is wanted."""

    class Keys(pplmon.sinks.Sink):
        def __init__(self) -> None:
            self.keys: set[str] = set()

        def report(self, report: pplmon.Report, scalars: Any) -> None:
            self.keys |= set(scalars)

    found = []
    for numbers in ("core", ["perplexity"], ["perplexity", "mine/half"]):
        sink = Keys()
        tally = pplmon.TokenTally(extras=[Halves()])
        monitor = pplmon.Monitor(alerts=[], sinks=[sink], numbers=numbers, tally=tally)
        monitor.observe(one(1.0, 2.0, 3.0))
        monitor.close()
        found.append(sink.keys)
    assert "train/mine/half" in found[0]
    assert found[1:] == [{"train/perplexity"}, {"train/perplexity", "train/mine/half"}]


def test_views_are_no_part_of_a_modules_checkpoint() -> None:
    """As torchmetrics' own: a checkpoint of a module that had theirs loads."""

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))
            self.perplexity = pplmon.Perplexity()

    assert set(Module().state_dict()) == {"weight"}
    Module().load_state_dict({"weight": torch.ones(2)})


def test_the_journal_has_what_the_rules_saw(tmp_path: Any) -> None:
    """A number that only a rule looks at is in the judged rows, also of a plain monitor."""
    rules = [pplmon.Above("bits_per_token", 0.1)]
    monitor = pplmon.Monitor(alerts=rules, sinks=[pplmon.sinks.Journal(tmp_path)])
    monitor.observe(one(1.0))
    monitor.close()
    (row,) = [row for row in pplmon.sinks.read_journal(tmp_path) if row["kind"] == "judged"]
    assert row["numbers"]["bits_per_token"] == pytest.approx(1 / math.log(2))


def test_what_was_never_known_is_none_without_tokens_too() -> None:
    """No table of bytes, no rows, no V: not NaN."""
    ignored = TokenStats.from_losses(torch.ones(3), torch.full((3,), -100))
    tally = pplmon.TokenTally()
    tally.update(ignored)
    report = tally.report()
    for name in ("bits_per_byte", "sequences", "max_sequence_loss", "token_accuracy", "relative_cross_entropy"):
        assert report.numbers[name] is None, name
    assert math.isnan(report.cross_entropy or 0.0)


def test_a_run_of_the_users_own_is_not_finished(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """``wandb.init`` was called before us: the run is theirs."""
    wandb = pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("DIR", str(tmp_path))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()
    run = wandb.init(project="p")
    monitor = pplmon.Monitor(alerts=[], sinks=[pplmon.sinks.WandB()])
    monitor.observe(one(1.0))
    monitor.close()
    assert wandb.run is run
    run.log({"mine": 1})
    run.finish()


def test_one_rule_without_its_list_is_told() -> None:
    """Iterating over it would be an odd error."""
    with pytest.raises(TypeError, match=r"write \[NonFinite\(\)\]"):
        pplmon.Monitor(alerts=pplmon.NonFinite())  # type: ignore[arg-type]


def test_a_handler_that_exits_is_told_how_to_stop() -> None:
    """SystemExit from one rank would leave the others waiting."""

    def leaves(alert: pplmon.Alert) -> None:
        raise SystemExit

    monitor = pplmon.Monitor(alerts=[pplmon.Above("max_token_loss", 1.0)], on_alert=leaves)
    monitor.observe(one(5.0))
    with pytest.warns(RuntimeWarning, match=r"pplmon\.Stop\(\)"):
        monitor.close()
