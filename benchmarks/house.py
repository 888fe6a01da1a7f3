"""Rooms, floors and arrows of the source tree, and the rooms that a logged window passes on its way from logits to a scalar.

    python -m benchmarks.house [--out result.json]

A room is a file or a folder with Python in it, directly under the root or under ``pplmon/``; tests and docs are left out. An arrow
is a pair of rooms of which one imports the other, wherever in its files; floors are the longest chain of arrows, with
``pplmon/__init__.py``, through which users come in, as one of them.

A window is followed through one warm optimizer step that measures a batch, judges and logs to TensorBoard: every call of, and every
return to, a function of ``pplmon/`` is a stop in that function's room. A change is a stop in another room than the one before.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import pplmon

ROOT = Path(__file__).resolve().parent.parent
DOOR = "pplmon"  # pplmon/__init__.py
INSIDE = str(Path(pplmon.__file__).parent) + os.sep
LEFT_OUT = {"tests", "docs", DOOR}
VOCAB, ROWS, LENGTH = 50, 4, 64
WARM = 4  # steps before the traced one


def rooms(root: Path) -> dict[str, list[Path]]:
    """Return the Python files of each room, and of the door."""
    found = {DOOR: [root / "pplmon/__init__.py"]}
    for entry in sorted([*root.iterdir(), *(root / "pplmon").iterdir()]):
        files = sorted(entry.rglob("*.py")) if entry.is_dir() else [entry] if entry.suffix == ".py" else []
        if files and entry.stem not in LEFT_OUT and not entry.name.startswith((".", "_")):
            found[entry.stem] = files
    return found


def arrows(files: dict[str, list[Path]]) -> set[tuple[str, str]]:
    """Return the pairs of rooms (the door among them) of which the first imports the second."""
    pairs = {(room, to) for room in files for path in files[room] for to in _imported(path, files)}
    return {(room, to) for room, to in pairs if room != to}


def _imported(path: Path, files: dict[str, list[Path]]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:  # a relative import would stay in its room
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for package, *rest in (name.split(".") for name in names):
            if package == DOOR:
                yield rest[0] if rest and rest[0] in files else DOOR
            elif package in files:
                yield package


def floors(pairs: set[tuple[str, str]]) -> int:
    """Return the length of the longest chain of arrows. A circle, which has none, is a ``ValueError``."""

    def height(room: str, above: tuple[str, ...] = ()) -> int:
        if room in above:
            raise ValueError(f"a circle of imports: {' → '.join([*above[above.index(room) :], room])}")
        return 1 + max((height(to, (*above, room)) for one, to in sorted(pairs) if one == room), default=0)

    return max((height(room) for room, _ in sorted(pairs)), default=0)


class Trail:
    """The rooms at which control stops between ``begin`` and ``end``."""

    def __init__(self) -> None:
        self.stops: list[str] = []

    def begin(self) -> None:
        """Follow every call from here on."""
        sys.setprofile(self._see)

    def end(self) -> None:
        """Follow no more."""
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, argument: object) -> None:
        room = _room(frame.f_code)
        if event == "call" and room is not None:
            self.stops.append(room)
        elif event == "return" and room is not None and (back := _caller(frame)) is not None:
            self.stops.append(back)

    def summary(self) -> dict[str, Any]:
        """Return the rooms that were entered, and how often the room changed."""
        changes = [room for room, _ in groupby(self.stops)]
        return {"rooms": len(set(changes)), "changes": max(len(changes) - 1, 0), "entered": sorted(set(changes))}


def _caller(frame: FrameType) -> str | None:
    """Return the room of the nearest caller within pplmon."""
    above = frame.f_back
    while above is not None and _room(above.f_code) is None:
        above = above.f_back
    return None if above is None else _room(above.f_code)


def _room(code: CodeType) -> str | None:
    """Return the room of a function of pplmon. A comprehension is none: from Python 3.12 on most are no functions."""
    if not code.co_filename.startswith(INSIDE) or code.co_name.endswith(("comp>", "genexpr>")):
        return None
    return Path(code.co_filename[len(INSIDE) :]).parts[0].removesuffix(".py")


def through_monitor(where: str) -> Trail:
    """Trace a step of a plain loop, and the read-out that logs its window."""
    torch.manual_seed(0)
    monitor = pplmon.Monitor(every_n_steps=1, sinks=[pplmon.sinks.TensorBoard(where)])
    logits, targets = torch.randn(ROWS, LENGTH, VOCAB), torch.randint(VOCAB, (ROWS, LENGTH))
    for _ in range(WARM):
        monitor.observe(logits, targets)
        monitor.step()
    trail = Trail()
    trail.begin()
    monitor.observe(logits, targets)
    monitor.step()  # takes in the window before, as every step does
    trail.end()
    monitor.close()
    return trail


def through_callback(where: str) -> Trail:
    """Trace a step of a Lightning ``Trainer`` that logs to TensorBoard."""
    import pytorch_lightning as pl

    from benchmarks.callback import Watched

    torch.manual_seed(0)
    trail = Trail()

    class Tracer(pl.Callback):
        """From before our callback's first hook of a step to that of the next one."""

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == WARM:
                trail.begin()
            elif batch_idx == WARM + 1:
                trail.end()

    ids = torch.randint(VOCAB, (ROWS * (WARM + 2), LENGTH + 1))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(ids), batch_size=ROWS)
    logger = pl.loggers.TensorBoardLogger(where)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    callbacks = [Tracer(), pplmon.PerplexityMonitor()]
    settings: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1, **quiet}
    pl.Trainer(logger=logger, callbacks=callbacks, **settings).fit(Watched(), data)
    return trail


TRAILS: dict[str, Callable[[str], Trail]] = {"Monitor": through_monitor, "PerplexityMonitor": through_callback}


def look(root: Path) -> dict[str, Any]:
    """Return every figure of the house."""
    files = rooms(root)
    pairs = arrows(files)
    with tempfile.TemporaryDirectory() as where:
        trails = {name: follow(where).summary() for name, follow in TRAILS.items()}
    return {
        "rooms": len(files) - 1,
        "floors": floors(pairs),
        "arrows": sum(DOOR not in pair for pair in pairs),
        "trails": trails,
        "room names": sorted(set(files) - {DOOR}),
        "arrow list": sorted(f"{one} → {to}" for one, to in pairs if DOOR not in (one, to)),
    }


def table(found: dict[str, Any]) -> Table:
    """Return the figures for the terminal."""
    shown = Table("", "", title="the house", show_header=False)
    for name in ("rooms", "floors", "arrows"):
        shown.add_row(name, str(found[name]))
    for name, trail in found["trails"].items():
        shown.add_row(f"rooms entered by a window, {name}", f"{trail['rooms']}: {', '.join(trail['entered'])}")
        shown.add_row(f"changes of room, {name}", str(trail["changes"]))
    return shown


def main(arguments: list[str] | None = None) -> None:
    """Look, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    found = look(ROOT)
    Console(width=max(Console().width, 110)).print(table(found))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
