"""Run a user's file, and find the rules, extras and readers that it defines."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from pplmon.alerts import MetricRule, Rule
from pplmon.replay.read.series import ReplayError

NAMED = re.compile(r"(?P<path>.+\.py):(?P<name>\w+)")


def run_file(path: Path, option: str) -> ModuleType:
    """Run a file and return it as a module. Its classes are then known by their names, as the built-in ones are.

    ``option`` is the command-line option that named it, for messages.

    Raises:
        ReplayError: there is no such file, or it fails.
    """
    if not path.is_file():
        raise ReplayError(f"{option}: there is no file {path}")
    whole = path.resolve()
    name = f"_pplmon_{whole.stem}_{hashlib.sha256(str(whole).encode()).hexdigest()[:8]}"  # two files may share a stem
    spec = importlib.util.spec_from_file_location(name, whole)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ReplayError(f"{option}: running {path} failed: {type(error).__name__}: {error}") from error
    return module


def rule_from_file(text: str) -> Rule:
    """Run the file of ``FILE.py:NAME`` and return the rule of that name in it."""
    found = NAMED.fullmatch(text)
    assert found is not None
    name, option = found["name"], f"--rule {text}"
    module = run_file(Path(found["path"]), option)
    rule = getattr(module, name, None)
    if isinstance(rule, type) and issubclass(rule, MetricRule):
        raise ReplayError(
            f'{option}: {name} is a class; say what it is made with: --rules {found["path"]} --rule "{name}(…)"'
        )
    if not callable(rule) or isinstance(rule, type):
        names = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_")) or "none"
        raise ReplayError(
            f"{option}: expected a callable Report -> Alert | None (a function, or an object of a rule's class) of "
            f"that name, got {rule!r}; callables in the file: {names}"
        )
    return rule  # type: ignore[no-any-return]
