"""``pplmon demo``: its options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from pplmon.demo.plan import LOGGERS, Plan
from pplmon.report.answer import Answer


def add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    text = "train a small model for about two minutes, corrupt one sequence on purpose, and see it found"
    demo = commands.add_parser("demo", help=text, description=f"{text[0].upper()}{text[1:]}.")
    usual = Plan()
    demo.add_argument("--steps", type=int, default=usual.steps, help="optimizer steps (default: %(default)s)")
    demo.add_argument("--logger", choices=LOGGERS, default=usual.logger, help="(default: %(default)s; wandb: offline)")
    demo.add_argument("--devices", type=int, default=usual.devices, help="ranks, on the CPU (default: %(default)s)")
    demo.add_argument(
        "--corrupt-step",
        type=int,
        metavar="STEP",
        help="the 0-based step to corrupt (default: at two thirds of the run)",
    )
    demo.add_argument("--out", type=Path, default=usual.out, help="where the run is written (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=usual.seed, help="(default: %(default)s)")
    demo.set_defaults(answers=lambda options: _demo(demo, options))


def _demo(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Iterator[Answer]:
    try:
        plan = Plan(options.steps, options.logger, options.devices, options.corrupt_step, options.out, options.seed)
    except ValueError as error:
        parser.error(str(error))
    from pplmon.demo.run import run  # Lightning takes seconds to load: --help and a wrong flag need none of it

    return run(plan)
