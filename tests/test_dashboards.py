"""The one list of charts."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import pplmon
from pplmon.extras import declare_all
from pplmon.monitor.probes import FreeRunningProbe
from pplmon.page.charts import drawings
from pplmon.page.extra_charts import MOST_LINES, extra_charts, label
from pplmon.page.runs import read_runs
from pplmon.report.declared import find
from pplmon.report.numbers import CATALOGUE
from pplmon.sinks import Journal, dashboards
from pplmon.sinks.dashboards import CHARTS, DISTRIBUTION, EXTRAS, LABELS, any_part
from pplmon.sinks.tensorboard import custom_scalars


def test_every_chart_is_of_known_numbers_and_its_key_is_its_own() -> None:
    """A misspelt number would be a line that is never drawn."""
    charts = [*CHARTS, DISTRIBUTION]
    for chart in charts:
        assert chart.names and set(chart.names) <= CATALOGUE.keys()
        assert chart.band is None or set(chart.band) <= set(chart.names)
        assert chart.title and chart.meaning.endswith(".")
    assert len({chart.key for chart in charts}) == len(charts)


def test_lines_of_one_chart_are_told_apart_by_their_labels() -> None:
    """Each has a short name of its own."""
    for chart in CHARTS:
        labels = [LABELS[name] for name in chart.names]
        assert len(set(labels)) == len(labels)


def test_numbers_of_unlike_units_never_share_a_chart() -> None:
    """A loss beside a perplexity would press one of them flat."""
    for chart in CHARTS:
        units = {CATALOGUE[name].unit.replace(" per token", "") for name in chart.names}
        assert units == {chart.unit}


def test_the_list_needs_nothing() -> None:
    """Neither torch nor a backend: whoever draws can read it."""
    source = Path(dashboards.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r"^(?:from|import) (\S+)", source, re.MULTILINE)) == {"__future__", "dataclasses"}


def test_charts_of_extras_are_of_numbers_that_an_extra_declares() -> None:
    """A misspelt pattern would match nothing, on any dashboard."""
    used = [pplmon.Groups(["a"]), pplmon.Positions(), pplmon.Calibration(), pplmon.TokenClasses([0], ["a"])]
    declare_all([*used, pplmon.Novelty(), pplmon.Rollouts()])
    declared = {number.name for number in FreeRunningProbe.declares}
    for chart in EXTRAS:
        numbers = [find(name) for name in chart.names]
        assert all(number is not None or name in declared for number, name in zip(numbers, chart.names))
        assert {number.unit.replace(" per token", "") for number in numbers if number is not None} <= {chart.unit}
        assert chart.meaning.endswith(".")


def test_what_passes_measure_without_being_asked_has_charts_of_the_list() -> None:
    """Their numbers are on every page, so each has a title and a sentence, and horizons are lines of one chart."""
    found = extra_charts([number.name for extra in (pplmon.Rollouts, pplmon.Novelty) for number in extra.declares])
    assert all(chart.meaning for chart in found)
    (rollouts,) = [chart for chart in found if chart.key == "rollouts-val"]
    assert [label(name) for name in rollouts.names] == [f"{2**i} token{'s' if i else ''}" for i in range(5)]


def test_parts_of_the_tokens_are_lines_of_one_chart_by_their_names() -> None:
    """In the order of their numbers, eight a chart, and what has no place in the list stands alone."""
    positions = [f"position/{2**i}/cross_entropy" for i in range(MOST_LINES + 2)]
    found = extra_charts(sorted([*positions, "group/my code/cross_entropy", "group/b/tokens", "optim/lr"]))
    assert [(chart.title, chart.stages, len(chart.names)) for chart in found] == [
        ("Loss of each group, train", ("train",), 1),
        ("Loss of each group, val", ("val",), 1),
        ("Loss by position in the sequence, train, 1 to 8", ("train",), 8),
        ("Loss by position in the sequence, val, 1 to 8", ("val",), 8),
        ("Loss by position in the sequence, train, 9 to 10", ("train",), 2),
        ("Loss by position in the sequence, val, 9 to 10", ("val",), 2),
        ("group/…/tokens", ("train", "val"), 1),
        ("optim/lr", ("train", "val"), 1),
    ]
    assert [label(name) for name in found[2].names] == [str(2**i) for i in range(MOST_LINES)]
    assert label("group/my code/cross_entropy") == "my code" and label("optim/lr") == "optim/lr"
    assert len({chart.key for chart in found}) == len(found)


def test_extras_of_a_run_are_drawn_on_the_page_and_in_tensorboard(tmp_path: Path) -> None:
    """From a real journal: groups are lines of one figure, and TensorBoard's layout has a chart that finds their tags."""
    tally = pplmon.TokenTally(extras=[pplmon.Groups(["code", "prose"]), pplmon.Calibration()])
    monitor = pplmon.Monitor(every_n_steps=2, sinks=[Journal(tmp_path)], tally=tally, alerts=[])
    for _ in range(4):
        monitor.observe(torch.randn(2, 4, 9), torch.randint(9, (2, 4)), group_ids=torch.tensor([0, 1]))
        monitor.step()
    monitor.close()
    (run,) = read_runs([tmp_path / "pplmon.jsonl"])
    lines = {figure.title: [line.label for line in figure.lines] for figure in drawings([run])}
    assert lines["Loss of each group, train"] == ["code", "prose"]
    assert lines["Calibration, train"] == ["overconfidence"]  # the error needs 30,000 tokens
    declared = [row["name"] for row in run.settings["declared"]]
    charts = custom_scalars("", ["cross_entropy"], declared)["pplmon"]
    (tag,) = charts["Loss of each group, train (nats)"][1]
    assert re.search(tag, "train/group/code/cross_entropy") and not re.search(tag, "train/group/code/tokens")
    assert "Calibration: overconfidence, val" in charts and "Loss of each class of tokens, val (nats)" not in charts
    assert any_part("position/{from}/cross_entropy") == "position/[^/]+/cross_entropy"
