"""Every example runs as a newcomer runs it, and prints and writes what it is there to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pplmon.sinks import read_journal
from tests.launch import ROOT, run_script

EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def run(name: str, cwd: Path, *arguments: str) -> str:
    """Run one example, as from a checkout; return what it printed."""
    path = ROOT / "examples" / f"{name}.py"
    done = run_script(str(path), *arguments, cwd=cwd, timeout_s=280.0, afresh="liger" in arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def number(pattern: str, text: str) -> float:
    """The one number that ``pattern`` finds."""
    found = re.findall(pattern, text)
    assert len(found) == 1, (pattern, text)
    return float(found[0])


def scalars(directory: Path, tag: str) -> dict[int, float]:
    """A curve, read back from the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def test_each_example_has_its_test() -> None:
    """A new example comes with a test here."""
    assert EXAMPLES == [
        "alerts",
        "fused_losses",
        "lightning_lm",
        "packed_sft",
        "plain_loop",
        "python_source",
        "python_source_pictures",
        "vocab_parallel",
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_stays_short(name: str) -> None:
    """Below 120 lines, and its docstring gives the line that runs it."""
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    assert f"python examples/{name}.py\n" in text


def test_lightning_lm(tmp_path: Path) -> None:
    """The perplexity falls, the checkpoint is that of the best one, and the event file holds the same curve."""
    printed = run("lightning_lm", tmp_path)
    points = {int(step): float(value) for step, value in re.findall(r"step +(\d+): val/perplexity ([\d.]+)", printed)}
    assert list(points) == [39, 79, 119, 159]
    assert list(points.values()) == sorted(points.values(), reverse=True)
    assert points[159] < 10 < points[39] * 1.1
    assert number(r"\(val/perplexity ([\d.]+)\)", printed) == min(points.values())
    assert (tmp_path / "runs/lightning_lm/checkpoints/best.ckpt").is_file()
    (events,) = (tmp_path / "runs/lightning_lm").rglob("events.out.tfevents.*")
    curve = scalars(events.parent, "val/perplexity")
    assert {step: round(value, 2) for step, value in curve.items()} == points
    assert list(scalars(events.parent, "train/max_token_loss")) == [19, 39, 59, 79, 99, 119, 139, 159]
    assert number(r"cost most: .*, ([\d.]+) nats, in row \d+ at position \d+", printed) > 5


def test_plain_loop(tmp_path: Path) -> None:
    """A window is reported one step late with the tokens of all its micro-batches, and each sink has it."""
    printed = run("plain_loop", tmp_path)
    late = re.findall(r"(\d+) tokens in the window that ended at step (\d+); now at step (\d+)", printed)
    assert late == [("40960", "39", "40"), ("40960", "79", "80")]
    assert len(re.findall(r"^step \d+  train  cross-entropy", printed, re.MULTILINE)) == 3
    rows = read_journal(tmp_path / "runs/plain_loop")
    reports = [row for row in rows if row["kind"] == "report"]
    assert [(row["stage"], row["step"]) for row in reports] == [
        ("train", 39),
        ("train", 79),
        ("train", 119),
        ("val", 119),
    ]
    assert round(reports[-1]["numbers"]["perplexity"], 2) == number(r"val: perplexity ([\d.]+)", printed)
    curve = scalars(tmp_path / "runs/plain_loop", "train/cross_entropy")
    assert curve == pytest.approx({row["step"]: row["numbers"]["cross_entropy"] for row in reports[:3]})
    assert "so it is byte " in printed  # the example checks by itself that the address leads to the target


def test_alerts(tmp_path: Path) -> None:
    """Built-in rules and the one of one's own name the planted row, at its step, before its window is logged."""
    printed = run("alerts", tmp_path)
    row = int(number(r"^row (\d+) of the data is random bytes", printed))
    rows = read_journal(tmp_path / "runs/alerts")
    alerts = [line for line in rows if line["kind"] == "alert"]
    rules = {(line["rule"], line.get("metric")) for line in alerts if line["step"] == 110}
    assert {("Spike", "max_sequence_loss"), ("Above", "max_token_loss"), ("worse_than_a_guess", None)} <= rules
    assert {line["worst_sequences"][0]["sample_id"] for line in alerts} == {row}
    assert {line["worst"][0]["sample_id"] for line in alerts} == {row}
    assert all(line["worst"][0]["context_text"] for line in alerts)
    assert f"the rows they name: [{row}]" in printed
    # The mean barely moves: that is why the rules look at the worst sequence and not at the loss alone.
    before, at = (number(rf"step {step}: the loss of the batch is ([\d.]+)", printed) for step in (109, 110))
    worst = alerts[0]["worst_sequences"][0]["loss"]
    assert at - before < 1.5 < 5 * 1.5 < worst - before
    assert (
        printed.index("step 110: the loss of the batch")
        < printed.index("[warning]")
        < printed.index("step 111: the loss")
    )


@pytest.mark.slow
def test_packed_sft(tmp_path: Path) -> None:
    """Padded and packed give one number to the last digit, a forgotten mask another, and both find the broken answer."""
    printed = run("packed_sft", tmp_path, "--out", "elsewhere")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]  # nothing is written in another place
    pattern = r"(?:padded|packed): ([\d.]+) nats per byte over (\d+), in (\d+) answers"
    one, other = re.findall(pattern, printed)
    assert one == other
    wrong, tokens = re.findall(r"without the mask it would read ([\d.]+) over (\d+)", printed)[0]
    assert abs(float(wrong) - float(one[0])) > 0.05
    assert int(tokens) > int(one[1])
    broken = 23
    assert f"worst row: {broken}; worst document: {broken}, " in printed
    reports = [row for row in read_journal(tmp_path / "elsewhere") if row["kind"] == "report"]
    assert reports[-1]["worst_sequences"][0]["document_id"] == broken
    assert len({row["numbers"]["tokens"] for row in reports}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "packages"),
    [("torch", ["torch"]), ("liger", ["liger_kernel"]), ("cce", ["cut_cross_entropy"]), ("trl", ["trl", "datasets"])],
)
def test_fused_losses_of(loss: str, packages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All train alike, and those that know the argmax have the same accuracy."""
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # cut-cross-entropy would compile for a while
    printed = run("fused_losses", tmp_path, "--loss", loss)
    found = re.findall(r"^step (\d+): 384 tokens, cross-entropy ([\d.]+), accuracy (\S+)$", printed, re.MULTILINE)
    steps, entropies, accuracies = zip(*found)
    assert steps == ("5", "11")
    assert [float(entropy) for entropy in entropies] == pytest.approx([4.822, 3.918], abs=2e-3)
    if loss in ("liger", "trl"):
        assert [float(accuracy) for accuracy in accuracies] == pytest.approx([0.102, 0.185], abs=5e-3)
    else:
        assert accuracies == ("unknown", "unknown")


def test_fused_losses(tmp_path: Path) -> None:
    """In Lightning it is the same number."""
    printed = run("fused_losses", tmp_path, "--loss", "torch", "--lightning")
    assert number(r"train/cross_entropy ([\d.]+)", printed) == pytest.approx(3.918, abs=2e-3)


@pytest.mark.slow
def test_vocab_parallel(tmp_path: Path) -> None:
    """Two ranks that each hold half of the vocabulary print what one rank prints, and gather a few bytes a token."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(ROOT / "examples/vocab_parallel.py"), "--out", "two"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    two = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    one = run("vocab_parallel", tmp_path, "--out", "one")
    numbers = [
        {row["step"]: row["numbers"] for row in read_journal(tmp_path / out) if row["kind"] == "report"}
        for out in ("two", "one")
    ]
    for of_two, of_one in zip(*(reports.values() for reports in numbers)):
        assert of_two["tokens"] == of_one["tokens"] == 20 * 8 * 32
        assert of_two["cross_entropy"] == pytest.approx(of_one["cross_entropy"], rel=1e-4)
    assert [len(reports) for reports in numbers] == [3, 3]
    assert number(r"gather the logits it would give (\d+)", two) == 4 * 2000
    assert number(r"losses differ by at most (\S+) nats", two) <= 4e-6
    assert number(r"losses differ by at most (\S+) nats", one) == 0


@pytest.fixture(scope="module")
def source_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of a few steps on Python source: its directory, and what it printed."""
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    folder = tmp_path_factory.mktemp("source")
    return folder, run("python_source", folder, "--steps", "8")


@pytest.mark.slow
def test_python_source(source_run: tuple[Path, str]) -> None:
    """Every measurement gives its number, and what other names cost is printed."""
    _, printed = source_run
    names = ["structure_perplexity", "novel_share", "rollout_match_2", "overconfidence", "group/json/perplexity"]
    names += ["position/64/cross_entropy", "perplexity_high", "bits_per_byte", "free_running/after/cross_entropy"]
    for name in names:
        assert re.search(rf"^val/{name} +[\d.-]+$", printed, re.MULTILINE), name
    assert "renamed names: " in printed and "everything else: " in printed


@pytest.mark.slow
def test_python_source_pictures(source_run: tuple[Path, str]) -> None:
    """Four pictures, drawn from the run's journal."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    folder, _ = source_run
    printed = run("python_source_pictures", folder, "runs/python_source", "--out", ".")
    pictures = sorted(folder.glob("beyond_*.png"))
    assert len(pictures) == 4 and all(picture.name in printed for picture in pictures)
