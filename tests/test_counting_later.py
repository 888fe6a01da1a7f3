"""Batches that wait to be counted, and worst rows that wait to be found: whoever looks sees what counting at once gives."""

from __future__ import annotations

import copy
import json
import pickle
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import pplmon
from pplmon import Report, TokenStats, TokenTally, Totals
from pplmon.report import rows as lazy
from pplmon.report.rows import Rows
from pplmon.report.worst import Row, merge_rows
from pplmon.tally import sources, waiting
from pplmon.tally.records import State
from tests.test_laws import stats

Update = tuple[TokenStats, dict[str, Any]]


def tally(**how: Any) -> TokenTally:
    """One that keeps few rows, so that it has to choose."""
    return TokenTally(top_k=3, context=2, min_sequence_tokens=2, **how)


def states(counted: TokenTally) -> dict[str, list[Any]]:
    """All integers."""
    return {name: getattr(counted, name).tolist() for name in State._fields}


def small(seed: int = 0, rows: int = 2, length: int = 8, vocab: int = 11) -> tuple[Tensor, Tensor]:
    """Logits and targets of a batch that waits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, vocab, generator=generator), torch.randint(
        vocab, (rows, length), generator=generator
    )


Kind = tuple[str | None, bool, bool, bool, bool]
kinds: st.SearchStrategy[Kind] = st.tuples(
    st.sampled_from([None, None, "correct", "top_probability", "predicted", "vocab_size"]),  # what is lacking
    *(st.booleans(), st.booleans(), st.booleans()),  # shifted, packed, with sample ids
    st.integers(0, 3).map(lambda number: number == 0),  # flat
)


@st.composite
def updates(draw: st.DrawFn, kind: Kind | None) -> Update:
    """A batch of any losses, with many ties, at any step, of this kind or of any."""
    lacking, shift, packed, sampled, flat = draw(kinds) if kind is None else kind
    batch, documents = draw(stats(draw(st.integers(1, 3))))
    fields = {**batch.__dict__, **({} if lacking is None else {lacking: None}), "shift": shift}
    data: dict[str, Any] = {"step": draw(st.integers(0, 2)), "micro_batch": draw(st.integers(0, 1))}
    if packed:
        data["document_ids"] = documents.flatten() if flat else documents
    if flat:
        fields["batch_shape"] = (batch.nll.numel(),)
    elif sampled:
        data["sample_ids"] = torch.arange(len(documents)) * 7
    return TokenStats(**fields), data


def copied(counted: TokenTally) -> TokenTally:
    """A pickled copy."""
    return pickle.loads(pickle.dumps(counted))


def resumed(counted: TokenTally) -> TokenTally:
    """A new one with the state of another."""
    fresh = tally()
    fresh.load_state_dict(counted.state_dict())
    return fresh


def moved(counted: TokenTally) -> TokenTally:
    """The same after a move."""
    return counted.to("cpu").double()


def called(counted: TokenTally) -> TokenTally:
    """The same after ``forward``, which counts a batch by itself and then adds it."""
    counted(*small(), step=1)
    return counted


def synced(counted: TokenTally) -> TokenTally:
    """The same after a sync and back."""
    counted.sync(distributed_available=lambda: True)
    counted.unsync()
    return counted


def added(counted: TokenTally) -> TokenTally:
    """The same with totals, duplicates and a signal."""
    other = tally()
    other.update(*small(3), step=2)
    counted.add_totals(other.local_totals())
    counted.add_duplicates(2)
    counted.signal("leaving")
    return counted


def cleared(counted: TokenTally) -> TokenTally:
    """The same, empty."""
    counted.clear()
    return counted


def reset(counted: TokenTally) -> TokenTally:
    """The same, empty."""
    counted.reset()
    return counted


def held(counted: TokenTally) -> TokenTally:
    """Another one with the same counts."""
    other = tally()
    other.update(*small(5))  # is forgotten
    other.copy_counts(counted)
    return other


BETWEEN: list[Callable[[TokenTally], TokenTally]] = [
    *(copied, copy.deepcopy, copy.copy, TokenTally.clone, resumed, moved, called, synced, added, cleared, reset, held)
]


def played(parts: list[Update], between: list[Any], most: int) -> list[Any]:
    """Everything that can be seen while some batches are counted, ``most`` tokens of which may wait."""
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "MOST_TOKENS", most)
        counted, window = tally(), Totals()
        for (batch, data), then in zip(parts, between):
            counted.update(batch, **data)
            if then == "read out":
                under_way = counted.read_out()
                counted.clear()
                window = window + under_way.totals()
            elif then == "totals":
                seen.append(counted.totals())
            elif then == "local":
                seen.append(counted.local_totals())
            elif then == "compute":
                seen.append(repr(counted.compute()))
            elif then is not None:
                counted = then(counted)
        seen += [window.state_dict(), (window + counted.totals()).report(), states(counted)]
    return [repr(part) for part in seen]


@settings(max_examples=60)
@given(data=st.data())
def test_waiting_shows_nowhere(data: st.DataObject) -> None:
    """Any batches, of which all, some or none may wait, and whatever is done between them: the same bits at every look."""
    kind = data.draw(st.none() | kinds, "kind of all")  # batches of one kind are joined
    parts = data.draw(st.lists(updates(kind), min_size=1, max_size=6), "updates")
    then = st.sampled_from([None, None, None, "read out", "read out", "totals", "local", "compute", *BETWEEN])
    between = data.draw(st.lists(then, min_size=len(parts), max_size=len(parts)), "between")
    at_once = played(parts, between, 0)
    assert played(parts, between, 10**6) == at_once
    assert played(parts, between, 40) == at_once


def test_of_equal_losses_the_earliest_are_kept_in_whatever_order_batches_came() -> None:
    """Batches that were counted together are told apart by step, micro-batch and place, as batches counted one by one."""
    counted = tally()
    even = TokenStats.from_losses(torch.ones(2, 8), torch.zeros(2, 8, dtype=torch.int64), vocab_size=6)
    for step, micro_batch in ((2, 0), (1, 1), (1, 0), (3, 0)):
        counted.update(even, step=step, micro_batch=micro_batch)
    report = counted.report()
    assert [(w.step, w.micro_batch, w.sequence, w.position) for w in report.worst] == [(1, 0, 0, n) for n in range(3)]
    assert [(s.step, s.micro_batch, s.sequence) for s in report.worst_sequences] == [(1, 0, 0), (1, 0, 1), (1, 1, 0)]


@pytest.mark.parametrize("name", State._fields)
def test_each_state_is_counted_when_it_is_read(name: str) -> None:
    """And when it is set: what waited is not counted into what was put there. Only who reads rows has them looked for."""
    here, there = TokenTally(), TokenTally()
    here.update(*small())
    there.update(*small())
    expected = getattr(here.clone(), name)
    assert there._waiting and torch.equal(getattr(there, name), expected)
    assert bool(there._waiting) == (name not in ("token_rows", "sequence_rows"))
    there.update(*small(1))  # goes on from there
    here.update(*small(1))
    assert states(there) == states(here.clone())
    setattr(here, name, getattr(TokenTally(), name))
    assert not here._waiting and torch.equal(getattr(here, name), getattr(TokenTally(), name))


@pytest.mark.parametrize("kind", ["logits", "stats"])
def test_what_the_caller_overwrites_changes_no_number(kind: str) -> None:
    """He may use his tensors again at once, as loaders do that fill one batch in place."""
    logits, targets = small()
    data = {"document_ids": torch.zeros_like(targets), "sample_ids": torch.tensor([4, 5])}
    expected, counted = TokenTally(), TokenTally()
    expected.update(logits.clone(), targets.clone(), **{name: value.clone() for name, value in data.items()})
    told = pplmon.token_stats(logits, targets)
    counted.update(*((logits, targets) if kind == "logits" else (told,)), **data)
    columns = (told.nll, told.correct, told.top_probability, told.predicted, told.targets, told.scored, told.invalid)
    for tensor in (logits, targets, *data.values(), *columns):
        assert tensor is not None
        tensor.zero_()
    assert states(counted) == states(expected)


def test_a_bad_batch_is_refused_by_the_update_that_got_it() -> None:
    """And takes nothing of what waited with it."""
    counted, expected = TokenTally(), TokenTally()
    logits, targets = small()
    for each in (counted, expected):
        each.update(logits, targets)
    good = pplmon.token_stats(logits, targets)
    for name, bad in {"nll": good.nll.double(), "predicted": good.predicted[:3], "scored": good.targets}.items():  # type: ignore[index]
        with pytest.raises(ValueError, match=rf"TokenStats\.{name} must be .* \[16\].*\(2, 8\).*from_losses"):
            counted.update(replace(good, **{name: bad}))
    with pytest.raises(ValueError, match="document_ids must have the shape"):
        counted.update(good, document_ids=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(TypeError, match="needs targets"):
        counted.update(logits)
    assert counted._waiting and states(counted) == states(expected)


def test_what_waits_is_bounded() -> None:
    """However many batches come, and of how few tokens, of one kind or of many, and whatever is read between."""
    counted, batches = TokenTally(), [small(n, 1, 1 + n % 3) for n in range(9)]
    measured = [pplmon.token_stats(*batch) for batch in batches]
    counted.update(measured[0])
    counted.local_totals()
    tracemalloc.start()
    try:
        for number in range(600):
            counted.update(measured[number % 9], step=number)
            if number % 5 == 0:
                counted.local_totals()  # numbers only: what finds the rows goes on waiting
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held <= peak < 2**18
    assert counted._waiting._tokens < waiting.MOST_TOKENS


def test_a_large_batch_does_not_wait() -> None:
    """Counting it takes longer than starting to, so there is nothing to gain by a copy."""
    counted = TokenTally()
    counted.update(*small(rows=64, length=64))
    assert not counted._waiting


def test_many_small_batches_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 batches of 64 tokens take one pass, however they are read later."""
    passes: list[int] = []
    add = waiting.add_numbers

    def noted(xp: Any, state: State, columns: Any, how: Any) -> Any:
        passes.append(len(columns.nll))
        return add(xp, state, columns, how)

    monkeypatch.setattr(waiting, "add_numbers", noted)
    counted = TokenTally()
    for number in range(70):
        counted.update(*small(number, 8, 8), step=number)
    assert passes == [4096]
    assert counted.report().tokens == 70 * 64 and passes == [4096, 6 * 64]


