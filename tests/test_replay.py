"""A replay of a journal is what happened: the live alerts, every one, over interruptions and odd rows."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import pplmon
from pplmon import Monitor, TokenStats, replay
from pplmon.alerts import options
from pplmon.replay.rules import parse_rule
from pplmon.sinks import Journal, read_journal
from pplmon.sinks.journal import SERIES

FIELDS = ("rule", "metric", "stage", "step", "value", "threshold", "severity")

# One micro-batch: its losses, and how many targets are outside the vocabulary.
BATCH = st.tuples(
    st.lists(st.sampled_from([0.5, 1.0, 1.01, 2.0, 30.0, math.nan, math.inf]), min_size=1, max_size=3),
    st.sampled_from([0, 0, 0, 0, 1]),
)
STEP = st.sampled_from(["step", "step", "step", "step", "step", "empty", "val", "save", "crash", "begin again"])


def stats(losses: Sequence[float], invalid: int = 0) -> TokenStats:
    """A row of tokens with these losses, and impossible targets before them."""
    nll = torch.tensor([[1.0] * invalid + list(losses)])
    targets = torch.tensor([[-7] * invalid + [1] * len(losses)])
    return TokenStats.from_losses(nll, targets, vocab_size=50)


def rules() -> list[Any]:
    """Rules that fire, wait, re-arm and remember, on train and on val."""
    return [
        pplmon.NonFinite(),
        pplmon.NonFinite(stage="val"),
        pplmon.Spike("cross_entropy", window=4, gap=1, limit=2.5, quiet_steps=3, recovery_steps=4),
        pplmon.Spike("perplexity", window=2, gap=0, limit=1 / 3, quiet_steps=0, recovery_steps=None, stage="val"),
        pplmon.Above("max_token_loss", 1.0000001, for_steps=2),
        pplmon.Above("token_loss_p999", 1.5, hysteresis=0.75, stage="val"),
        pplmon.Below("cross_entropy", 0.9, after_step=3),
        pplmon.Above("perplexity", math.pi),
        pplmon.Above("max_token_excess", -math.inf, for_steps=5),
    ]


def told(alert: Any) -> str:
    """An alert as it is compared: NaN is NaN."""
    get = alert.get if isinstance(alert, dict) else lambda name: getattr(alert, name)
    return repr([get(name) for name in FIELDS])


def live_alerts(path: Path) -> list[str]:
    """Every alert line of the last run of a journal, repeated or not."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    names = [(i, r["run"]) for i, r in enumerate(lines) if r["kind"] == "run"]
    lines = lines[min(i for i, name in names if name == names[-1][1]) :]
    back = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    return [
        told({k: back.get(v, v) if isinstance(v, str) else v for k, v in r.items()})
        for r in lines
        if r["kind"] == "alert"
    ]


def replayed(path: Path, *texts: str) -> replay.Result:
    """Replay a journal."""
    series = replay.read(path)
    return replay.run(series, replay.Rules(texts, series))


class Life:
    """A run with crashes, as a script would be restarted: in one journal."""

    def __init__(self, directory: Path, most: float | None = None, **cadence: int) -> None:
        self.directory, self.most, self.cadence = directory, most, cadence
        self.saved: dict[str, Any] | None = None
        self.monitor = self.begin()

    def begin(self, state: dict[str, Any] | None = None) -> Monitor:
        monitor = Monitor(
            sinks=[Journal(self.directory, max_megabytes=self.most)],
            alerts=rules(),
            **self.cadence,  # type: ignore[arg-type]
        )
        if state is not None:
            monitor.load_state_dict(state)
        return monitor

    def live(self, what: str, losses: Sequence[float], invalid: int) -> None:
        try:
            if what == "val":
                with self.monitor.stage("val"):
                    self.monitor.observe(stats(losses))
            elif what == "save":
                self.monitor.observe(stats(losses))  # in the middle of a step
                self.saved = json.loads(json.dumps(self.monitor.state_dict()))
            elif what == "end":
                self.monitor.close()
            elif what in ("crash", "begin again"):
                self.monitor.abandon() if len(losses) > 1 else self.monitor.close()
                self.monitor = self.begin(self.saved if what == "crash" else None)
                self.saved = self.saved if what == "crash" else None
            else:
                if what == "step":
                    self.monitor.observe(stats(losses, invalid))
                self.monitor.step()
        except ValueError:  # impossible targets at the very first read-out
            return


