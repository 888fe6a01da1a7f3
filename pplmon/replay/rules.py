"""Rules as they are given on the command line. Nothing is evaluated but literals, unless a file is named to be run."""

from __future__ import annotations

import ast
import copy
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pplmon.alerts import Above, Below, MetricRule, NonFinite, Rule, Spike, default_alerts
from pplmon.replay.series import ReplayError, Segment, Series

KNOWN: dict[str, type[MetricRule]] = {rule.__name__: rule for rule in (Above, Below, NonFinite, Spike)}
EXAMPLE = "Spike('cross_entropy', limit=8)"
_IN_FILE = re.compile(r"(?P<path>.+\.py):(?P<name>\w+)")
_FLOATS = {"inf": math.inf, "nan": math.nan}


class Rules:
    """What ``--rule`` asked for.

    Args:
        texts: of ``--rule``, in order; none takes "live" from a journal that tells its rules, else "default".
        series: what is replayed.

    Raises:
        ReplayError: a text is no rule, or a rule needs a number that the series lacks.
    """

    def __init__(self, texts: Sequence[str], series: Series) -> None:
        self._series = series
        self.notes: list[str] = []
        told = any(segment.rules is not None for segment in series.segments)
        texts = list(texts) or ["live" if told else "default"]
        self.has_live = "live" in texts
        if self.has_live and not told:
            source = "this journal has no row of kind 'run'" if series.kind == "journal" else "only a journal does"
            raise ReplayError(
                f"--rule live: nothing tells which rules the run had ({source}); give --rule default, say"
            )
        self._texts = [text for text in texts if text != "live"]
        self._own = {text: _from_file(text) for text in self._texts if _IN_FILE.fullmatch(text)}
        self._check_numbers()

    def live(self, segment: Segment) -> list[tuple[str, Rule]]:
        """Return the rules that one process of the run had, fresh, each with the text that it is shown under."""
        found = [self._live(live) for live in segment.rules or ()]
        return _quiet([(repr(rule), rule) for rule in found if rule is not None])

    def given(self) -> list[tuple[str, Rule]]:
        """Return the rules that the user gave, likewise."""
        rules: list[tuple[str, Rule]] = []
        for text in self._texts:
            if text in self._own:
                rules.append((text, copy.deepcopy(self._own[text])))
            else:
                rules += [(repr(rule), rule) for rule in _read(text)]
        return _quiet(rules)

    def metric_rules(self) -> dict[str, MetricRule]:
        """Return every rule that watches a number which the series has, by its text."""
        live = [rule for segment in self._series.segments for rule in self.live(segment) if self.has_live]
        have = self._series.numbers()
        rules = dict([*live, *self.given()])
        return {t: r for t, r in rules.items() if isinstance(r, MetricRule) and (r.stage, r.metric) in have}

    def _check_numbers(self) -> None:
        """Tell of rules that cannot judge: an error where the user named them, else a note."""
        have = self._series.numbers()
        asked = [(text, rule) for text in self._texts if text not in self._own for rule in _read(text)]
        if self.has_live:
            asked += [("live", rule) for segment in self._series.segments for _, rule in self.live(segment)]
        for text, rule in asked:
            if isinstance(rule, MetricRule) and (rule.stage, rule.metric) not in have:
                self._lacks(rule, named=text not in ("live", "default"))

    def _live(self, text: str) -> Rule | None:
        try:
            return parse_rule(text)
        except ReplayError:
            note = f"The run also had the rule {text}, which is not one of ours; give it by --rule FILE.py:NAME."
            self.notes += [] if note in self.notes else [note]
            return None

    def _lacks(self, rule: MetricRule, named: bool) -> None:
        text = f"{rule!r} cannot judge: {lacking(self._series, rule.stage, rule.metric)}"
        if named:
            raise ReplayError(text)
        self.notes += [] if text in self.notes else [text]


def _read(text: str) -> list[Rule]:
    return default_alerts() if text == "default" else [parse_rule(text)]


def _quiet(rules: list[tuple[str, Rule]]) -> list[tuple[str, Rule]]:
    for _, rule in rules:
        if isinstance(rule, MetricRule):
            rule.warns = False  # what is missing is told once, in words that fit a replay
    return rules


