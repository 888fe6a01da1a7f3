"""Each room imports only rooms above it, and ``import pplmon`` loads little."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.test_private_names import READ

PACKAGE = Path(__file__).parents[1] / "pplmon"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}

# The rooms of the house, in order: each imports itself and the rooms named, all of which stand above it.
ROOMS = {
    "report": set(),
    "measure": set(),
    "extras": {"report", "measure"},
    "tally": {"report", "measure", "extras"},
    "alerts": {"report"},
    "sinks": {"report", "alerts"},
    "doctor": {"report", "measure", "tally"},
    "monitor": {"report", "measure", "extras", "tally", "alerts", "sinks", "doctor"},
    "trainers": {"report", "measure", "extras", "tally", "alerts", "sinks", "doctor", "monitor"},
    "replay": {"report", "alerts", "sinks", "monitor"},
    "page": {"report", "alerts", "sinks", "replay"},
}
ANY = {"cli", "__main__", "demo", "testing"}  # and pplmon itself

NO_TORCH = ("report", "alerts", "replay", "page")
DISTRIBUTED = ("tally", "measure.vocab_parallel", "testing")  # testing starts ranks of its own
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
    "pplmon.page",
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
    """``pplmon.tally.token_tally`` -> ``tally``."""
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
    """Reports and what judges them are plain numbers; only an action may hold a batch's tensors."""
    if module == "pplmon.alerts.actions.save_batch":
        return
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
    """Lightning is imported by ``trainers`` and by the demo."""
    found = {name.split(".")[0] for name in imports(MODULES[module].read_text(encoding="utf-8"))}
    if not _within(module, "pplmon.trainers") and room_of(module) != "demo":
        assert not found & FRAMEWORKS


# Names with an underscore belong to their room. Those of a library stand in one file, and ``test_private_names`` tries each.
LIBRARIES = {
    "torch": "pplmon.measure.private_names",
    "torchmetrics": "pplmon.tally.as_metric",
    "Lightning": "pplmon.trainers.lightning.private_names",
    "wandb-workspaces": "pplmon.sinks.wandb_workspace",
}
PYTHONS = {"_asdict", "_fields", "_replace", "_SubParsersAction"}  # public, by Python's own word
DATA_OF_A_BATCH = {("pplmon.alerts.actions.save_batch", "_version")}  # torch's; alerts may not import ``measure``


def _private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.endswith("__")


def _own(node: ast.expr) -> bool:
    """True for self, cls and super()."""
    name = node.func if isinstance(node, ast.Call) else node
    return isinstance(name, ast.Name) and name.id in {"self", "cls", "super"}


def private_names_read(source: str) -> Iterator[tuple[bool, str]]:
    """Every name with an underscore that is read of an object or imported, and whether the object is self."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and _private(node.attr):
            yield _own(node.value), node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from ((False, alias.name) for alias in node.names if _private(alias.name))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"getattr", "hasattr"}:
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            if _private(name):
                yield _own(node.args[0]), str(name)


@cache
def private_names_defined(source: str) -> set[str]:
    """Every name with an underscore that is assigned or defined, at whatever depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


def borrowed(module: str, sources: Mapping[str, str]) -> set[str]:
    """The names with an underscore that a module reads of what is not its own: of self, what its room does not define."""
    defined = private_names_defined(sources[module])
    room = set().union(*(private_names_defined(s) for m, s in sources.items() if room_of(m) == room_of(module)))
    read = private_names_read(sources[module])
    return {name for of_self, name in read if name not in (room if of_self else defined) | PYTHONS}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nobody_reads_the_private_names_of_another(module: str) -> None:
    """What another class has to give stands there without an underscore."""
    if module not in LIBRARIES.values():
        sources = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
        allowed = {name for where, name in DATA_OF_A_BATCH if where == module}
        assert borrowed(module, sources) == allowed


