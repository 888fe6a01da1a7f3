"""Users' code is type-checked against pplmon: what is right passes, and a name that is no number is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

api = pytest.importorskip("mypy.api")

ROOT = Path(__file__).parent.parent

# What others' packages say of types is not ours, and reading torch takes a minute.
SETTINGS = """
[mypy]
strict = true
follow_imports = silent
[mypy-torch.*,torchmetrics.*,numpy.*,pytorch_lightning.*,lightning.*,wandb.*,rich.*,triton.*]
follow_imports = skip
"""

# One mistake each, and what is said of it.
BAD = {
    "report.perplexty": '"Report" has no attribute "perplexty"',
    "loss: float = report.cross_entropy": 'variable has type "float"',
    "count: str = report.tokens": 'expression has type "int | None"',
    "pplmon.Spike('cross_entropy', limits=8)": 'Unexpected keyword argument "limits"',
    "pplmon.TokenTally(extras=[object()])": 'expected "Measures"',
}


def check(code: str, directory: Path) -> list[str]:
    """Return the errors that mypy finds."""
    (directory / "mypy.ini").write_text(SETTINGS)
    (directory / "code.py").write_text(code)
    where = ["--config-file", str(directory / "mypy.ini"), "--cache-dir", str(directory / "cache")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPYPATH", str(ROOT))
        said, trouble, _ = api.run([*where, str(directory / "code.py")])
    assert not trouble, trouble
    return [line.split("error: ")[1] for line in said.splitlines() if "error: " in line]


@pytest.mark.slow  # make lint checks the same file
def test_good_use_passes(tmp_path: Path) -> None:
    """Numbers are attributes with types; rules, extras with and without a base, and sinks fit where they are given."""
    assert check(Path(__file__).with_name("typed_use.py").read_text(), tmp_path) == []


@pytest.mark.slow
def test_mistakes_are_errors(tmp_path: Path) -> None:
    """A typo, a number that may be None, a wrong type: each is told, and nothing else."""
    lines = "\n".join(f"    {mistake}" for mistake in BAD)
    found = check(f"import pplmon\ndef use(report: pplmon.Report) -> None:\n{lines}\n", tmp_path)
    assert len(found) == len(BAD)
    for text, error in zip(BAD.values(), found):
        assert text in error
