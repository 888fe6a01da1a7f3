"""Weights & Biases: one real offline run, read back from its file; the rest against a stand-in for the run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from pplmon.alerts import Alert
from pplmon.alerts.text import title
from pplmon.report.histogram import Histogram
from pplmon.report.report import Report
from pplmon.report.worst import WorstSequence, WorstToken
from pplmon.sinks.wandb import WandB
from tests.wandb_run import OfflineRun, read_run

STEP = "trainer/global_step"
WORST = (
    WorstToken(math.nan, position=99, target_text="a\x1b", context_ids=(1, 2, 3), context_losses=(0.1, math.nan, None)),
    WorstToken(loss=41.25, position=3),
)
HISTOGRAM = Histogram.of([0] * 1200 + [3, 0, 4] + [0] * 500)


@dataclass
class Offline:
    """A finished offline run: its records and its files."""

    run: OfflineRun
    files: Path


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offline]:
    """One run of ours, from first use to close."""
    directory = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("MODE", "offline"),
            ("SILENT", "true"),
            ("DIR", str(directory)),
            ("DATA_DIR", str(directory)),
        ):
            patch.setenv(f"WANDB_{name}", value)
        wandb.teardown()  # it remembers the directory of the first run in the process
        sink = WandB(project="p", config={"mine": 1, "pplmon": {"theirs": 2}})
        sink.start({"pplmon": "1.0", "alerts": ["Spike('cross_entropy')"], "resumed_at": None})
        for step, perplexity, accuracy in ((3, 9.0, 0.25), (6, 7.5, 0.5), (4, 8.0, 0.375)):
            numbers = {"val/perplexity": perplexity, "val/token_accuracy": accuracy, "val/tokens": 12}
            sink.report(
                Report(step, "val", {"cross_entropy": 1.0, "max_token_loss": 2.5}, histogram=HISTOGRAM), numbers
            )
        text = "step 7: train/cross_entropy jumped"
        sink.alert(Alert("Spike", text, "cross_entropy", 7, severity="critical", worst=WORST))
        sink.alert(Alert("a rule with a long name " * 5, "without evidence or step", severity="info"))
        sink.finished(Report(7, "run", worst=WORST, worst_sequences=(WorstSequence(9.5, 33),)))
        sink.close()
        (path,) = directory.glob("wandb/offline-run-*/*.wandb")
        yield Offline(finished(path), path.parent / "files")


def finished(path: Path) -> OfflineRun:
    """Read until the exit record is there: ``finish`` may return a moment before it is."""
    for _ in range(100):
        run = read_run(path)
        if run.exits:
            return run
        time.sleep(0.05)
    raise AssertionError("the run was not finished by close()")


class Config(dict[str, Any]):
    """As a run's config is updated."""

    def update(self, values: dict[str, Any], allow_val_change: bool) -> None:  # type: ignore[override]
        super().update(values)


class FakeRun:
    """Records what a run is asked to do."""

    def __init__(self, resumed: bool = False, summary: dict[str, Any] | None = None) -> None:
        self.resumed = resumed
        self.summary: dict[str, Any] = summary or {}
        self.config = Config()
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.calls.append((name, args or kwargs))


def test_rows_carry_their_own_step(offline: Offline) -> None:
    """Rows stand in the order they came, with Lightning's step key: wandb's step would drop the one that goes back."""
    rows = [row for row in offline.run.history if "val/perplexity" in row]
    assert [(row[STEP], row["val/perplexity"]) for row in rows] == [(3, 9.0), (6, 7.5), (4, 8.0)]
    assert [row["_step"] for row in rows] == [0, 1, 2]


def test_settings_stand_in_the_config_beside_the_users_own(offline: Offline) -> None:
    """Nothing of theirs is replaced, not even under our name."""
    ours = {"theirs": 2, "pplmon": "1.0", "alerts": ["Spike('cross_entropy')"]}
    assert offline.run.config["mine"] == 1 and offline.run.config["pplmon"] == ours


def test_trouble_is_counted_in_history_and_summary(offline: Offline) -> None:
    """From the first row on, so that a runs table can be sorted and filtered; a notice is not an alert."""
    rows = [row for row in offline.run.history if "pplmon/alerts_total" in row]
    assert [(row["pplmon/alerts_total"], row["pplmon/notices_total"]) for row in rows] == [(0, 0)] * 3 + [
        (1, 0),
        (1, 1),
    ]
    wanted = {
        "pplmon/alerts_total": 1,
        "pplmon/notices_total": 1,
        "pplmon/last_alert": "step 7: Spike: train/cross_entropy",
        "pplmon/last_alert_step": 7,
        "pplmon/worst_step": 7,
    }
    assert {key: value for key, value in offline.run.summary.items() if key.startswith("pplmon/")} == wanted


