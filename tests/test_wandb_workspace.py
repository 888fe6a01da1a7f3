"""``pplmon dashboard wandb``: the definition of the workspace, and that it is saved on a stand-in for W&B's server."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from typing import Any

import pytest

from pplmon.cli import main
from pplmon.report.numbers import CATALOGUE
from pplmon.sinks import wandb_workspace
from pplmon.sinks.dashboards import CHARTS, EXTRAS
from tests.wandb_server import wandb_server

HERE = ["dashboard", "wandb", "--entity", "e", "--project", "p"]
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # the package's own
needed = pytest.mark.skipif(find_spec("wandb_workspaces") is None, reason="wandb-workspaces is not installed")


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    """The definition, as W&B keeps it."""
    return wandb_workspace.definition(wandb_workspace.workspace("e", "p"))


def panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Every panel's own definition, with its kind."""
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    return [{**panel["config"], "kind": panel["viewType"]} for section in sections for panel in section["panels"]]


@needed
def test_its_sections_are_those_of_the_page(spec: dict[str, Any]) -> None:
    """Alerts first, then the charts in their order, then the evidence."""
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    assert [s["name"] for s in sections] == ["Alerts", *(chart.title for chart in CHARTS), "Evidence", "Extras"]
    closed = {"Share of the worst 1 % of tokens in the loss", "Extras"}
    assert {s["name"] for s in sections if not s["isOpen"]} == closed


@needed
def test_the_numbers_of_extras_have_panels_that_find_their_keys(spec: dict[str, Any]) -> None:
    """By a regular expression: what the groups are called only the run knows."""
    found = {
        panel["chartTitle"]: re.compile(panel["metricRegex"]) for panel in panels(spec) if panel.get("useMetricRegex")
    }
    assert found["Loss of each group, val, nats"].search("val/group/my code/cross_entropy")
    assert not found["Loss of each group, val, nats"].search("train/group/my code/cross_entropy")
    assert found["Calibration, train"].search("train/overconfidence")
    assert sum(len(chart.stages) for chart in EXTRAS) == len(found)


@needed
def test_no_line_plot_leaves_a_spike_out(spec: dict[str, Any]) -> None:
    """Each keeps the least and largest value of a bucket, cuts no outlier, smooths nothing, and has optimizer steps as x."""
    plots = [panel for panel in panels(spec) if panel["kind"] == "Run History Line Plot"]
    assert len(plots) > 6
    for plot in plots:
        assert plot["ignoreOutliers"] is False and plot["smoothingType"] == "none"
        assert plot["pointVisualizationMethod"] == "bucketing-gorilla"
        assert plot["xAxis"] == "trainer/global_step"
    drawn = {key for plot in plots if not plot.get("useMetricRegex") for key in plot["metrics"]}
    names = {f"{stage}/{name}" for chart in CHARTS for stage in chart.stages for name in chart.names}
    assert drawn == names | {"pplmon/alerts_total", "pplmon/notices_total"}


@needed
def test_maxima_have_panels_of_their_own_that_say_so(spec: dict[str, Any]) -> None:
    """A mean beside a maximum would be pressed flat; and a window's maximum is not the last value in it."""
    for panel in panels(spec):
        names = [key.split("/")[-1] for key in panel.get("metrics", ()) if key.split("/")[-1] in CATALOGUE]
        if panel["kind"] == "Run History Line Plot" and names:
            assert len({name.startswith("max_") for name in names}) == 1
            assert panel["chartTitle"].endswith("(the highest of each window)") == names[0].startswith("max_")


@needed
def test_the_runs_table_is_sorted_by_trouble(spec: dict[str, Any]) -> None:
    """The count of alerts is a column, and the order."""
    said = json.dumps(spec)
    assert '"summary:pplmon/alerts_total"' in said and '"summary:pplmon/worst_step"' in said
    assert [panel["mediaKeys"] for panel in panels(spec) if "mediaKeys" in panel] == [
        ["pplmon/alert_text"],
        ["pplmon/worst_of_run"],
    ]


@needed
def test_the_command_prints_it_without_a_login(capsys: pytest.CaptureFixture[str]) -> None:
    """As one JSON object, under the keys of a monitor's prefix."""
    assert main([*HERE, "--prefix", "draft/", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["entity"], said["project"], said["displayName"]) == ("e", "p", "pplmon")
    keys = [key for panel in panels(said) for key in panel.get("metrics", ())]
    assert keys and all(key.startswith(("draft/", "pplmon/draft/")) for key in keys)


@needed
def test_a_definition_can_be_read_back() -> None:
    """Canary: the private names of wandb-workspaces that the definition is made by are there, and lose nothing."""
    import wandb_workspaces.workspaces as ws

    made = wandb_workspace.workspace("e", "p")
    again = ws.Workspace._from_model(made._to_model())
    assert [section.name for section in again.sections] == [section.name for section in made.sections]


@needed
def test_the_command_saves_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in for the server: W&B's own could not be reached."""
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        assert main(HERE) == 0
    assert "UpsertView2" in server.asked
    assert "/e/p" in capsys.readouterr().out


def test_without_the_package_the_command_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an extra."""
    monkeypatch.setattr(wandb_workspace, "find_spec", lambda _: None)
    assert main([*HERE, "--json"]) == 2
    assert 'pip install "pplmon[wandb]"' in capsys.readouterr().err
