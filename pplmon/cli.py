"""The command ``pplmon``: reads the arguments, runs a command, and gives its answers in words or as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any, NoReturn, TextIO

from pplmon import __version__
from pplmon.alerts.text import one_line
from pplmon.demo.command import add_demo
from pplmon.doctor.command import add_doctor
from pplmon.page.command import add_report
from pplmon.replay.command import add_replay
from pplmon.report.answer import Answer, CommandError, Exit
from pplmon.report.strict_json import plain
from pplmon.sinks.tensorboard_view import add_view
from pplmon.sinks.wandb_workspace import add_dashboard

JSON = "--json"
JSON_HELP = "print one line of JSON, and nothing else on standard output; docs/agents.md has its keys"


class UsageError(CommandError):
    """The arguments are wrong. ``usage`` has the flags that there are, and the error."""

    def __init__(self, parser: argparse.ArgumentParser, text: str) -> None:
        super().__init__(text)
        self.usage = f"{parser.format_usage()}{parser.prog}: error: {text}"


class Parser(argparse.ArgumentParser):
    """A parser that leaves it to ``main`` to tell an error, and takes flags by their whole names only."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise ``UsageError``."""
        raise UsageError(self, message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, give its answers, and return its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    as_json = JSON in given
    try:
        if sys.stdout is None:
            raise OSError("standard output is closed")
        with _json_alone() if as_json else nullcontext(sys.stdout) as out:
            return _run(given, out, as_json)
    except OSError as error:  # of standard output: Python's own exit code would be 1
        print(f"pplmon: {one_line(error)}", file=sys.stderr)
        return Exit.FAILED


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command's options; ``answers(options)`` runs it and yields what it has to say.

    Raises:
        UsageError: they are wrong.
    """
    parser: argparse.ArgumentParser = Parser(prog="pplmon", description="Know the token that broke your run.")
    parser.add_argument("--version", action="version", version=f"pplmon {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for add in (add_demo, add_report, add_view, add_dashboard, add_replay, add_doctor):
        add(commands)
    for command in commands.choices.values():
        command.add_argument(JSON, action="store_true", help=JSON_HELP)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # the command's own usage names the flags that there are
        commands.choices[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def _run(given: Sequence[str], out: TextIO, as_json: bool) -> Exit:
    """Give every answer. Whatever fails is told on standard error, and as JSON as well where that was asked for."""
    code, name = Exit.FINE, ""
    try:
        options = parse(given)
        name = f" {options.command}"
        answers = _answers(options)
        answer = next(answers, None)
        while answer is not None:
            code = answer.code
            try:
                _give(answer, out if as_json else None)
            except KeyboardInterrupt as interrupt:  # it is for the command to say what Ctrl-C means
                answer = _thrown(answers, interrupt)
            else:
                answer = next(answers, None)
    except BrokenPipeError:  # whoever read the answers has had enough
        _drop(out)
        return code
    except UsageError as error:
        failed, told = one_line(error), error.usage
    except CommandError as error:
        failed = one_line(error)
        told = f"pplmon{name}: {failed}"
    except Exception as error:  # a mistake of ours: an exit code of 1 would say that something was found
        failed, told = f"{type(error).__name__}: {one_line(error)}", traceback.format_exc().rstrip()
    else:
        return code
    print(told, file=sys.stderr)
    if as_json:
        _print_json({"error": failed}, out)
    return Exit.FAILED


def _thrown(answers: Generator[Answer], interrupt: KeyboardInterrupt) -> Answer | None:
    """Interrupt a command that waits for its answer to be printed; return its next answer, ``None`` where that was its end."""
    try:
        return answers.throw(interrupt)
    except StopIteration:
        return None


def _answers(options: argparse.Namespace) -> Generator[Answer]:
    """Yield the answers of a command. A user's function or file that ends the process has no say in the exit code."""
    try:
        yield from options.answers(options)
    except SystemExit as error:
        raise CommandError(f"what was to be run ended the process by sys.exit({error.code!r})") from error


def _give(answer: Answer, out: TextIO | None) -> None:
    if out is not None:
        _print_json(answer.values(), out)
        return
    try:
        answer.show()
        sys.stdout.flush()
    except SystemExit:  # of rich, where whoever read the answers has had enough
        raise BrokenPipeError from None
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop(sys.stdout)
        raise CommandError(f"the answer cannot be written: {error}") from error


def _drop(out: TextIO) -> None:
    """Send what was not written yet nowhere: Python would try it once more at the end, and set an exit code of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def _print_json(values: Mapping[str, Any], out: TextIO) -> None:
    print(json.dumps(plain(values), allow_nan=False), file=out, flush=True)


@contextmanager
def _json_alone() -> Iterator[TextIO]:
    """Leave standard output to JSON alone. What others print, child processes too, goes to standard error.

    It does so to the end of the process: a bar that was interrupted prints once more as it is collected.
    """
    ours = sys.stdout
    if ours is not sys.__stdout__:  # whoever calls ``main`` has put something in its place
        with redirect_stdout(sys.stderr):
            yield ours
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    with open(kept, "w", encoding="utf-8") as out:
        yield out


if __name__ == "__main__":
    raise SystemExit(main())
