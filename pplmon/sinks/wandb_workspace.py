"""``pplmon dashboard wandb``: a workspace of W&B with the sections of pplmon's own page.

It needs the package ``wandb-workspaces``, and no login until it is saved.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from pplmon.report.answer import Answer, CommandError
from pplmon.report.numbers import CORE
from pplmon.sinks.dashboards import CHARTS, COUNTS, EXTRAS, HEATMAP, LABELS, WORST, Chart, any_part
from pplmon.sinks.wandb import STEP

NAME = "pplmon"
PANELS_IN_A_ROW = 2


def add_dashboard(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    text = "make a dashboard in a service that keeps them: a workspace of W&B"
    dashboard = commands.add_parser("dashboard", help=text, description=f"{text[0].upper()}{text[1:]}.")
    dashboard.add_argument("service", choices=("wandb",))
    dashboard.add_argument("--entity", required=True, help="the user or the team that has the project")
    dashboard.add_argument("--project", required=True)
    dashboard.add_argument("--prefix", default="", help="that of the monitor's log keys, if it has one")
    dashboard.set_defaults(answers=_dashboard)


def workspace(entity: str, project: str, prefix: str = "") -> Any:
    """Return the workspace, not yet saved.

    Raises:
        ImportError: the package is not installed.
    """
    if find_spec("wandb_workspaces") is None:
        raise ImportError('a workspace needs the package wandb-workspaces: pip install "pplmon[wandb]"')
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    counts = [f"pplmon/{prefix}{name}" for name in COUNTS]
    return ws.Workspace(
        name=NAME,
        entity=entity,
        project=project,
        sections=[
            _trouble(counts, prefix),
            *(_section(chart, prefix) for chart in CHARTS),
            _evidence(prefix),
            _extras(prefix),
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, ignore_outliers=False, point_visualization_method="bucketing"),
        # The runs that are in trouble first.
        runset_settings=ws.RunsetSettings(
            order=[expr.Ordering(expr.Summary(counts[0]), ascending=False)],
            pinned_columns=[*(f"summary:{key}" for key in counts), f"summary:pplmon/{prefix}worst_step"],
        ),
        auto_generate_panels=True,  # below ours: the user's own keys, histograms and tables
    )


def definition(made: Any) -> dict[str, Any]:
    """Return a workspace as the plain values that W&B keeps."""
    found: dict[str, Any] = made._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return found


def _trouble(counts: Sequence[str], prefix: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    panels = [_plot(f"{title}: each step up is one", [key]) for key, title in zip(counts, COUNTS.values())]
    panels += [wr.ScalarChart(title=title, metric=key) for key, title in zip(counts, COUNTS.values())]
    return _of("Alerts", panels)


def _section(chart: Chart, prefix: str) -> Any:
    """Return one chart: its maxima by themselves, so that nobody takes the value of a window for that of a step."""
    maxima = [name for name in chart.names if name.startswith("max_")]
    groups = (maxima, [name for name in chart.names if name not in maxima])
    panels = [_panel(chart, names, prefix) for names in groups if names]
    return _of(chart.title, panels, is_open=any(name in CORE for name in chart.names))


def _panel(chart: Chart, names: Sequence[str], prefix: str) -> Any:
    labels = ", ".join(LABELS[name] for name in names)
    highest = " (the highest of each window)" if names[0].startswith("max_") else ""
    unit = f", {chart.unit}" if chart.unit else ""
    keys = [f"{prefix}{stage}/{name}" for name in names for stage in chart.stages]
    return _plot(f"{labels}{unit}{highest}", keys, log_y=chart.logarithmic)


def _plot(title: str, keys: Sequence[str], log_y: bool = False, regex: str | None = None) -> Any:
    """Return a line plot that leaves no spike out: W&B draws each bucket's least and largest value, and no outlier is cut."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=title,
        x=STEP,
        y=list(keys),
        log_y=log_y,
        metric_regex=regex,
        ignore_outliers=False,
        smoothing_type="none",
        point_visualization_method="bucketing-gorilla",
    )


def _extras(prefix: str) -> Any:
    """Return the charts of extras, closed: they are empty in a project that uses none."""
    panels = []
    for chart in EXTRAS:
        for stage in chart.stages:
            keys = [f"{re.escape(prefix)}{stage}/{any_part(name)}" for name in chart.names]
            unit = f", {chart.unit}" if chart.unit else ""
            panels.append(_plot(f"{chart.title}, {stage}{unit}", [], chart.logarithmic, f"^(?:{'|'.join(keys)})$"))
    return _of("Extras", panels, is_open=False)


def _evidence(prefix: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    titles = {HEATMAP: "The text of each alert", WORST: "The worst tokens of the run"}
    shown = [wr.MediaBrowser(title=title, media_keys=[f"pplmon/{prefix}{key}"]) for key, title in titles.items()]
    return _of("Evidence", shown)


def _of(name: str, panels: Sequence[Any], is_open: bool = True) -> Any:
    import wandb_workspaces.workspaces as ws

    layout = ws.SectionLayoutSettings(columns=PANELS_IN_A_ROW)
    return ws.Section(name=name, panels=list(panels), is_open=is_open, layout_settings=layout)


def _dashboard(options: argparse.Namespace) -> Iterator[Answer]:
    """Save the workspace; as JSON give its definition, which needs no login."""
    try:
        made = workspace(options.entity, options.project, options.prefix)
    except ImportError as error:
        raise CommandError(str(error)) from error
    yield Answer(lambda: definition(made), lambda: print(_saved(made)))


def _saved(made: Any) -> str:
    try:
        return str(made.save().url)
    except Exception as error:  # of the network, of a login
        raise CommandError(str(error)) from error