def test_pictures_and_tables_stay_out_of_the_summary(offline: Offline) -> None:
    """It is for numbers and texts: a table's columns and paths are no result of a run."""
    assert not [key for key, value in offline.run.summary.items() if isinstance(value, dict) and key != "_wandb"]


def test_the_losses_of_all_tokens_are_a_histogram(offline: Offline) -> None:
    """In the row of its window."""
    (first, *_) = [row["val/token_loss"] for row in offline.run.history if "val/token_loss" in row]
    assert first["_type"] == "histogram" and first["values"][0] == 3 and first["values"][-1] == 4
    assert len(first["bins"]) == len(first["values"]) + 1 and first["bins"] == sorted(first["bins"])


def test_the_text_of_an_alert_is_a_heatmap(offline: Offline) -> None:
    """A file of its own, at the alert's step, with what is known of each token."""
    (row,) = [row for row in offline.run.history if "pplmon/alert_text" in row]
    html = (offline.files / row["pplmon/alert_text"]["path"]).read_text(encoding="utf-8")
    assert row[STEP] == 7 and "step 7: train/cross_entropy jumped" in html
    assert html.count("<span") == 4 and "not scored" in html and "loss NaN nats" in html
    assert "<script" not in html and "http" not in html


def test_a_run_of_ours_is_charted_over_that_step(offline: Offline) -> None:
    """Every key's x axis is trainer/global_step, as WandbLogger has it."""
    metrics = offline.run.metrics
    ours = [m for m in metrics if not m.expanded_from_glob]  # some versions write what "*" came to for each key
    assert [(m.name, m.glob_name, m.step_metric) for m in ours] == [(STEP, "", ""), ("", "*", STEP)]
    assert all(m.step_metric == STEP for m in metrics if m.expanded_from_glob)


def test_best_values_are_plain_numbers_beside_the_last(offline: Offline) -> None:
    """The extremes have names of their own; the last value stays; a count has no best."""
    summary = offline.run.summary
    assert (summary["val/perplexity_min"], summary["val/token_accuracy_max"]) == (7.5, 0.5)
    assert not [key for key in summary if key.startswith("val/tokens_")]


def test_alerts_are_recorded_with_level_and_short_title(offline: Offline) -> None:
    """Both alerts are there, their titles fit, and the text holds the evidence."""
    first, second = offline.run.alerts
    assert (first.title, first.level) == ("Spike: train/cross_entropy", "ERROR")
    assert first.text.splitlines() == [
        "step 7: train/cross_entropy jumped",
        r"Worst token: 'a\x1b', NaN nats (step 0, sequence 0, position 99).",
    ]
    assert second.level == "INFO" and len(second.title) == 64
    assert first.wait_duration < 1000  # ms: 60,000 would swallow the next alert of that title


def test_worst_tokens_of_the_run_are_tables_of_an_artifact(offline: Offline) -> None:
    """At the end, tokens and sequences; NaN and control characters as text."""
    (made,) = offline.run.artifacts
    assert made.name == f"pplmon-worst-{offline.files.parent.name.rpartition('-')[2]}"
    tables = {entry.path: Path(entry.local_path) for entry in made.manifest.contents}
    assert set(tables) == {"worst_tokens.table.json", "worst_sequences.table.json"}
    table = json.loads(tables["worst_tokens.table.json"].read_text())
    cells = [dict(zip(table["columns"], line)) for line in table["data"]]
    assert [(c["loss"], c["position"], c["target_text"]) for c in cells] == [
        ("NaN", 99, r"'a\x1b'"),
        ("41.25", 3, None),
    ]


def test_the_worst_of_the_run_is_a_picture_and_no_chart_of_one_dot(offline: Offline) -> None:
    """At the end; nothing in the history is a table, whose counts of rows and columns ``wandb leet`` would draw."""
    (row,) = [row for row in offline.run.history if "pplmon/worst_of_run" in row]
    html = (offline.files / row["pplmon/worst_of_run"]["path"]).read_text(encoding="utf-8")
    assert row[STEP] == 7 and "The worst tokens of the run" in html and html.count("<span") == 4
    assert not [key for row in offline.run.history for key, value in row.items() if "table" in str(value)]


