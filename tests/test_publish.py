"""Reports on their way out: which numbers under which keys, held back or at once, and in a trainer's own places."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import pplmon
from pplmon.monitor.publish import Places
from pplmon.sinks import Sink
from pplmon.testing import run_on_ranks

REPORT = pplmon.Report(3, "val", {"perplexity": 7.0, "cross_entropy": math.nan, "max_token_excess": 2.0})


class Sent(Sink):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.scalars: list[dict[str, float]] = []

    def report(self, report: pplmon.Report, scalars: Any) -> None:
        self.scalars.append(dict(scalars))


class Shelf(Places):
    """Holds passes, and gives one key another name once it is told to."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.taken = False

    def show(self, report: pplmon.Report, head: str, tail: str) -> None:
        self.shown.append(self.key(f"{head}perplexity{tail}"))

    def holds(self, report: pplmon.Report) -> bool:
        return report.stage != "train"

    def key(self, key: str) -> str:
        return f"other/{key}" if self.taken else key


def publisher(**settings: Any) -> tuple[Any, Sent]:
    """What a monitor publishes with, and its sink."""
    sent = Sent()
    return pplmon.Monitor(sinks=[sent], alerts=[], **settings).publisher, sent


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ("core", {"a/val/perplexity/b": 7.0}),
        ("all", {"a/val/perplexity/b": 7.0, "a/val/max_token_excess/b": 2.0}),
        (["max_token_excess", "cross_entropy"], {"a/val/max_token_excess/b": 2.0}),
    ],
)
def test_selected_finite_numbers_stand_between_head_and_tail(numbers: Any, expected: dict[str, float]) -> None:
    """NaN is sent nowhere."""
    outlet, sent = publisher(numbers=numbers)
    outlet.publish(REPORT, "a/val/", "/b")
    assert sent.scalars == [expected]


def test_the_number_of_an_extra_is_logged_unless_a_list_leaves_it_out() -> None:
    """Somebody asked for it by adding the extra."""
    report = pplmon.Report(3, "val", {"perplexity": 7.0, "my_number": 1.0})
    for numbers, expected in (("core", 2), ("all", 2), (["perplexity"], 1)):
        outlet, sent = publisher(numbers=numbers)
        outlet.publish(report, "val/")
        assert len(sent.scalars[0]) == expected, numbers


def test_a_point_of_a_picture_is_no_curve_unless_it_is_named() -> None:
    """It stands in the report, for rules, journal and pictures; a list of numbers may name it."""
    names = ["reliability/0.95/accuracy", "reliability/0.95/tokens"]
    report = pplmon.Report(3, "val", {"perplexity": 7.0, names[0]: 0.9, names[1]: 40})
    for numbers, expected in (("core", ["perplexity"]), ("all", ["perplexity"]), (names[:1], names[:1])):
        outlet, sent = publisher(numbers=numbers, tally=pplmon.TokenTally(extras=[pplmon.Calibration()]))
        outlet.publish(report, "val/")
        assert [*sent.scalars[0]] == [f"val/{name}" for name in expected]


def test_a_held_report_is_sent_under_the_key_that_is_known_by_then() -> None:
    """It is shown at once, and again when it is sent; a window of training takes along what was held."""
    shelf = Shelf()
    outlet, sent = publisher(places=shelf)
    outlet.publish(REPORT, "val/")
    assert (shelf.shown, sent.scalars) == (["val/perplexity"], [])
    shelf.taken = True
    outlet.send_held()
    assert shelf.shown == ["val/perplexity", "other/val/perplexity"]
    assert sent.scalars == [{"other/val/perplexity": 7.0}]
    outlet.publish(REPORT, "val/")
    outlet.publish(pplmon.Report(4, "train", {"perplexity": 8.0}), "train/")
    assert sent.scalars[1:] == [{"other/val/perplexity": 7.0}, {"other/train/perplexity": 8.0}]
    outlet.send_held()
    assert len(sent.scalars) == 3


def test_places_that_are_left_alone_see_nothing_more() -> None:
    """What was held is still sent to the sinks."""
    shelf = Shelf()
    outlet, sent = publisher(places=shelf)
    outlet.publish(REPORT, "val/")
    outlet.leave_places_alone()
    outlet.publish(REPORT, "val/")
    outlet.send_held()
    assert (len(shelf.shown), len(sent.scalars)) == (1, 2)


def test_a_monitor_has_what_its_places_say() -> None:
    """Handlers ask it for the trainer and the directory; a plain loop has neither."""
    shelf = Shelf()
    shelf.trainer, shelf.log_dir, shelf.may_write = "trainer", "logs", False
    monitor = pplmon.Monitor(alerts=[], places=shelf)
    assert (monitor.trainer, monitor.log_dir, monitor.writes) == ("trainer", "logs", False)
    plain = pplmon.Monitor(alerts=[])
    assert (plain.trainer, plain.log_dir, plain.writes) == (None, None, True)


def shows_and_sends(rank: int) -> tuple[int, int, bool]:
    """One pass on a group of two of three ranks; returns how often this rank showed and sent it, and if it takes part."""
    group = torch.distributed.new_group([0, 1])
    shelf, sent = Shelf(), Sent()
    tally = pplmon.TokenTally(process_group=group if rank < 2 else torch.distributed.GroupMember.NON_GROUP_MEMBER)
    monitor = pplmon.Monitor(tally=tally, sinks=[sent], alerts=[], places=shelf)
    monitor.publisher.publish(REPORT, "val/")
    monitor.publisher.send_held()
    return len(shelf.shown), len(sent.scalars), monitor.takes_part


@pytest.mark.ranks
def test_every_rank_of_the_group_shows_and_its_first_sends() -> None:
    """Callbacks decide alike on all ranks; a rank outside the group has no numbers."""
    assert run_on_ranks(shows_and_sends, 3) == [(2, 1, True), (2, 0, True), (0, 0, False)]
