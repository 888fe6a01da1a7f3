"""The command ``pplmon``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pplmon import __version__
from pplmon.demo.plan import LOGGERS, Plan
from pplmon.doctor.command import add_doctor
from pplmon.page.command import add_report
from pplmon.replay.command import add_replay
from pplmon.sinks.tensorboard_view import add_view
from pplmon.sinks.wandb_workspace import add_dashboard


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments)
    return int(options.run(options))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command's options; ``run`` is what runs it. Ends the process with status 2 where they are wrong."""
    parser = argparse.ArgumentParser(prog="pplmon", description="Know the token that broke your run.")
    parser.add_argument("--version", action="version", version=f"pplmon {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    _add_demo(commands)
    add_report(commands)
    add_view(commands)
    add_dashboard(commands)
    add_replay(commands)
    add_doctor(commands)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # the command's own usage names the flags that there are
        commands.choices[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
    demo.set_defaults(run=lambda options: _demo(demo, options))


def _demo(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    try:
        plan = Plan(options.steps, options.logger, options.devices, options.corrupt_step, options.out, options.seed)
    except ValueError as error:
        parser.error(str(error))
    from pplmon.demo.run import run  # Lightning takes seconds to load: --help and a wrong flag need none of it

    return run(plan)


if __name__ == "__main__":
    raise SystemExit(main())