def lacking(series: Series, stage: str, name: str) -> str:
    """Say that a series lacks a number, and how it comes to have it."""
    have = sorted(n for s, n in series.numbers() if s == stage)
    text = f"the {series.kind} lacks {stage}/{name}; for {stage} it has {', '.join(have) or 'nothing'}. "
    if series.kind != "journal":
        return f"{text}Log it (numbers=[...] of the monitor), or say which column it is: --map COLUMN={stage}/{name}"
    if (stage, name) in series.reported or not have:
        return (
            f"{text}Have it judged by the next run: Journal(directory, series=[*pplmon.sinks.journal.SERIES, {name!r}])"
        )
    return f"{text}Its reports lack it, too: the run could not have it, or ended before its first report."


def parse_rule(text: str) -> MetricRule:
    """Read one of our rules, as it is written in Python. Arguments are literals, ``inf`` among them; nothing is run.

    Raises:
        ReplayError: it is not such a rule, or the rule refuses its arguments.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ReplayError(_not_a_rule(text)) from None
    if isinstance(call, (ast.Name, ast.Attribute)) and _name(call) in KNOWN:
        raise ReplayError(f"--rule {text!r} lacks its arguments: write {_name(call)}{_signature(_name(call))}")
    if not isinstance(call, ast.Call) or not _name(call.func):
        raise ReplayError(_not_a_rule(text))
    name = _name(call.func)
    if name not in KNOWN:
        raise ReplayError(_unknown(name))
    try:
        arguments = [_literal(node) for node in call.args]
        options = {keyword.arg or "**": _literal(keyword.value) for keyword in call.keywords}
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ReplayError(
            f"--rule {text!r}: an argument is no literal. Only numbers, text, True, False and None are read, nothing is "
            f"run; a rule of your own comes from a file: --rule rules.py:name"
        ) from None
    try:
        return KNOWN[name](*arguments, **options)
    except (TypeError, ValueError) as error:
        raise ReplayError(f"--rule {text!r}: {error}. Its arguments are {name}{_signature(name)}") from None


def _literal(node: ast.expr) -> Any:
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    inner = node.operand if isinstance(node, ast.UnaryOp) and negative else node
    if isinstance(inner, ast.Name) and inner.id in _FLOATS:
        return -_FLOATS[inner.id] if negative else _FLOATS[inner.id]
    return ast.literal_eval(node)


def _name(node: ast.expr) -> str:
    """Return the name of ``Spike`` and of ``pplmon.Spike``; "" for anything else."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pplmon":
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _signature(name: str) -> str:
    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(KNOWN[name]).parameters.values()]
    return str(inspect.Signature(parameters))


def _not_a_rule(text: str) -> str:
    near = get_close_matches(text, (*KNOWN, "default", "live"), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return (
        f'--rule wants a rule as it is written in Python, as in --rule "{EXAMPLE}", or default, live or FILE.py:NAME; got '
        f"{text!r}.{hint}"
    )


def _unknown(name: str) -> str:
    near = get_close_matches(name, KNOWN, n=2, cutoff=0.5) or [k for k in KNOWN if k.lower() == name.lower()]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"--rule: unknown rule {name!r}: {hint}known are {', '.join(KNOWN)}, and default, live, FILE.py:NAME"


def _from_file(text: str) -> Rule:
    """Run a file of the user's and return the rule of that name in it."""
    found = _IN_FILE.fullmatch(text)
    assert found is not None
    path, name = Path(found["path"]), found["name"]
    if not path.is_file():
        raise ReplayError(f"--rule {text}: there is no file {path}")
    module_name = f"_pplmon_rules_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ReplayError(f"--rule {text}: running {path} failed: {type(error).__name__}: {error}") from error
    rule = getattr(module, name, None)
    if not callable(rule) or isinstance(rule, type):
        names = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_")) or "none"
        raise ReplayError(
            f"--rule {text}: expected a callable Report -> Alert | None (a function, or an object of a rule's class) of "
            f"that name, got {rule!r}; callables in the file: {names}"
        )
    return rule  # type: ignore[no-any-return]
