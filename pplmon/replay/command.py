"""The command ``pplmon replay``: its options, and its run from reading to printing."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from pplmon.replay.against import read_earlier
from pplmon.replay.judge import run
from pplmon.replay.own_file import run_file
from pplmon.replay.print import show, values
from pplmon.replay.read.columns import parse_map
from pplmon.replay.read.reader import readers
from pplmon.replay.read.series import ReplayError
from pplmon.replay.read.sources import given, read
from pplmon.replay.rules import EXAMPLE, Rules
from pplmon.replay.score import Incident, Watch, scores
from pplmon.replay.suggest import check_rate, suggest
from pplmon.report.answer import Answer, CommandError

RULE_HELP = (
    f'a rule as in Python, "{EXAMPLE}" (literals only: nothing is run), or "default", or "live" (a journal\'s own rules), '
    "or FILE.py:NAME for one of your own (that file is run); may be repeated. Without it: live from a journal, else default"
)
RULES_HELP = (
    "a file of your own to run first: its classes of rules are then known by their names, to --rule and among a journal's "
    "own rules; may be repeated"
)


def add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    text = "run alert rules over a run that is over: when each would have fired, how good it is, how to tune it"
    replay = commands.add_parser("replay", help=text, description=f"{text[0].upper()}{text[1:]}.")
    replay.add_argument(
        "path",
        help=f"the run, its file or its directory; kinds: {', '.join(reader.kind for reader in readers())}",
    )
    replay.add_argument("--rule", action="append", default=[], metavar="RULE", help=RULE_HELP)
    replay.add_argument(
        "--rules", action="append", default=[], type=Path, metavar="FILE.py", dest="files", help=RULES_HELP
    )
    replay.add_argument(
        "--incident",
        action="append",
        default=[],
        metavar="STEP[-STEP]",
        help="where something was wrong indeed: gives recall, delay and false alarms; may be repeated",
    )
    replay.add_argument(
        "--wanted-rate", type=float, metavar="N", help="suggest thresholds for N false alarms per 100,000 judged values"
    )
    replay.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="COLUMN=NUMBER",
        help="what a column of a log is, as in loss=cross_entropy or loss=val/cross_entropy; may be repeated",
    )
    replay.add_argument(
        "--step", metavar="COLUMN", help="the column that counts optimizer steps, where it is not found"
    )
    replay.add_argument(
        "--pattern",
        metavar="REGEX",
        help=r"how a line of a text log looks, with a group for the step and one for each number: "
        r"'it (?P<step>\d+) ce (?P<loss>\S+)'",
    )
    replay.add_argument(
        "--against",
        metavar="RUN",
        help="an earlier run on the same data: rules see the difference, and each alert says if both runs show it (data) or only "
        "this one (model)",
    )
    replay.add_argument(
        "--run", metavar="NAME", dest="named", help="one of several runs in a journal, by its name (default: the last)"
    )
    replay.set_defaults(answers=_replay)


def _replay(options: argparse.Namespace) -> Iterator[Answer]:
    try:
        if options.wanted_rate is not None:
            check_rate(options.wanted_rate)
        for file in options.files:
            run_file(file, f"--rules {file}")
        incidents = [Incident.parse(text) for text in options.incident]
        mapped = dict(map(parse_map, options.map))
        series = read(options.path, mapped, options.step, options.pattern, options.named)
        rules = Rules(options.rule, series)
        earlier = (
            None
            if options.against is None
            else read_earlier(given(options.against), mapped, options.step, options.pattern)
        )
        result = run(series, rules, earlier)
        watch = Watch(series, incidents)
        tuned = [] if options.wanted_rate is None else rules.metric_rules().values()
        tunable = [rule for rule in tuned if rule.tuned_by is not None]
        suggestions = [suggest(rule, options.wanted_rate, series, watch) for rule in tunable]
    except (ReplayError, OSError) as error:
        raise CommandError(str(error)) from error
    scored = scores(watch, result)
    yield Answer(lambda: values(series, result, scored, suggestions), lambda: show(series, result, scored, suggestions))
