"""README and docs are true: every block runs, every command is one, and every file and test that they name is there."""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib
import re
import shlex
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import pplmon
from pplmon.report.answer import CommandError
from pplmon.report.declared import find
from pplmon.report.numbers import CATALOGUE, CORE
from tests.launch import run_script

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")

# What a block may take as given: a model, some data, a tokenizer. V = 32, T = 20.
PRELUDE = """
import torch, pplmon
from torch.nn.functional import cross_entropy
torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Embedding(32, 16), torch.nn.Linear(16, 32))
optimizer = torch.optim.AdamW(model.parameters())
batches = [(ids[:, :-1], ids[:, 1:]) for ids in torch.randint(32, (10, 4, 21))]
held_out = batches[:2]
input_ids = torch.randint(32, (4, 60))
logits = model(input_ids)
document_ids = torch.arange(60).expand(4, 60) // 30
is_answer = torch.arange(60).expand(4, 60) % 30 > 9
sample_ids = torch.arange(4)
class tokenizer:
    decode = staticmethod(lambda ids: " ".join(map(str, ids)))
hidden, head, targets = model[0](input_ids), torch.nn.Linear(16, 32, bias=False), input_ids.roll(-1, 1)
monitor = pplmon.Monitor(every_n_steps=1, alerts=[])
"""

# Packages that a block may show and that need not be installed. On a CPU their kernels are interpreted, not compiled.
OPTIONAL = {
    "accelerate": "accelerate",
    "cut_cross_entropy": "cut-cross-entropy",
    "datasets": "datasets",
    "liger_kernel": "liger-kernel",
    "lightning": "lightning",
    "transformers": "transformers",
    "trl": "trl",
}
INTERPRETED = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1"}

# The journal that a block reads: one report and one alert.
JOURNAL = """
from torch import rand
journal = pplmon.sinks.Journal("runs/a")
recorder = pplmon.Monitor(every_n_steps=2, sinks=[journal], alerts=[pplmon.Above("max_token_loss", 0.1)], decode=tokenizer.decode)
for inputs, targets in batches[:2]:
    recorder.observe(model(inputs), targets)
    recorder.step()
recorder.close()
"""


def blocks(language: str) -> list[Any]:
    """Every fenced block of a language, with a name for the test."""
    found_blocks = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, found.start()) + 1
            found_blocks.append(pytest.param(found[1], id=f"{page.name}:{line}"))
    return found_blocks


def commands() -> list[Any]:
    """Every line of every shell block, without its prompt and its comment."""
    lines = [line for block in (*blocks("bash"), *blocks("console")) for line in block.values[0].splitlines()]
    return [line.removeprefix("$ ").split(" #")[0].strip() for line in lines if line.strip()]


