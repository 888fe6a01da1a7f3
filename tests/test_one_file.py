"""A new number, extra, rule, sink or reader of pplmon's own is one file: tried in a copy of the package, all at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "pplmon"

NUMBER = """
    decibans_per_token = BuiltIn(
        "decibans", "10 · cross_entropy / ln 10", lambda w: 10 * w.cross_entropy / math.log(10), best="min"
    )
"""

FILES = {
    "extras/even.py": """
from pplmon.extras.base import Extra
from pplmon.report.numbers import Number


class Even(Extra):
    size = 1
    declares = (Number("even_tokens", "count", "valid tokens with an even id"),)

    def update(self, stats, valid, logits, **batch_data):
        return (valid & (stats.targets % 2 == 0)).sum().reshape(1)

    def numbers(self, integers):
        return {"even_tokens": integers[0]}
""",
    "alerts/rules/odd_steps.py": """
from pplmon.alerts.alert import MetricRule


class OddSteps(MetricRule):
    def judge(self, value, report):
        return self.alert(report, value, 0.0, "is odd") if report.step % 2 else None
""",
    "sinks/list_of_keys.py": """
from pplmon.sinks.base import Sink


class ListOfKeys(Sink):
    def __init__(self):
        self.keys = set()

    def report(self, report, scalars):
        self.keys |= set(scalars)
""",
    "replay/read/lines.py": """
from pplmon.replay.read.reader import LogReader


class LinesReader(LogReader):
    kind, pattern, expects = "lines", "losses.lines", ".lines"

    def table(self, path, step):
        return ["train/decibans_per_token"], (
            (at, {"train/decibans_per_token": loss}) for at, loss in enumerate(path.read_text().split())
        )
""",
}

USE = """
import math, pathlib, torch, pplmon
from pplmon import replay

assert pathlib.Path(pplmon.__file__).is_relative_to(pathlib.Path.cwd())
assert {"Even", "OddSteps"} <= set(pplmon.__all__) and "ListOfKeys" in pplmon.sinks.__all__

sink, alerts = pplmon.sinks.ListOfKeys(), []
rules = [pplmon.OddSteps("even_tokens"), pplmon.Above("decibans_per_token", 1.0)]
monitor = pplmon.Monitor(
    every_n_steps=1,
    numbers=["even_tokens", "decibans_per_token"],
    sinks=[sink, pplmon.sinks.Journal("runs")],
    alerts=rules,
    on_alert=alerts.append,
    tally=pplmon.TokenTally(extras=[pplmon.Even()]),
)
for step in range(4):
    monitor.observe(torch.zeros(1, 3, 10), torch.tensor([[1, 2, 4]]))
    monitor.step()
report = monitor.close()
assert math.isclose(report.decibans_per_token, 10.0, rel_tol=1e-6) and report.even_tokens == 2
assert sink.keys == {"train/even_tokens", "train/decibans_per_token"}
live = [(alert.rule, alert.metric, alert.step) for alert in alerts]
assert live == [("Above", "decibans_per_token", 0), ("OddSteps", "even_tokens", 1), ("OddSteps", "even_tokens", 3)]
series = replay.read("runs")
result = replay.run(series, replay.Rules(["live"], series))
assert [(f.alert.rule, f.alert.metric, f.alert.step) for f in result.fired] == live and result.differs == (0, 0)
pathlib.Path("losses.lines").write_text("1.0 2.0 11.0 1.0")
series = replay.read("losses.lines")
result = replay.run(series, replay.Rules(["Above('decibans_per_token', 5)", "OddSteps('decibans_per_token')"], series))
assert [f.alert.step for f in result.fired] == [1, 2, 3]
print("all of it")
"""


def test_a_new_file_is_known_everywhere(tmp_path: Path) -> None:
    """Logged, judged, journalled, replayed and read, under the names that users would expect."""
    shutil.copytree(PACKAGE, tmp_path / "pplmon", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        (tmp_path / "pplmon" / name).write_text(f'"""New."""\n{text}')
    numbers = tmp_path / "pplmon/report/numbers.py"
    source = numbers.read_text(encoding="utf-8")
    assert source.count("    bits_per_byte = ") == 1
    numbers.write_text(source.replace("    bits_per_byte = ", f"{NUMBER}    bits_per_byte = "), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "all of it\n"
