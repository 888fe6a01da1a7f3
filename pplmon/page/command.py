"""``pplmon report``: its options, and the page that is written again while a run goes on."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pplmon.report.answer import Answer, CommandError

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
    report.set_defaults(answers=_report)


def opening(path: Path) -> str:
    """Return the line that opens a file in a browser, on this system."""
    opener = {"darwin": "open", "win32": "start"}.get(sys.platform, "xdg-open")
    return f"{opener} {path}"


def _report(options: argparse.Namespace) -> Iterator[Answer]:
    """Write the page; with ``--follow`` again whenever the run has gone on."""
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
            yield from _follow(options, made, path)
        else:
            yield _answer(made, path)
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from error


def _answer(made: Page, path: Path) -> Answer:
    from pplmon.page.summary import summary

    size = path.stat().st_size  # now: the file may be written again before the answer is read
    return Answer(lambda: {"page": str(path), "bytes": size, **summary(made.runs)}, lambda: _say(made, path))


def _place(made: Page) -> Path:
    return made.runs[0].path.parent / NAME if len({run.path for run in made.runs}) == 1 else Path(NAME)


def _say(made: Page, path: Path) -> None:
    from pplmon.alerts.words import shown
    from pplmon.page.verdict import verdict

    for run in made.runs:
        print(f"{shown(run.name)}: {verdict(run).text}")
    print(f"{path} ({path.stat().st_size / 1024:,.0f} KiB); it opens with: {opening(path)}")


def _follow(options: argparse.Namespace, made: Page, path: Path) -> Iterator[Answer]:
    """Write the page again whenever a journal has grown, until its runs are over or the user has had enough.

    What is yielded in between is for programs. A person has been told where the page is, and is told the end.
    """
    from pplmon.page.build import page

    read: list[int] = []  # the sizes before the journals were read: what grows meanwhile is seen at the next look
    try:
        yield _answer(made, path)
        while any(run.worst is None for run in made.runs):
            time.sleep(LOOK)
            if (sizes := _sizes(made)) != read:
                read = sizes
                begun = time.monotonic()
                made = page(*options.runs, follow=RELOAD, run=options.named)
                made.save(path)
                if options.json:
                    yield _answer(made, path)
                time.sleep(min(60.0, SHARE * (time.monotonic() - begun)))
    except KeyboardInterrupt:
        print(file=sys.stderr)
    made = page(*options.runs, run=options.named)  # which no longer loads itself again
    made.save(path)
    yield _answer(made, path)


def _sizes(made: Page) -> list[int]:
    return [run.path.stat().st_size for run in made.runs]