def optional(code: str) -> set[str]:
    """The optional packages that a block imports."""
    nodes = list(ast.walk(ast.parse(code)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names} & set(OPTIONAL)


def run_python(code: str, cwd: Path, **more: str) -> str:
    """Run code as a script in a process of its own, where pplmon's warnings are errors; return what it printed."""
    (cwd / "block.py").write_text(code, encoding="utf-8")
    done = run_script(str(cwd / "block.py"), cwd=cwd, timeout_s=280, afresh=bool(more), **more)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "pplmon: " not in done.stderr, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_there_are_blocks_to_run() -> None:
    """The search for blocks finds them, and knows every language that the pages use."""
    languages = [
        lang for page in PAGES for lang in re.findall(r"^```(\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert set(languages) <= {"python", "bash", "console"}
    assert len(blocks("python")) == languages.count("python") >= 6


def test_optional_packages_are_told_by_a_block_s_imports() -> None:
    """Only a block that imports one of them may be left out."""
    assert optional("import trl.kernels, torch\nfrom liger_kernel.x import y") == {"trl", "liger_kernel"}
    assert optional("import torch, pplmon\nname = 'trl'") == set()
    assert {name for block in blocks("python") for name in optional(block.values[0])} == set(OPTIONAL)


QUICK = ("README.md", "index.md")  # the pages that a newcomer reads first; the others' blocks take minutes
CODE = [
    block if block.id.startswith(QUICK) else pytest.param(*block.values, id=block.id, marks=pytest.mark.slow)
    for block in blocks("python")
]


# The pages that a newcomer copies from: each block has all that it uses.
WHOLE = ("index.md", "lightning.md", "plain-loop.md", "fabric.md", "accelerate.md", "hugging-face.md", "trl.md")


def lacking(code: str) -> set[str]:
    """The names that a script uses and nowhere makes."""
    nodes = list(ast.walk(ast.parse(code)))
    made = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    made |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    imported = [alias for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]
    made |= {(alias.asname or alias.name).split(".")[0] for alias in imported}
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    return used - made - set(dir(builtins))


@pytest.mark.parametrize("code", [block for block in blocks("python") if block.id.startswith(WHOLE)])
def test_a_block_of_a_page_to_begin_with_is_a_whole_script(code: str) -> None:
    """It takes no name as given."""
    assert lacking(code) == set()


def test_a_name_that_a_block_takes_as_given_would_be_seen() -> None:
    """Wherever it is used."""
    assert lacking("import a.b as c\nfor d in c: e = lambda f: f + g\ndef h(i): return print(i, j)") == {"g", "j"}


@pytest.mark.parametrize("code", CODE)
def test_a_python_block_runs(code: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """As it stands, or after the few names that the prelude gives it, in an empty directory."""
    needs = optional(code)
    for name in needs:
        if find_spec(name) is None:
            pytest.skip(f"this block shows {OPTIONAL[name]}, which is not installed")
    whole = "ByteModel" in code or request.node.callspec.id.startswith(WHOLE)
    prelude = "" if whole else PRELUDE + (JOURNAL if "read_journal" in code else "")
    observes = needs and "monitor.observe(" in code
    if observes:
        code += "\nmonitor.step()\nprint('tokens', monitor.close().tokens)\n"
    printed = run_python(prelude + code, tmp_path, **(INTERPRETED if needs else {}))
    assert not observes or re.search(r"^tokens [1-9]", printed, re.MULTILINE)
    if "sinks=sinks" in code:
        assert (tmp_path / "runs/a/pplmon.jsonl").is_file()
        assert list((tmp_path / "runs/a").glob("events.out.tfevents.*"))
        assert "step 4  train  cross-entropy" in printed
        assert "WorstToken(loss=" in printed
    if "trainer.fit" in code:  # the first block: it runs without the prelude
        assert "pplmon.jsonl" in {path.name for path in tmp_path.rglob("*")}
    if "read_journal" in code:  # each prints what it found in the journal of the prelude
        assert printed.strip() and "None" not in printed


def test_the_ten_lines_are_ten() -> None:
    """The first block stands alone, and is as short as its title says."""
    first = blocks("python")[0].values[0]
    lines = [line for line in first.splitlines() if line.strip()]
    assert "## Ten lines that work" in README
    assert len(lines) == 10


# Commands: each is checked in the cheapest way that can fail.


def _make(arguments: list[str]) -> None:
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = {"demo": "pplmon demo", "test": "pytest", "gpu": "benchmarks.gpu", "docs": "mkdocs"}[arguments[0]]
    assert wanted in done.stdout


def _pplmon(arguments: list[str]) -> None:
    from pplmon import cli

    options = vars(cli.parse(arguments))
    if arguments[0] == "demo":
        from pplmon.demo.plan import Plan

        Plan(
            **{k: v for k, v in options.items() if k not in ("answers", "command", "json")}
        )  # refuses what the demo would


def _tensorboard(arguments: list[str]) -> None:
    from tensorboard import default, program

    board = program.TensorBoard(plugins=default.get_plugins())
    board.configure(["tensorboard", *arguments])
    assert board.flags.samples_per_plugin["scalars"] > 1000  # its default may drop a spike


def _python(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        _benchmark(arguments[1], arguments[2:])
        return
    assert re.fullmatch(r"examples/\w+\.py", arguments[0])
    name = Path(arguments[0]).stem
    assert (ROOT / arguments[0]).is_file()
    assert f"def test_{name}(" in (ROOT / "tests/test_examples.py").read_text(encoding="utf-8")  # which runs it


def _benchmark(module: str, arguments: list[str]) -> None:
    """One of ours, whose own parser takes the flags; it goes no further."""

    class ParsedError(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def caught(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        parse(parser, *args, **kwargs)
        raise ParsedError

    assert re.fullmatch(r"benchmarks\.\w+", module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", caught)
        with pytest.raises(ParsedError):
            importlib.import_module(module).main(arguments)


def _pip(arguments: list[str]) -> None:
    assert arguments == ["install", "."]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'pplmon = "pplmon.cli:main"' in project
    for name in ("README.md", "LICENSE"):
        assert name in project and (ROOT / name).is_file()


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "make": _make,
    "pplmon": _pplmon,
    "tensorboard": _tensorboard,
    "python": _python,
    "pip": _pip,
}


@pytest.mark.parametrize("command", commands())
def test_a_command_is_one(command: str) -> None:
    """make knows the target, pplmon and tensorboard take the flags, and test_examples runs the example."""
    program, *arguments = shlex.split(command)
    CHECKS[program](arguments)


def test_a_wrong_command_would_be_seen() -> None:
    """The checks can fail."""
    for command in (
        "make demos",
        "pplmon demo --stepz 3",
        "pplmon demo --corrupt-step 9999",
        "tensorboard --logdir a --samples_per_plugins scalars=5",
        "python -m benchmarks.measure --vocabulary 5",
        "python -m benchmarks.measures",
    ):
        program, *arguments = shlex.split(command)
        with pytest.raises((AssertionError, CommandError, ImportError, KeyError, SystemExit, ValueError)):
            CHECKS[program](arguments)


# Facts.


def tree(text: str) -> set[str]:
    """The files that the tree of the README names; a folder stands for its ``__init__.py``."""
    (block,) = re.findall(r"^```\n(pplmon/ .*?)^```$", text, re.MULTILINE | re.DOTALL)
    files, folders = set(), [""]
    for line in block.splitlines():
        found = re.fullmatch(r"( *)(\w+(?:/|\.py)) {2,}(\S.*)", line)
        assert found, f"a line of the tree lacks its duty: {line!r}"
        depth, name = len(found[1]) // 2, found[2]
        folders[depth:] = [folders[depth - 1] + name if depth else name]
        files.add(folders[depth] + "__init__.py" if name.endswith("/") else folders[depth])
    return files


def test_the_tree_is_the_package() -> None:
    """Every module of pplmon stands in it, and nothing else."""
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pplmon").rglob("*.py")}
    assert tree(README) == package


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_and_files_exist(page: Path) -> None:
    """What is said to hold a promise is there."""
    text = page.read_text(encoding="utf-8")
    for file, name in re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", text):
        source = (ROOT / file).read_text(encoding="utf-8")
        defined = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
        assert not name or name in defined, f"{file}::{name}"
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / link).is_file(), link
        assert page.name == "README.md" or not link.startswith(".."), f"the site has no {link}"


def test_each_guarantee_has_its_test() -> None:
    """No row of the first table stands without a test."""
    rows = re.findall(r"^\| (.+) \| (`tests/\w+\.py::test_\w+`) \|$", README, re.MULTILINE)
    table = README.split("| what it guarantees | held by |")[1].split("\n\n")[0].strip().splitlines()
    assert len(rows) == len(table) - 1 >= 6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_text_are_ours(page: Path) -> None:
    """``pplmon.X`` in the text is importable, and a number in a log key or a rule is in the catalogue."""
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\bpplmon\.((?:sinks\.)?[A-Z]\w+|observe|token_stats|default_alerts)", text):
        thing: Any = pplmon
        for name in path.split("."):
            thing = getattr(thing, name)
    declared = set(re.findall(r"\bNumber\(\"([^\"]+)\"", text))  # by an extra that the page defines
    for name in re.findall(
        r"(?:train|val|test)/([a-z]\w+(?:/[a-z]+_[a-z]+)*)|\b(?:Above|Below|Spike)\(\"(\w+)\"", text
    ):
        known = next(filter(None, name))
        assert known in declared or find(known) is not None


def test_the_table_of_numbers() -> None:
    """The numbers that are logged by default, in their order, with their units."""
    section = README.split("## The numbers")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \|$", section, re.MULTILINE)
    assert rows == [(name, CATALOGUE[name].unit or "–") for name in CORE]
    assert f"logs {len(CATALOGUE)}," in section


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").glob("*.png")), ids=lambda picture: picture.name)
def test_a_picture_is_one(picture: Path) -> None:
    """A PNG, small enough for a clone, that some page shows."""
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert 20_000 < len(content) < 300_000
    assert any(f"{picture.name})" in page.read_text(encoding="utf-8") for page in PAGES)


def test_the_caption_of_the_picture_is_true() -> None:
    """It tells of the step that the demo corrupts."""
    from pplmon.demo.plan import BATCH, Plan

    assert f"Step {Plan().corrupted_step} trains on one sequence" in README
    assert BATCH == 16 and "among sixteen" in README


def test_each_method_of_a_monitor_that_a_page_calls_is_in_the_api() -> None:
    """A reader finds there what the pages name."""
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
    (listed,) = re.findall(r"^::: pplmon\.Monitor\n    options:\n      members: \[(.*)\]$", pages["api"], re.MULTILINE)
    called = {name for text in pages.values() for name in re.findall(r"\bmonitor\.(\w+)\(", text)}
    assert called >= {"observe", "log_grad_norm"}
    assert called <= set(listed.split(", "))
