"""trackio and MLflow: what their own stores hold, read back by their own clients."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pplmon.alerts import Alert
from pplmon.report.histogram import Histogram
from pplmon.report.report import Report
from pplmon.report.worst import WorstToken
from pplmon.trainers.lightning.logger import LightningLogger

WORST = (WorstToken(41.0, position=3, target=5, target_text="cat", context_text="the cat"),)
HISTOGRAM = Histogram.of([0] * 1200 + [3, 0, 4] + [0] * 500)
HARD = "step 7: train/cross_entropy jumped \x1b[31m"
TRACKIO = pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
MLFLOW = pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")


class ByTrackio:
    """A logger over a run of trackio: Lightning has none of its own."""

    def __init__(self, run: Any) -> None:
        self.experiment = run

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        self.experiment.log(metrics, step=step)

    def save(self) -> None:
        """Nothing to flush."""


def tell(sink: LightningLogger) -> None:
    """One window before an alert and a notice, one after, and the end of the run."""
    numbers = {"cross_entropy": 1.0, "max_token_loss": 2.5}
    sink.start({"pplmon": "1"})
    sink.report(Report(3, "train", numbers, histogram=HISTOGRAM), {"train/perplexity": 2.5})
    sink.alert(Alert("Spike", HARD, "cross_entropy", 7, severity="critical", worst=WORST))
    sink.notice(Alert("Above", "step 8: a hard one", "max_token_loss", 8, severity="info"))
    sink.report(Report(9, "train", numbers), {"train/perplexity": 2.0})
    sink.finished(Report(9, "run", worst=WORST))
    sink.close()


@TRACKIO
def test_trackio_has_numbers_alerts_and_histograms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alerts with their level and step in a few lines; notices are counted; losses of all tokens in buckets."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when it is imported, here for the first time
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    assert str(tmp_path) == str(trackio.TRACKIO_DIR)
    run = trackio.init(project="pplmon-test", name="r", auto_log_gpu=False, auto_log_cpu=False)
    tell(LightningLogger(ByTrackio(run)))
    run.finish()
    (alert,) = trackio.Api().alerts("pplmon-test")
    assert (alert["title"], alert["level"], alert["step"]) == ("Spike: train/cross_entropy", "error", 7)
    assert "jumped \\x1b[31m" in alert["text"] and "Worst token: 'cat', 41 nats" in alert["text"]
    first, last = SQLiteStorage.get_logs("pplmon-test", "r")
    assert (first["step"], first["train/perplexity"], last["step"]) == (3, 2.5, 9)
    assert (last["pplmon/alerts_total"], last["pplmon/notices_total"]) == (1, 1)
    assert first["train/token_loss"]["_type"] == "trackio.histogram"


@MLFLOW
def test_mlflow_has_numbers_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alert and notice is a text among the run's files, beside that of the run's worst."""
    from pytorch_lightning.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(experiment_name="e", tracking_uri=(tmp_path / "mlruns").as_uri())
    tell(LightningLogger(logger))
    client, run = logger.experiment, str(logger.run_id)
    for key, values in {"train/perplexity": [(3, 2.5), (9, 2.0)], "pplmon/alerts_total": [(3, 0), (9, 1)]}.items():
        assert [(metric.step, metric.value) for metric in client.get_metric_history(run, key)] == values
    read: Callable[[str], str] = lambda name: Path(client.download_artifacts(run, name)).read_text(encoding="utf-8")  # noqa: E731
    assert "### step 7, train: 1 alert" in read("pplmon/alerts/001-step=7.md")
    assert "'the cat'" in read("pplmon/alerts/001-step=7.md") and "\x1b" not in read("pplmon/alerts/001-step=7.md")
    assert "1 notice" in read("pplmon/alerts/002-step=8.md")
    assert "'the cat'" in read("pplmon/worst_of_run.md")
