"""Numbers that extras declare are known everywhere by their names, with one meaning each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pplmon
from pplmon import Number, TokenStats
from pplmon.declared import as_rows, check_name, declare, find, fits, learn, measured_by
from pplmon.numbers import CATALOGUE
from pplmon.replay.columns import choose
from pplmon.sinks.keys import Key, split_key
from pplmon.sinks.wandb import WandB


class Counted(pplmon.Extra):
    """A base for extras that count valid tokens, and give their number under some names."""

    size = 1

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        return valid.sum().reshape(1)

    def numbers(self, integers: Any) -> dict[str, float]:
        return {number.name: integers[0] / 10 for number in self.declares}


class Tenths(Counted):
    """Declares a number on the class, with a range and a best."""

    declares = (Number("test_tenths", "count", "a tenth of the tokens", low=-1.0, high=9.0, best="max"),)


class Parts(Counted):
    """Declares a family of numbers on the class."""

    declares = (Number("test_part/{name}/share", "", "a share of a part", high=1.0, best="min"),)

    def numbers(self, integers: Any) -> dict[str, float]:
        return {"test_part/code/share": 0.5, "test_part/train/share": 0.25}


class Named(Counted):
    """Declares numbers that depend on its settings."""

    def __init__(self, *names: str) -> None:
        self.names = names

    @property
    def declares(self) -> tuple[Number, ...]:  # type: ignore[override]
        return tuple(Number(f"test_named/{name}", "nats", f"of {name}") for name in self.names)


def report_of(*extras: Any) -> pplmon.Report:
    """Four tokens, counted by these extras."""
    tally = pplmon.TokenTally(extras=extras)
    tally.update(TokenStats.from_losses(torch.ones(1, 4), torch.ones(1, 4, dtype=torch.int64)))
    return tally.report()


def test_a_rule_knows_the_range() -> None:
    """A threshold that a declared number cannot pass is refused, as of a number of ours."""
    with pytest.raises(ValueError, match="above 9 can never fire: test_tenths lies between -1 and 9"):
        pplmon.Above("test_tenths", 9)
    with pytest.raises(ValueError, match="can never fire: test_part/code/share lies between 0 and 1"):
        pplmon.Below("test_part/code/share", 0)
    assert pplmon.Above("test_tenths", 0.3)(report_of(Tenths())) is not None
    assert pplmon.Spike("test_part/code/share", window=4)(report_of(Parts())) is None


def test_a_typo_is_told_with_the_name_that_was_meant() -> None:
    """Among the names that extras declared, too."""
    with pytest.raises(ValueError, match=r"unknown number 'test_tenth': did you mean test_tenths.*mean_entropy"):
        pplmon.Above("test_tenth", 1)


def test_a_report_without_the_extra_has_none() -> None:
    """A declared number that was not measured reads None, as any number that could not be had; an unknown one is an error."""
    plain: Any = report_of()
    assert plain.test_tenths is None and "test_tenths" not in plain.numbers
    assert report_of(Tenths()).numbers["test_tenths"] == 0.4
    with pytest.raises(AttributeError, match="a Report has no 'test_tenth'; its numbers are cross_entropy"):
        _ = plain.test_tenth


def test_a_list_of_numbers_names_what_is_measured() -> None:
    """What no extra of the tally measures is refused with the extra that does; a tally with one that declares nothing may."""

    class Undeclared:
        size, update = 1, Counted.update

        def numbers(self, integers: Any) -> dict[str, float]:
            return {"test_tenths": 1.0}

    def monitor(numbers: list[str], *extras: Any) -> pplmon.Monitor:
        return pplmon.Monitor(numbers=numbers, alerts=[], tally=pplmon.TokenTally(extras=extras))

    wanted = ["perplexity", "test_tenths", "mean_entropy"]
    with pytest.raises(
        ValueError, match=r"asks for test_tenths, mean_entropy.*extras=\[Tenths\(\), pplmon\.Entropy\(\)\]"
    ):
        monitor(wanted)
    with pytest.raises(ValueError, match=r"asks for test_part/a/share.*\[Parts\(\)\]"):
        monitor(["test_part/a/share"], Tenths())
    monitor(wanted, Tenths(), pplmon.Entropy())
    monitor(["test_part/a/share"], Parts())
    monitor(["test_tenths"], Undeclared())
    monitor(["nobody/declared"], Tenths())


def test_one_name_has_one_meaning() -> None:
    """Whoever comes second with another meaning is refused; the same class may say it anew, and anybody the same."""
    declare([Number("test_one", "nats", "first")], "First()", "module.First")
    declare([Number("test_one", "nats", "first")], "Second()", "module.Second")
    with pytest.raises(
        ValueError, match=r"Second\(\) declares 'test_one' as 'second' in no unit.*First\(\) has it as 'first' in nats"
    ):
        declare([Number("test_one", "", "second")], "Second()", "module.Second")
    declare([Number("test_one", "bits", "anew")], "First()", "module.First")
    assert find("test_one") == Number("test_one", "bits", "anew") and measured_by("test_one") == "First()"
    with pytest.raises(ValueError, match="'perplexity', which is a number of pplmon's own"):
        declare([Number("perplexity", "", "exp(cross_entropy)")], "Third()", "module.Third")
    with pytest.raises(ValueError, match=r"two extras of one tally give 'test_named/a', Named\('a', 'b'\) among them"):
        pplmon.TokenTally(extras=[Named("a"), Named("a", "b")])


@pytest.mark.parametrize("name", ["", "a b", "1st", "a/", "/a", "a//b", "a-b", 3])
def test_a_name_has_to_fit_a_log_key(name: Any) -> None:
    """What could not be read back from a log key, or would be no attribute, is refused."""
    with pytest.raises(ValueError, match="cannot be the name of a number"):
        declare([Number(name, "", "")], "X()", "module.X")


def test_what_is_declared_is_a_number() -> None:
    """A bare name is not enough, and the best is an extreme."""
    with pytest.raises(TypeError, match=r'declares pplmon.Number\("name", "unit", "meaning"\), got str: \'test_bare\''):

        class Bare(Counted):
            declares = ("test_bare",)  # type: ignore[assignment]

    with pytest.raises(ValueError, match='best of test_best must be "min", "max" or None, got \'low\''):
        Number("test_best", "", "", best="low")


def test_numbers_of_an_instance_are_known_when_a_tally_takes_it() -> None:
    """Names that depend on settings."""
    assert find("test_named/x1") is None
    pplmon.TokenTally(extras=[Named("x1")])
    number = find("test_named/x1")
    assert number is not None and number.unit == "nats"
    assert report_of(Named("y1", "y2")).numbers["test_named/y2"] == 0.4


def test_a_family_has_a_place_for_a_name() -> None:
    """Braces stand for a part without a slash."""
    assert fits("a/b/c", "a/{name}/c") and fits("a", "a") and fits("a/x y", "a/{name}")
    assert not any(fits(name, "a/{name}/c") for name in ("a/c", "a//c", "a/b/d", "a/b/c/d", "b/b/c"))
    number = find("test_part/any thing/share")
    assert number is not None and number.best == "min"


def test_a_name_with_a_slash_is_read_back_from_its_log_key() -> None:
    """Though a part of it is called like a stage; undeclared it is none of ours."""
    assert split_key("p/val/test_part/code/share") == Key("p/", "val", "test_part/code/share", None)
    assert split_key("train/test_part/train/share/dataloader_idx_2") == Key("", "train", "test_part/train/share", 2)
    assert split_key("train/nobody/share") is None
    columns = ["train/test_tenths", "val/test_part/code/share", "train/nobody/share", "val/unknown", "test_tenths"]
    chosen, _ = choose(columns, {})
    assert chosen == {
        "test_tenths": ("train", "test_tenths"),  # of two columns that are one number the shorter
        "val/test_part/code/share": ("val", "test_part/code/share"),
        "train/nobody/share": ("train", "nobody/share"),
    }


def test_the_best_value_of_a_run_is_kept() -> None:
    """In W&B's summary, by the extreme that was declared; of a name with a slash, too."""

    class Run:
        resumed = False
        summary: dict[str, float] = {}  # noqa: RUF012

    sink = WandB(run=Run())
    for tenths, share in ((3.0, 0.5), (2.0, 0.25), (1.0, 0.75)):
        sink.best({"val/test_tenths": tenths, "val/test_part/code/share": share, "val/nobody/share": share})
    assert Run.summary == {"val/test_tenths_max": 3.0, "val/test_part/code/share_min": 0.25}