@settings(max_examples=25, phases=[Phase.explicit, Phase.generate])
@given(
    script=st.lists(st.tuples(STEP, BATCH), min_size=25, max_size=60),
    every=st.integers(1, 7),
    judge=st.integers(1, 3),
)
def test_a_replay_gives_the_live_alerts(
    tmp_path_factory: pytest.TempPathFactory, script: list[Any], every: int, judge: int
) -> None:
    """For non-finite tokens, empty steps, validation, checkpoints in a step, crashes, resumed and fresh starts."""
    directory = tmp_path_factory.mktemp("run")
    life = Life(directory, every_n_steps=every, judge_every_n_steps=judge)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rules that lack a number, targets
        life.live("step", [1.0], 0)
        for what, (losses, invalid) in script:
            life.live(what, losses, invalid)
        life.live("end", [], 0)
    if any(row["kind"] in ("judged", "alert") for row in read_journal(directory)):
        result = replayed(directory / "pplmon.jsonl")
        assert [told(f.alert) for f in result.fired] == live_alerts(directory / "pplmon.jsonl")
        assert result.differs == (0, 0)
    else:  # it began again last, and then there was nothing to judge
        with pytest.raises(replay.ReplayError, match="no row of kind 'judged'"):
            replayed(directory / "pplmon.jsonl")
    shutil.rmtree(directory)


