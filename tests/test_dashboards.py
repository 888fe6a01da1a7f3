"""The one list of charts."""

from __future__ import annotations

import re
from pathlib import Path

from pplmon.report.numbers import CATALOGUE
from pplmon.sinks import dashboards
from pplmon.sinks.dashboards import CHARTS, DISTRIBUTION, LABELS


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
