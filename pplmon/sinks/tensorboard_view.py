"""``pplmon view``: TensorBoard with every point of a run, and links to the pages that show it best."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from pplmon.report.answer import Answer, CommandError

EVENTS = "*tfevents*"
# TensorBoard by itself keeps 1,000 points of a curve, chosen by chance: of 50 spikes of one step in 20,000 it showed 1. For all
# plugins a 0 would mean "all", but its server then shows none.
SAMPLES = {"scalars": 1_000_000, "text": 10_000, "histograms": 2_000, "distributions": 2_000}
PAGES = {  # name for programs -> name for people, place
    "charts": ("charts", "/#custom_scalars&_smoothingWeight=0"),
    "alerts": ("alerts, with their text", "/#text"),
    "distributions": ("losses of all tokens", "/#distributions"),
    "curves": ("every curve", "/?smoothing=0#timeseries"),
}


def add_view(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    text = "start TensorBoard on a run, with all its points, and print links to its charts and alerts"
    view = commands.add_parser("view", help=text, description=f"{text[0].upper()}{text[1:]}.")
    view.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="a directory with TensorBoard's event files, at any depth"
    )
    view.add_argument("--port", type=int, default=6006, help="(default: %(default)s; 0: a free one)")
    view.add_argument("--host", default="localhost", help="(default: %(default)s: this machine only)")
    view.set_defaults(answers=_view)


def start(run_dir: Path, port: int = 0, host: str = "localhost") -> str:
    """Start TensorBoard in this process, and return its address.

    Raises:
        ValueError: there is nothing for it to show, or the port is taken.
    """
    if not run_dir.is_dir() or next(run_dir.rglob(EVENTS), None) is None:
        raise ValueError(
            f"{run_dir} holds no event files of TensorBoard ({EVENTS}), at any depth; pplmon report {run_dir} makes a page of a journal"
        )
    from tensorboard import program  # type: ignore[import-untyped]

    server = program.TensorBoard()
    server.configure(argv=["tensorboard", *arguments(run_dir), "--port", str(port), "--host", host])
    try:
        return str(server.launch()).rstrip("/")
    except program.TensorBoardServerException as error:
        raise ValueError(f"{error}; --port 0 takes a free one") from None


def arguments(run_dir: Path) -> list[str]:
    """Return what TensorBoard is to be told, to show every point."""
    return ["--logdir", str(run_dir), "--samples_per_plugin", ",".join(f"{name}={n}" for name, n in SAMPLES.items())]


def _view(options: argparse.Namespace) -> Iterator[Answer]:
    """Start the server, tell where it is, and serve until the user has had enough."""
    try:
        url = start(options.run_dir, options.port, options.host)
    except ValueError as error:
        raise CommandError(str(error)) from error
    pages = {name: url + place for name, (_, place) in PAGES.items()}
    try:
        yield Answer(lambda: {"url": url, **pages}, lambda: _say(url, arguments(options.run_dir)))
        wait_for_the_user()
    except KeyboardInterrupt:
        print(file=sys.stderr)


def wait_for_the_user() -> None:
    """Wait for Ctrl-C."""
    threading.Event().wait()


def _say(url: str, told: Sequence[str]) -> None:
    width = max(len(title) for title, _ in PAGES.values())
    for title, place in PAGES.values():
        print(f"{title:<{width}}  {url}{place}")
    print(
        f"""In a chart whose spike leaves the top, untick "Ignore outliers in chart scaling" (no link can do it for you).
The same by hand: tensorboard {" ".join(told)}
Ctrl-C ends it."""
    )