def test_the_scripts_above_do_alert(tmp_path: Path) -> None:
    """The property is not empty: a script with every kind of event raises every kind of alert, more than once."""
    life = Life(tmp_path, every_n_steps=3, judge_every_n_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(60):
            life.live(
                "save" if step == 30 else "step", [30.0 if step % 10 == 9 else 1.0 + step % 3 / 50], step % 12 == 8
            )
            life.live("val", [math.nan, 2.0] if step % 7 == 0 else [1.0 + step / 10], 0)
            if step == 40:
                life.live("crash", [1.0, 1.0], 0)
        life.monitor.close()
    result = replayed(tmp_path)
    assert [told(f.alert) for f in result.fired] == live_alerts(tmp_path / "pplmon.jsonl")
    assert {f.alert.rule for f in result.fired} == {"NonFinite", "Spike", "Above", "Below", "InvalidTargets"} - {
        "Below"
    }
    assert {f.alert.stage for f in result.fired} == {"train", "val"}
    assert any(f.repeated for f in result.fired) and len(result.fired) > 20


@pytest.mark.parametrize("rule", [*rules(), *pplmon.default_alerts()], ids=repr)
def test_a_rule_reads_back_from_its_text(rule: Any) -> None:
    """The text of a rule in the journal makes exactly the same rule."""
    again = parse_rule(repr(rule))
    assert type(again) is type(rule) and options(again) == options(rule) and repr(again) == repr(rule)


def test_a_resumed_trainer(tmp_path: Path) -> None:
    """Lightning: stopped, resumed from its checkpoint by a fresh trainer; the journal goes on, and repeats steps."""
    pytest.importorskip("pytorch_lightning")
    from tests import resume_script as script

    script.fit(tmp_path, stop=True, lr=0.5)
    script.fit(tmp_path, resume=True, lr=0.5)
    (path,) = tmp_path.rglob("pplmon.jsonl")
    runs = [row for row in read_journal(path) if row["kind"] == "run"]
    assert [row["resumed_at"] for row in runs] == [None, script.SAVE_AT]
    result = replayed(path)
    assert result.differs == (0, 0) and result.fired
    assert [told(f.alert) for f in result.fired] == live_alerts(path)


def quiet_run(directory: Path, alerts: Any, **how: Any) -> Path:
    """A run of 40 steps with a spike at step 30; return its journal."""
    monitor = Monitor(every_n_steps=10, sinks=[Journal(directory, **how)], alerts=alerts)
    for step in range(40):
        monitor.observe(stats([1.0, 9.0 if step == 30 else 1.0 + step % 5 / 100]))
        monitor.step()
    monitor.close()
    return directory / "pplmon.jsonl"


def test_what_a_rule_watches_is_judged_into_the_journal(tmp_path: Path) -> None:
    """A journal without ``series`` takes the numbers of the monitor's rules into its judged rows; with it, as it says."""
    path = quiet_run(tmp_path / "a", [pplmon.Above("token_loss_p999", 5.0)])
    (fired,) = replayed(path).fired
    assert (fired.alert.step, fired.alert.metric) == (30, "token_loss_p999")
    path = quiet_run(tmp_path / "b", [pplmon.Above("token_loss_p999", 5.0)], series=SERIES)
    result = replayed(path)
    assert result.fired == [] and result.differs == (1, 0)
    (note,) = result.notes
    assert "Above('token_loss_p999', 5) cannot judge: the journal lacks train/token_loss_p999" in note
    assert "Journal(directory, series=[*pplmon.sinks.journal.SERIES, 'token_loss_p999'])" in note
    with pytest.raises(replay.ReplayError, match="cannot judge: the journal lacks train/token_loss_p90"):
        replayed(path, "Above('token_loss_p90', 5)")
    with pytest.raises(replay.ReplayError, match="Its reports lack it, too"):
        replayed(path, "Above('bits_per_byte', 5)")


def test_a_rule_of_ones_own(tmp_path: Path) -> None:
    """It is run from its file; a number that it asks for in vain is told; one that fails is left out, as in a live run."""
    path = quiet_run(tmp_path, [pplmon.NonFinite()])
    own = tmp_path / "own.py"
    own.write_text(
        "import pplmon\n"
        "def high(report):\n"
        "    assert isinstance(report, pplmon.Report)\n"
        "    if report.max_token_loss > 5 and report.bits_per_byte is None:\n"
        "        return pplmon.Alert('high', f'step {report.step} is high')\n"
        "def broken(report):\n"
        "    return report.worst[0]\n"
        "def chatty(report):\n"
        "    return 'hello' if report.step == 7 else None\n"
        "class Rule: pass\n"
    )
    result = replayed(path, f"{own}:high", f"{own}:broken", f"{own}:chatty", "NonFinite()")
    assert [(f.alert.rule, f.alert.step) for f in result.fired] == [("chatty", 7), ("high", 30)]
    assert "answered 'hello'; a rule returns a pplmon.Alert" in result.fired[0].alert.text
    told_of = "\n".join(result.notes)
    assert "high asked for a number that is not there: the journal lacks train/bits_per_byte" in told_of
    assert "broken failed at step 0: IndexError" in told_of and "left out, and tried again now and then" in told_of
    for text, error in (
        (f"{own}:nothing", "callables in the file: Rule, broken, chatty, high"),
        (f"{own}:Rule", "expected a callable"),
        (f"{tmp_path}/none.py:high", "there is no file"),
    ):
        with pytest.raises(replay.ReplayError, match="--rule .*") as raised:
            replayed(path, text)
        assert error in str(raised.value).replace("high, broken, chatty, Rule", "Rule, broken, chatty, high")
    (tmp_path / "bad.py").write_text("1/0")
    with pytest.raises(replay.ReplayError, match=r"running .*bad.py failed: ZeroDivisionError"):
        replayed(path, f"{tmp_path}/bad.py:rule")


def test_a_live_rule_of_the_users_is_named(tmp_path: Path) -> None:
    """The journal knows only its text: the note says how to give it."""

    def mine(report: pplmon.Report) -> None:
        return None

    result = replayed(quiet_run(tmp_path, [mine, pplmon.Above("max_token_loss", 5.0)]))
    assert [f.alert.step for f in result.fired] == [30]
    (note,) = result.notes
    assert "mine" in note and "give it by --rule FILE.py:NAME" in note


def test_the_default_rules_need_no_number_that_the_run_could_not_have(tmp_path: Path) -> None:
    """Without sequences of 16 tokens there is no max_sequence_loss: a note, and the others judge."""
    result = replayed(quiet_run(tmp_path, None))
    assert result.differs == (0, 0)
    assert [note.split(" cannot")[0] for note in result.notes] == ["Spike('max_sequence_loss', hard=9, repeats=2)"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Spke('cross_entropy')", "unknown rule 'Spke': did you mean Spike"),
        ("spike('cross_entropy')", "did you mean Spike"),
        ("os.system('true')", "wants a rule as it is written in Python"),
        ("__import__('os')", "unknown rule '__import__'"),
        ("Spike", r"lacks its arguments: write Spike\(metric, window=128"),
        ("Spike(", "wants a rule as it is written in Python"),
        ("defualt", "Did you mean default"),
        ("Spike('cross_entropy', limit=open('x'))", "an argument is no literal"),
        ("Spike('cross_entropy', limits=8)", r"unexpected keyword.*Its arguments are Spike\(metric, window=128"),
        ("Spike('cros_entropy')", "unknown number 'cros_entropy': did you mean cross_entropy"),
        ("Above('token_accuracy', 2)", "can never fire"),
        ("Spike('cross_entropy', **{'limit': 8})", "unexpected keyword"),
        ("((" * 500, "wants a rule"),
        ("Above('max_token_loss', " + "-" * 5000 + "1)", "--rule"),
        ("\0", "wants a rule"),
    ],
)
def test_what_is_no_rule_is_told(text: str, error: str) -> None:
    """Nothing is run, and the text says what to write."""
    with pytest.raises(replay.ReplayError, match=error):
        parse_rule(text)


