"""Which room imports which, and that ``import pplmon`` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pplmon"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}

# A room is a module or a package. STATE: plain numbers. Each room may import itself and the rooms named.
STATE = {"cells", "histogram", "numbers", "evidence", "report"}
JUDGE = STATE | {"alerts"}
MEASURE = {"tokens", "kernels", "overwritten"}
COUNT = STATE | MEASURE | {"tally"}
RUN = JUDGE | COUNT | {"sinks", "monitor"}
ROOMS = {
    "cells": set(),
    "histogram": {"cells"},
    "numbers": {"cells", "histogram"},
    "evidence": {"cells"},
    "report": STATE,
    "kernels": set(),
    "graphs": set(),
    "arguments": set(),
    "tokens": {"arguments", "graphs", "kernels"},
    "overwritten": {"tokens"},
    "tally": STATE | {"graphs", "tokens"},
    "metrics": {"cells", "histogram", "tally", "tokens"},
    "alerts": STATE,
    "actions": JUDGE | {"sinks"},
    "sinks": JUDGE,
    "monitor": RUN,
    "replay": JUDGE | {"sinks", "monitor"},
    "capture": {"cells", "overwritten", "tally", "tokens"},
    "doctor": {"arguments", "overwritten", "tokens"},
    "lightning": RUN | {"capture"},
}
ANY = {"cli", "demo", "testing"}  # and pplmon itself

NO_TORCH = (*STATE, "alerts", "replay")
DISTRIBUTED = ("tally", "kernels.vocab_parallel", "testing")  # testing starts ranks of its own
FRAMEWORKS = {"pytorch_lightning", "lightning", "lightning_fabric"}
HEAVY = (
    "wandb",
    "apprise",
    "tensorboard",
    "torch.utils.tensorboard",
    "pytorch_lightning",
    "lightning",
    "transformers",
    "rich",
    "triton",
)


def imports(source: str, package: str = "pplmon") -> Iterator[str]:
    """Every module that ``source`` imports, wherever in it; a name's own module where it is one of ours."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            base = ".".join(filter(None, (start, node.module)))
            yield from (f"{base}.{name.name}" for name in node.names)


def ours(source: str) -> set[str]:
    """The rooms that ``source`` imports; "" is the package itself."""
    names = {name.removeprefix("pplmon").removeprefix(".") for name in imports(source) if _within(name, "pplmon")}
    return {name.split(".")[0] if f"pplmon.{name.split('.')[0]}" in MODULES else "" for name in names}


def room_of(module: str) -> str:
    """``pplmon.tally.metric`` -> ``tally``."""
    return module.removeprefix("pplmon").removeprefix(".").split(".")[0]


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_room_imports_only_what_its_row_names(module: str) -> None:
    """A module that is in no row is an error, too: say where it belongs."""
    room = room_of(module)
    if room == "" or room in ANY:
        return
    beyond = ours(MODULES[module].read_text(encoding="utf-8")) - ROOMS[room] - {room}
    assert not beyond, f"{module} may not import {', '.join(name or 'pplmon' for name in sorted(beyond))}"


def test_every_row_is_of_a_room_that_is_there() -> None:
    """A row that outlived its room is misleading."""
    assert set(ROOMS) <= {room_of(module) for module in MODULES}


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room_of(name) in NO_TORCH))
def test_plain_rooms_know_no_torch(module: str) -> None:
    """To the right of the report stand plain numbers."""
    found = {name.split(".")[0] for name in imports(MODULES[module].read_text(encoding="utf-8"))}
    assert not found & {"torch", "torchmetrics", "numpy"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_ranks_are_merged_in_one_place(module: str) -> None:
    """``torch.distributed`` is used by the tally and by the measuring of a vocabulary that is cut over ranks."""
    source = MODULES[module].read_text(encoding="utf-8")
    if not any(_within(module, f"pplmon.{room}") for room in DISTRIBUTED):
        assert not [name for name in imports(source) if _within(name, "torch.distributed")]
        assert "torch.distributed." not in source


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_the_wiring_knows_a_framework(module: str) -> None:
    """Lightning is imported by ``lightning`` and by the demo."""
    found = {name.split(".")[0] for name in imports(MODULES[module].read_text(encoding="utf-8"))}
    if room_of(module) not in {"lightning", "demo"}:
        assert not found & FRAMEWORKS


def test_a_forbidden_import_is_seen_in_every_form() -> None:
    """The tests above can fail: at the top, within a function, of a submodule, and through the package."""
    assert ours("import pplmon.tally.metric") == {"tally"}
    assert ours("def f():\n    from pplmon.sinks import Console") == {"sinks"}
    assert ours("from pplmon import cells, monitor") == {"cells", "monitor"}
    assert ours("from pplmon import Monitor") == {""}
    assert ours("from pplmon import token_stats\nimport pplmonitor, torch") == {""}
    assert list(imports("from torch import distributed")) == ["torch.distributed"]
    assert list(imports("from . import tally")) == ["pplmon.tally"]


def loaded(code: str) -> list[str]:
    """Which of the heavy modules a fresh interpreter has loaded after ``code``."""
    check = f"{code}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_is_light() -> None:
    """Neither a logger nor a framework nor the terminal's colours: they are loaded on first use."""
    used = "pplmon.Monitor(sinks=[pplmon.sinks.Console(), pplmon.sinks.Journal('x'), pplmon.sinks.TensorBoard('x')])"
    # torchmetrics looks at transformers where it is installed; that is not ours to change.
    assert set(loaded(f"import pplmon; {used}")) <= set(loaded("import torchmetrics")) & {"transformers"}


def test_a_heavy_import_would_be_seen() -> None:
    """The test above can fail."""
    assert {"wandb", "rich"} <= set(loaded("import wandb, rich, pplmon"))
    assert "pytorch_lightning" in loaded("import pplmon; pplmon.PerplexityMonitor")