def test_a_private_name_of_another_is_seen_in_every_form() -> None:
    """The test above can fail: an attribute, a chain of them, a name as text, an import, and one that a base class has."""
    mine = "pplmon.monitor.a"
    other = {"pplmon.monitor.b": "class B:\n    _b = 1", "pplmon.tally.c": "class C:\n    _c = 1"}

    def found(source: str) -> set[str]:
        return borrowed(mine, {mine: source, **other})

    assert found("def f(x): return x._b") == {"_b"}
    assert found("class A:\n    def f(self): return self.x._c.y") == {"_c"}
    assert found("def f(x): return getattr(x, '_c', None), hasattr(x, '_b')") == {"_b", "_c"}
    assert found("from pplmon.tally.c import _c") == {"_c"}
    assert found("class A(B):\n    def f(self): return self._b, self._c, super()._d()") == {"_c", "_d"}
    assert found("def f(x): return x._replace(a=1), x.__dict__, x._a\nclass A:\n    _a = 1") == set()


def test_the_files_of_private_names_hold_those_of_their_library_only() -> None:
    """A tally's base class is torchmetrics': the names that it reads of it are the ones that the canaries try."""
    sources = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
    assert borrowed(LIBRARIES["torchmetrics"], sources) == READ
    assert not borrowed(LIBRARIES["torch"], sources) & borrowed(LIBRARIES["Lightning"], sources)


# Where a trainer is connected, numbers are only handed on: what is left to compute are ranks, and rows of a batch.
WIRES = ("hugging_face", "lightning", "loop")
COUNTS = {"trainer.accelerator.num_processes // trainer.get_tp_size()", "len(ids) // 2"}
NUMERIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult)
REDUCTIONS = {"exp", "log2", "sum", "mean", "softmax", "log_softmax", "cross_entropy", "item", "tolist"}


def arithmetic(source: str) -> set[str]:
    """The computations of a source, and the calls that reduce tensors. The / of a path joins texts and constants."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, NUMERIC):
            right = node.right
            text = isinstance(right, ast.JoinedStr) or (
                isinstance(right, ast.Constant) and isinstance(right.value, str)
            )
            if not (isinstance(node.op, ast.Div) and (text or ast.unparse(right).isupper())):
                found.add(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".", 1)[-1] in REDUCTIONS:
            found.add(ast.unparse(node))
    return found


def repeated(sources: Mapping[str, str], lines: int = 6) -> set[tuple[str, ...]]:
    """So many lines that stand in more than one of these, whatever their indentation; empty ones and comments apart."""
    places: dict[tuple[str, ...], set[str]] = {}
    for name, source in sources.items():
        kept = [line.strip() for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
        for start in range(len(kept) - lines + 1):
            places.setdefault(tuple(kept[start : start + lines]), set()).add(name)
    return {piece for piece, names in places.items() if len(names) > 1}


def test_the_wire_of_hugging_face_computes_nothing_and_wires_repeat_nothing() -> None:
    """What two trainers need alike is the session's."""
    sources = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
    found = {
        wire: "\n".join(text for name, text in sources.items() if _within(name, f"pplmon.trainers.{wire}"))
        for wire in WIRES
    }
    assert arithmetic(found["hugging_face"]) == COUNTS
    assert repeated(found) == set()


def test_arithmetic_and_repetition_would_be_seen() -> None:
    """The test above can fail."""
    told = arithmetic("a = total / tokens\nb = path / NAME / 'x' / f'{y}'\nc = torch.exp(a), a.mean(), loss.item()")
    assert told == {"total / tokens", "torch.exp(a)", "a.mean()", "loss.item()"}
    lines = [f"a{number} = {number}" for number in range(7)]
    assert len(repeated({"a": "\n".join(lines), "b": "def f():\n    " + "\n\n    ".join(lines[:6])})) == 1


def test_a_forbidden_import_is_seen_in_every_form() -> None:
    """The tests above can fail: at the top, within a function, of a submodule, and through the package."""
    assert ours("import pplmon.tally.token_tally") == {"tally"}
    assert ours("def f():\n    from pplmon.sinks import Console") == {"sinks"}
    assert ours("from pplmon import report, monitor") == {"report", "monitor"}
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
    assert set(loaded(f"import pplmon; {used}")) <= {"transformers"}


@pytest.mark.slow
def test_a_heavy_import_would_be_seen() -> None:
    """The test above can fail."""
    assert {"wandb", "rich"} <= set(loaded("import wandb, rich, pplmon"))
    assert "pytorch_lightning" in loaded("import pplmon; pplmon.PerplexityMonitor")
