"""``pplmon report``: its options, and the page that is written again while a run goes on."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pplmon.page.build import Page

NAME = "report.html"
NAMED = 8  # runs that were left out
RELOAD = 10  # seconds after which a page that follows a run loads itself again
LOOK = 5.0  # seconds between two looks at a journal, ...
SHARE = 10  # ... and at least so many times what a page takes to be made: the run needs the cores more


def add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    text = (
        "write one HTML page of a run, or of several to compare them: charts, alerts, and the text that they are about"
    )
    report = commands.add_parser("report", help=text, description=f"{text[0].upper()}{text[1:]}.")
    report.add_argument("runs", nargs="+", metavar="RUN_DIR", help="a journal, or a directory that holds some")
    report.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help=f"the page to write (default: {NAME} beside the journal; of several runs in the working directory)",
    )
    report.add_argument(
        "--follow",
        action="store_true",
        help="write it again while the run goes on; an open page loads itself again, and keeps its zoom",
    )
    report.add_argument(
        "--run", metavar="NAME", dest="named", help="one of several runs in a journal, by its name (default: the last)"
    )
    report.add_argument(
        "--json", action="store_true", help="print one JSON object: verdicts, alerts, and the page's path"
    )
    report.set_defaults(run=_report)


def opening(path: Path) -> str:
    """Return the line that opens a file in a browser, on this system."""
    opener = {"darwin": "open", "win32": "start"}.get(sys.platform, "xdg-open")
    return f"{opener} {path}"


def as_json(page: Page, path: Path) -> str:
    """Return what a page says as one strict JSON object."""
    from pplmon.page.summary import summary
    from pplmon.report.strict_json import plain

    return json.dumps(plain({"page": str(path), "bytes": path.stat().st_size, **summary(page.runs)}), indent=1)


def _report(options: argparse.Namespace) -> int:
    """Write the page, and return the exit code: 2 where what was given cannot be shown."""
    from pplmon.alerts.text import one_line
    from pplmon.page.build import page
    from pplmon.page.runs import left_out

    try:
        others = left_out(options.runs)
        if others:
            some = "".join(f"\n  {path.parent}" for path in others[:NAMED]) + ("\n  …" if len(others) > NAMED else "")
            print(
                f"pplmon report: a journal's own directory is one run; name these to see them, too:{some}",
                file=sys.stderr,
            )
        made = page(*options.runs, follow=RELOAD if options.follow else 0, run=options.named)
        path = made.save(options.out or _place(made))
        if options.follow:
            _say(made, path, options.json)
            made = _follow(options.runs, made, path, options.named)
    except (ValueError, OSError) as error:
        print(f"pplmon report: {one_line(error)}", file=sys.stderr)
        return 2
    if options.json:
        print(as_json(made, path))
    else:
        _say(made, path)
    return 0


def _place(made: Page) -> Path:
    return made.runs[0].path.parent / NAME if len({run.path for run in made.runs}) == 1 else Path(NAME)


def _say(made: Page, path: Path, quiet: bool = False) -> None:
    if quiet:
        return
    from pplmon.alerts.words import shown
    from pplmon.page.verdict import verdict

    for run in made.runs:
        print(f"{shown(run.name)}: {verdict(run).text}")
    print(f"{path} ({path.stat().st_size / 1024:,.0f} KiB); it opens with: {opening(path)}", flush=True)


def _follow(places: Sequence[str], made: Page, path: Path, run: str | None) -> Page:
    """Write the page again whenever a journal has grown, until its runs are over or the user has had enough."""
    from pplmon.page.build import page

    try:
        while any(run.worst is None for run in made.runs):
            before = _sizes(made)
            time.sleep(LOOK)
            if _sizes(made) != before:
                begun = time.monotonic()
                made = page(*places, follow=RELOAD, run=run)
                made.save(path)
                time.sleep(min(60.0, SHARE * (time.monotonic() - begun)))
    except KeyboardInterrupt:
        print(file=sys.stderr)
    made = page(*places, run=run)  # which no longer loads itself again
    made.save(path)
    return made


def _sizes(made: Page) -> list[int]:
    return [run.path.stat().st_size for run in made.runs]
