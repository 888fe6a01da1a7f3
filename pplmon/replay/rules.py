"""Read rules from text as on the command line. Only literals are evaluated; a file is run only if the user names it."""

from __future__ import annotations

import ast
import copy
import inspect
import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from pplmon.alerts import MetricRule, Rule, default_alerts, rule_classes
from pplmon.replay.own_file import NAMED, rule_from_file
from pplmon.replay.read.series import ReplayError, Segment, Series
from pplmon.report.calls import parameters_of

EXAMPLE = "Spike('cross_entropy', limit=8)"
_FLOATS = {"inf": math.inf, "nan": math.nan}


class Rules:
    """The rules that the user asked for by ``--rule``.

    Args:
        texts: of ``--rule``, in order; without any: "live" for a journal that names its rules, else "default".
        series: the series to replay.

    Raises:
        ReplayError: a text is not a rule, or a rule needs a number that the series lacks.
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
        self._own = {text: rule_from_file(text) for text in self._texts if NAMED.fullmatch(text)}
        self._check_numbers()

    def live(self, segment: Segment) -> list[tuple[str, Rule]]:
        """Return fresh copies of the rules that one process of the run had, each with the text to show for it."""
        found = [self._live(live) for live in segment.rules or ()]
        return _quiet([(repr(rule), rule) for rule in found if rule is not None])

    def given(self) -> list[tuple[str, Rule]]:
        """Return fresh copies of the rules that the user gave, each with its text."""
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
        return {t: r for t, r in rules.items() if isinstance(r, MetricRule) and _can_judge(r, have)}

    def _check_numbers(self) -> None:
        """Report rules that cannot judge: as an error if the user named them, else as a note."""
        have = self._series.numbers()
        asked = [(text, rule) for text in self._texts if text not in self._own for rule in _read(text)]
        if self.has_live:
            asked += [("live", rule) for segment in self._series.segments for _, rule in self.live(segment)]
        for text, rule in asked:
            if isinstance(rule, MetricRule) and not _can_judge(rule, have):
                self._lacks(rule, named=text not in ("live", "default"))

    def _live(self, text: str) -> Rule | None:
        try:
            return parse_rule(text)
        except ReplayError:
            note = (
                f"The run also had the rule {text}, which is not known here: name the file of its class by --rules FILE.py, "
                "or give it by --rule FILE.py:NAME."
            )
            self.notes += [] if note in self.notes else [note]
            return None

    def _lacks(self, rule: MetricRule, named: bool) -> None:
        text = f"{rule!r} cannot judge: {lacking(self._series, rule.stage, rule.metric)}"
        if named:
            raise ReplayError(text)
        self.notes += [] if text in self.notes else [text]


def _can_judge(rule: MetricRule, have: set[tuple[str, str]]) -> bool:
    return any(name == rule.metric and rule.judges(stage) for stage, name in have)


def _read(text: str) -> list[Rule]:
    return default_alerts() if text == "default" else [parse_rule(text)]


def _quiet(rules: list[tuple[str, Rule]]) -> list[tuple[str, Rule]]:
    for _, rule in rules:
        if isinstance(rule, MetricRule):
            rule.warns = False  # a missing number is reported once, in words that fit a replay
    return rules


def lacking(series: Series, stage: str, name: str) -> str:
    """Return a message that a series lacks a number, and of how to have it recorded."""
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
    """Read a rule written in Python: a built-in one, or one of a class that is defined in this process.

    Arguments are literals, ``inf`` among them; nothing is run.

    Raises:
        ReplayError: the text is not such a rule, or the class refuses the arguments.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ReplayError(_not_a_rule(text)) from None
    known = rule_classes()
    if isinstance(call, (ast.Name, ast.Attribute)) and _name(call) in known:
        kind = known[_name(call)]
        raise ReplayError(f"--rule {text!r} lacks its arguments: write {kind.__name__}{_signature(kind)}")
    if not isinstance(call, ast.Call) or not _name(call.func):
        raise ReplayError(_not_a_rule(text))
    name = _name(call.func)
    if name not in known:
        raise ReplayError(_unknown(name, known))
    try:
        arguments = [_literal(node) for node in call.args]
        options = {keyword.arg or "**": _literal(keyword.value) for keyword in call.keywords}
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ReplayError(
            f"--rule {text!r}: an argument is no literal. Only numbers, text, True, False and None are read, nothing is "
            f"run; a rule of your own comes from a file: --rule rules.py:name"
        ) from None
    try:
        return known[name](*arguments, **options)
    except Exception as error:  # a user's class may raise anything
        raise ReplayError(f"--rule {text!r}: {error}. Its arguments are {name}{_signature(known[name])}") from None


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


def _signature(kind: type[MetricRule]) -> str:
    parameters = [p.replace(annotation=p.empty) for p in parameters_of(kind).values()]
    return str(inspect.Signature(parameters))


def _not_a_rule(text: str) -> str:
    near = get_close_matches(text, (*rule_classes(), "default", "live"), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return (
        f'--rule wants a rule as it is written in Python, as in --rule "{EXAMPLE}", or default, live or FILE.py:NAME; got '
        f"{text!r}.{hint}"
    )


def _unknown(name: str, known: dict[str, type[MetricRule]]) -> str:
    near = get_close_matches(name, known, n=2, cutoff=0.5) or [k for k in known if k.lower() == name.lower()]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"--rule: unknown rule {name!r}: {hint}known are {', '.join(known)}, and default, live, FILE.py:NAME"