def test_declarations_go_through_a_journal() -> None:
    """As plain values, only what is not as usual; what this process knows itself is not overwritten, nor is it by rubbish."""
    number = Number("test_learnt", "nats", "something", low=-math.inf, best="min")
    (row,) = as_rows([number])
    assert row == {
        "name": "test_learnt",
        "unit": "nats",
        "meaning": "something",
        "low": -math.inf,
        "best": "min",
        "extra": None,
    }
    with pytest.raises(ValueError, match="unknown number 'test_learnt'"):
        check_name("test_learnt")
    learn([{**row, "low": "-Infinity"}, {**row, "name": "test_tenths"}, {**row, "name": "perplexity"}])
    assert find("test_learnt") == number
    assert find("test_tenths") == Tenths.declares[0] and find("perplexity") is CATALOGUE["perplexity"]
    for rubbish in (None, 3, "abc", [None, 3], [{}], [{"name": "a b"}], [{"name": "test_bad", "low": [1]}]):
        learn(rubbish)
    learn([{"name": "test_bad", "best": "worst"}])
    assert find("test_bad") is None
    declare(
        [Number("test_learnt", "", "the class's own")], "Own()", "module.Own"
    )  # a class that comes later knows better
    found = find("test_learnt")
    assert found is not None and found.meaning == "the class's own"


