"""Several data sets that are validated on, each in a pass of its own: how they are named, judged, saved, replayed and drawn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import pplmon
from pplmon import Monitor, replay
from pplmon.page.build import page
from pplmon.page.charts import drawings
from pplmon.page.headline import headline
from pplmon.page.runs import read_runs
from pplmon.page.summary import summary
from pplmon.sinks import Journal, TensorBoard, read_journal
from tests.test_sinks_tensorboard import charts, read

SETS = {"wiki": 1.0, "<b>code": 7.0}  # and the usual loss of each
PASSES, JUMP = 90, 80


class Rising(pplmon.MetricRule):
    """A value above the highest one before."""

    def __init__(self, metric: str, stage: str = "train") -> None:
        super().__init__(metric, stage)
        self.highest = 99.0

    def judge(self, value: float, report: pplmon.Report) -> pplmon.Alert | None:
        before, self.highest = self.highest, value
        return self.alert(report, value, before, "rises") if value > before else None

    def state_dict(self) -> dict[str, Any]:
        return {"highest": self.highest}

    def load_state_dict(self, state: Any) -> None:
        self.highest = state["highest"]


def stats(loss: float) -> pplmon.TokenStats:
    """Twenty tokens of one loss."""
    return pplmon.TokenStats.from_losses(torch.full((1, 20), loss), torch.zeros(1, 20, dtype=torch.long), vocab_size=9)


def validate(monitor: Monitor, number: int) -> None:
    """A step, and a pass over each set; the losses wave a little, and one of them leaps once."""
    monitor.observe(stats(2.0))
    monitor.step()
    for name, usual in SETS.items():
        loss = usual + 0.1 * (number * 7 % 10) / 10 + (5.0 if number == JUMP and name == "wiki" else 0.0)
        with monitor.stage("val", part=name) as opened:
            monitor.observe(stats(loss))
        assert opened.report is not None and opened.report.stage == f"val/{name}"


def rules() -> list[Any]:
    """A number that leaps, one that is too high for one set only, and a rule of ones own."""
    return [
        pplmon.Spike("cross_entropy", stage="val"),
        pplmon.Above("cross_entropy", 6.5, stage="val"),
        Rising("tokens", stage="val"),
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[pplmon.Alert]]:
    """A run that is saved in the middle, and goes on from there in another monitor."""
    where, heard = tmp_path_factory.mktemp("sets"), []
    places = {"alerts": rules(), "on_alert": heard.append, "min_severity": "info"}
    monitor = Monitor(sinks=[Journal(where), TensorBoard(where)], **places)
    for number in range(70):
        validate(monitor, number)
    state = monitor.state_dict()
    monitor.abandon()
    places["alerts"] = rules()
    with Monitor(sinks=[Journal(where), TensorBoard(where / "on")], **places) as resumed:
        resumed.load_state_dict(state)
        for number in range(70, PASSES):
            validate(resumed, number)
    return where, heard


def test_a_rule_on_val_judges_each_set_by_itself(run: tuple[Path, list[pplmon.Alert]]) -> None:
    """By what is usual in that set, before and after a resume; the alert names the set."""
    _, heard = run
    found = [(alert.rule, alert.stage, alert.step) for alert in heard]
    assert found == [("Above", "val/<b>code", 0), ("Spike", "val/wiki", JUMP)]
    assert heard[1].text.startswith(f"step {JUMP}: val/wiki/cross_entropy jumped to 6")


def test_a_replay_gives_the_same_alerts(run: tuple[Path, list[pplmon.Alert]]) -> None:
    """The run's rules from its journal, and one that is given."""
    where, heard = run
    series = replay.read(where)
    result = replay.run(series, replay.Rules(["live"], series))
    assert result.differs == (0, 0) and [fired.alert.text for fired in result.fired] == [a.text for a in heard]
    given = replay.Rules(["Above('cross_entropy', 3.0, stage='val/wiki')"], series)
    (text,) = [fired.alert.text for fired in replay.run(series, given).fired]
    assert f"step {JUMP}: val/wiki/cross_entropy" in text


def test_their_keys_are_in_a_chart_and_on_the_page(run: tuple[Path, list[pplmon.Alert]]) -> None:
    """Beside each other; a name that is markup stays text."""
    where, _ = run
    events = read(where)
    drawn = [tag for tag in events.Tags()["scalars"] if re.match(charts(events)["Perplexity, val"], tag)]
    assert sorted(drawn) == ["val/perplexity/<b>code", "val/perplexity/wiki"]
    (made,) = read_runs([where / "pplmon.jsonl"])
    lines = next(figure.lines for figure in drawings([made]) if figure.key == "perplexity")
    assert [line.label for line in lines[1:]] == ["perplexity, val/wiki", "perplexity, val/<b>code"]
    assert {"perplexity, val/wiki", "perplexity, val/<b>code"} <= {tile.title for tile in headline(made)}
    assert "<b>code" not in page(where).html


def test_a_pass_of_one_rank_bears_its_name(tmp_path: Path) -> None:
    """With ``local=True``, too."""
    with Monitor(sinks=[Journal(tmp_path)], alerts=[]) as monitor, monitor.stage("val", local=True, part="wiki"):
        monitor.observe(stats(1.0))
    assert [row["stage"] for row in read_journal(tmp_path) if row["kind"] == "report"] == ["val/wiki"]


def test_the_summary_has_them_by_log_key(tmp_path: Path) -> None:
    """As loggers do: the name of the set stands last."""
    with Monitor(sinks=[Journal(tmp_path)], alerts=[]) as monitor:
        validate(monitor, 0)
    numbers = summary(read_runs([tmp_path]))["runs"][0]["numbers"]
    assert numbers["val/cross_entropy/wiki"] == pytest.approx(1.0, abs=1e-5)
    assert not [key for key in numbers if key.startswith(("val/wiki", "val/<b>code"))]


WRONG_PART = 'part is the name of a data set, such as "wiki", or None where there is only one; got '


@pytest.mark.parametrize(
    ("part", "told"),
    [("", "''"), (3, "3"), ("dataloader_idx_0", "'dataloader_idx_0', which names a loader of a pass")],
)
@pytest.mark.parametrize("hooks", [False, True])
def test_a_part_that_is_no_name(part: Any, told: str, hooks: bool) -> None:
    """Its keys would be broken, or those of a loader, which the page leaves out."""
    monitor = pplmon.Monitor(alerts=[])
    monitor = monitor.hook(torch.nn.Linear(2, 2)) if hooks else monitor
    with pytest.raises(ValueError, match=f"^{re.escape(WRONG_PART + told)}$"), monitor.stage("val", part=part):
        pass