class Told:
    """A source of known rows, which counts how often it was asked."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows, self.asked = rows, 0
        worst, times = max(row[0] for row in rows), [row[1] for row in rows]
        self.most, self.reached = (worst, -min(times)), (worst, -max(times))

    def rows(self) -> list[Row]:
        self.asked += 1
        return self._rows


rows_of_one = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=5)


@settings(max_examples=150)
@given(st.lists(rows_of_one, min_size=1, max_size=8), st.lists(rows_of_one, max_size=3), st.integers(1, 4))
def test_lazy_rows_are_those_of_all(parts: list[list[Row]], found: list[list[Row]], keep: int) -> None:
    """In any grouping, with ties in loss and time, and beside rows that were found before: the worst of everything."""
    whole: Any = ()
    for part in parts:
        whole = Rows.of(keep, [whole, Rows(keep, (), (Told(part),), len(part))])
    for part in found:
        whole = Rows.of(keep, [merge_rows(part, keep), whole])
    expected = merge_rows([row for part in (*parts, *found) for row in part], keep)
    assert [(row[0], row[1], row[2]) for row in whole] == list(expected)
    assert whole == expected and expected == whole and whole[:2] == expected[:2] and len(whole) == len(expected)
    assert repr(whole) == repr(expected) and copy.deepcopy(whole) == expected and type(copied_rows(whole)) is tuple


def copied_rows(rows: Any) -> Any:
    """Through a pickle, as in a checkpoint."""
    return pickle.loads(pickle.dumps(rows))


def test_only_the_worst_sources_are_asked() -> None:
    """Of fifty, as many as rows are kept; the others cannot have one. Asked once, they are let go."""
    told = [Told([(loss, loss, 0)]) for loss in range(50)]
    rows = Rows(8, (), tuple(told), 50)
    assert not any(source.asked for source in told)
    assert [row[0] for row in rows] == [*range(49, 41, -1)] and len(rows) == 8
    assert [source.asked for source in told] == [0] * 42 + [1] * 8
    ties = [Told([(5, time, 0)]) for time in range(50)]  # as where all logits are equal: the first are kept
    assert [row[1] for row in Rows(8, (), tuple(ties), 50)] == [*range(8)]
    assert sum(source.asked for source in ties) == 8


def test_totals_keep_few_tokens_to_find_rows_among(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a window of any length: beyond the bound the rows are found, and they are the same."""
    monkeypatch.setattr(lazy, "MOST_TOKENS", 100)
    counted, at_once, window = TokenTally(), TokenTally(), Totals()
    for step in range(30):
        batch = small(step)
        at_once.update(*batch, step=step)
        counted.update(*batch, step=step)
        under_way = counted.read_out()
        counted.clear()
        window = window + under_way.totals()
        assert isinstance(window.token_rows, Rows) and window.token_rows._tokens <= 100
    expected = at_once.totals()
    assert (window.token_rows, window.sequence_rows) == (expected.token_rows, expected.sequence_rows)
    assert window.report().worst == expected.report().worst