def test_rules_as_they_are_written() -> None:
    """With the package's name before them, with spaces, with signs and inf."""
    assert options(parse_rule(" pplmon.Spike('cross_entropy', limit = 8) "))["limit"] == 8
    assert options(parse_rule("Above('group/a', -1.5, for_steps=2)"))["threshold"] == -1.5
    assert options(parse_rule("Above('max_token_excess', -inf)"))["threshold"] == -math.inf


def test_a_journal_that_cannot_be_replayed(tmp_path: Path) -> None:
    """Empty, without judged rows, or without its run row."""
    path = tmp_path / "pplmon.jsonl"
    path.write_text('{"kind": "run"}\n{"kind": "judged", "st')
    with pytest.raises(replay.ReplayError, match="no row of kind 'judged'"):
        replay.read(path)
    path.write_text(
        '{"kind": "judged", "step": 3, "stage": "train", "numbers": {"max_token_loss": "Infinity"}}\n\n[]\n'
    )
    with pytest.raises(replay.ReplayError, match="no row of kind 'run'"):
        replayed(path, "live")
    (fired,) = replayed(path, "Above('max_token_loss', 40)").fired
    assert (fired.alert.step, fired.alert.value) == (3, math.inf)
    path.write_text(
        '{"kind": "run", "alerts": ["NonFinite()"], "resumed_at": 3}\n'
        '{"kind": "judged", "step": 3, "stage": "train", "numbers": {"nonfinite_tokens": 1}}\n'
    )
    result = replayed(path)
    assert len(result.fired) == 1 and "goes on at step 3; what its rules remembered is not known" in result.notes[0]