def test_a_given_run_is_neither_defined_norfinished() -> None:
    """It is its owner's: WandbLogger has defined its axes, and finishes it after us."""
    run = FakeRun()
    sink = WandB(run)
    sink.report(Report(3), {"train/tokens_seen": 5})
    sink.close()
    counts = {"pplmon/alerts_total": 0, "pplmon/notices_total": 0}
    assert run.calls == [("log", ({"train/tokens_seen": 5, **counts, STEP: 3},))]


def test_a_run_and_init_arguments_do_not_go_together() -> None:
    """Arguments that would be ignored are an error."""
    with pytest.raises(ValueError, match="project"):
        WandB(FakeRun(), project="p")


def test_best_stands_without_scalars_and_writes_only_what_improves() -> None:
    """Under Lightning rows go through its logger; the summary is ours. Each loader has a best of its own."""
    run = FakeRun()
    written: list[dict[str, float]] = []
    run.summary = SimpleNamespace(get=lambda name: None, update=written.append)  # type: ignore[assignment]
    sink = WandB(run)
    sink.best({"p/val/perplexity": 9.0, "val/perplexity/dataloader_idx_0": 8.0, "val/tokens": 3.0, "lr": 1.0})
    sink.best({"p/val/perplexity": 9.0, "val/perplexity/dataloader_idx_0": 7.0})
    sink.best({"p/val/perplexity": 10.0})
    assert written == [
        {"p/val/perplexity_min": 9.0, "val/perplexity/dataloader_idx_0_min": 8.0},
        {"val/perplexity/dataloader_idx_0_min": 7.0},
    ]
    assert run.calls == []


def test_a_resumed_run_keeps_its_best() -> None:
    """A worse value after a resume does not take the place of the run's best; a spoilt one is replaced."""
    run = FakeRun(resumed=True, summary={"val/perplexity_min": 5.0, "val/cross_entropy_min": "NaN"})
    sink = WandB(run)
    sink.best({"val/perplexity": 6.0, "val/cross_entropy": 2.0})
    assert run.summary == {"val/perplexity_min": 5.0, "val/cross_entropy_min": 2.0}
    sink.best({"val/perplexity": 4.0})
    assert run.summary["val/perplexity_min"] == 4.0


def test_a_second_fit_into_one_run_keeps_its_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fit has a sink of its own; the run is one, and its best is what either reached: from its real file."""
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("DIR", str(tmp_path))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()
    run = wandb.init(project="p")
    for perplexity, accuracy in ((26.18, 0.25), (2_712_279.0, 0.5), (30.0, 0.125)):
        WandB(run).report(Report(3, "val"), {"val/perplexity": perplexity, "val/token_accuracy": accuracy})
    run.finish()
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    summary = finished(path).summary
    assert (summary["val/perplexity_min"], summary["val/token_accuracy_max"]) == (26.18, 0.5)
    assert summary["val/perplexity"] == 30.0


def test_an_alert_without_tokens_logs_no_picture() -> None:
    """An empty file would be a version for nothing."""
    run = FakeRun()
    WandB(run).alert(Alert("mine", "look", step=3))
    (_, _), (_, (row,)) = run.calls
    assert "pplmon/alert_text" not in row and row["pplmon/alerts_total"] == 1


def test_at_most_twenty_heatmaps_a_run_and_one_for_the_rules_of_a_step() -> None:
    """Each is a file; the counts go on."""
    run = FakeRun()
    sink = WandB(run)
    for step in range(30):
        for rule in ("a", "b"):
            sink.notice(
                Alert(rule, "t", step=step, worst=(WorstToken(1.0 + step, context_ids=(1,), context_losses=(1.0,)),))
            )
    rows = [row for _, (row,) in run.calls]
    assert [row[STEP] for row in rows if "pplmon/alert_text" in row] == list(range(20))
    assert rows[-1]["pplmon/alerts_total"] == 60


def test_two_monitors_in_one_run_are_told_apart() -> None:
    """By the prefix of their log keys."""
    run = FakeRun()
    sink = WandB(run)
    sink.start({"prefix": "draft/", "alerts": []})
    sink.report(Report(3), {})
    assert run.calls[-1] == ("log", ({"pplmon/draft/alerts_total": 0, "pplmon/draft/notices_total": 0, STEP: 3},))
    assert run.config == {"pplmon/draft/": {"alerts": []}}


def test_titles_fit() -> None:
    """At most 64 characters, one line, nothing that does not print."""
    assert title(Alert("r" * 64, "t")) == "r" * 64
    assert title(Alert("r" * 65, "t")) == "r" * 63 + "…"
    assert title(Alert("a\nb\x1b", "t")) == r"a b\x1b"