def test_lazy_rows_are_rows_to_a_checkpoint_and_to_json() -> None:
    """Totals whose rows are not found yet are saved, copied and compared as any."""
    counted, at_once = TokenTally(), TokenTally()
    counted.update(*small())
    at_once.update(*small())
    expected = at_once.totals()
    waits = counted.read_out().totals()
    assert isinstance(waits.token_rows, Rows) and isinstance(waits.sequence_rows, Rows)
    assert json.loads(json.dumps(waits.state_dict())) == json.loads(json.dumps(expected.state_dict()))
    waits = counted.read_out().totals()
    assert waits == expected and expected == waits and replace(waits, keep=3) != expected
    saved = copied_rows(counted.read_out().totals())
    assert saved == expected and type(saved.token_rows) is tuple
    assert Totals.from_state_dict(counted.read_out().totals().state_dict()) == expected
    assert counted.read_out().totals().fitted(2, 1) == expected.fitted(2, 1)


class Finds:
    """Counts how often worst tokens are looked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        keep = sources.worst.keep_tokens

        def noted(*given: Any, **named: Any) -> None:
            self.count += 1
            keep(*given, **named)

        monkeypatch.setattr(sources.worst, "keep_tokens", noted)


def test_a_monitor_looks_for_the_worst_only_to_show_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty judged steps look for none; a window looks in the eight worst of them, and shows what counting at once does."""
    finds = Finds(monkeypatch)
    monitor = pplmon.Monitor(every_n_steps=40, sinks=[pplmon.sinks.Journal(tmp_path)], tally=TokenTally(top_k=8))
    at_once, shown = TokenTally(top_k=8), None
    for step in range(41):
        assert finds.count == 0 or step == 40
        monitor.observe(*small(step))
        shown = monitor.step() or shown
        if step < 40:
            at_once.update(*small(step), step=step)
    assert shown is not None and shown.worst == at_once.report().worst and 0 < finds.count <= 10
    assert shown.worst_sequences == at_once.report().worst_sequences
    monitor.close()


def test_an_alert_has_its_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that fires is shown the worst of its own step, which are looked for then."""
    finds, alerts = Finds(monkeypatch), []

    def fires(report: Report) -> pplmon.Alert | None:
        return pplmon.Alert(rule="mine", text="now") if report.step == 2 else None

    fires.numbers_only = True  # type: ignore[attr-defined]  # as pplmon's own rules: it looks at no row
    monitor = pplmon.Monitor(every_n_steps=40, alerts=[fires], on_alert=alerts.append)
    for step in range(4):
        monitor.observe(*small(step))
        monitor.step()
        assert finds.count == (step > 2)
    expected = TokenTally()
    expected.update(*small(2), step=2)
    assert [alert.worst for alert in alerts] == [expected.report().worst]
    monitor.close()