def test_numbers_that_are_not_declared_are_told_at_once(tmp_path: Path) -> None:
    """An extra that declares some has to declare all; one that gives shapes or sizes that do not fit is refused."""

    class Typo(Counted):
        declares = (Number("test_typo", "", ""),)

        def numbers(self, integers: Any) -> dict[str, float]:
            return {"test_tpyo": 1.0}

    class Long(Counted):
        def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
            return torch.zeros(3, dtype=torch.int64)

    class Broken(Long):
        def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
            return torch.zeros(1)

    with pytest.raises(ValueError, match=r"Typo\(\).numbers gives 'test_tpyo', and declares 'test_typo'"):
        pplmon.TokenTally(extras=[Typo()])
    with pytest.raises(ValueError, match=r"Long\(\).update must return integers of shape \(1,\).*int64 \(3,\)"):
        report_of(Long())
    with pytest.raises(ValueError, match=r"Broken\(\).update must return integers.*float32 \(1,\)"):
        report_of(Broken())


def test_an_extra_is_known_by_the_call_that_made_it() -> None:
    """Long settings by a digest, defaults left out; what it holds later does not matter."""

    class Settings(Counted):
        def __init__(self, ids: Any, names: tuple[str, ...] = ("a",), *, least: int = 3) -> None:
            self.kept = ids

    assert repr(Settings(3)) == repr(Settings(3, ("a",), least=3)) == "Settings(3)"
    assert repr(Settings([1], least=4)) == "Settings([1], least=4)"
    long = [repr(Settings(torch.arange(count))) for count in (100, 101, 100)]
    assert long[0] == long[2] != long[1] and len(long[0]) < 40
    assert repr(Settings({"b", "a"})) == "Settings(['a', 'b'])"  # no set is printed alike in two processes
    assert repr(Settings(object())) == "Settings(<object object>)"
    pplmon.TokenTally(extras=[Settings(1), Settings(2)])
    with pytest.raises(ValueError, match=r"extras must differ.*got Settings\(1\), Settings\(1\)"):
        pplmon.TokenTally(extras=[Settings(1), Settings(1)])


def test_an_extra_is_told_of_documents_samples_and_positions() -> None:
    """In the shapes in which they were given, on the device, and of anything else by its name."""
    seen: list[dict[str, Tensor]] = []

    class Sees(Counted):
        def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
            seen.append(batch_data)
            return valid.sum().reshape(1)

    tally, targets = pplmon.TokenTally(extras=[Sees()]), torch.ones(2, 3, dtype=torch.int64)
    data = {
        "document_ids": targets.int(),
        "sample_ids": torch.arange(2),
        "position_ids": targets,
        "group_ids": torch.zeros(2),
    }
    tally.update(torch.zeros(2, 3, 4), targets, **data)
    tally.update(torch.zeros(3, 4), targets[0], document_ids=targets[0])
    tally.update(torch.zeros(2, 3, 4), targets)
    assert {name: tuple(value.shape) for name, value in seen[0].items()} == {
        "document_ids": (2, 3),
        "sample_ids": (2,),
        "position_ids": (2, 3),
        "group_ids": (2,),
    }
    assert {name: tuple(value.shape) for name, value in seen[1].items()} == {"document_ids": (3,)} and seen[2] == {}
