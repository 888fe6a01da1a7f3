"""Everything that only a GPU can tell, in one command and at most eight minutes: ``make gpu PYTHON=python3``.

    python -m benchmarks.gpu [--limit 476] [--only speed tuning] [--out runs/gpu] [--dry]

It runs from a checkout with a Python that has PyTorch and Triton, installs nothing and needs no network. Each part (see
``benchmarks/on_gpu/plan.py``) is a process of its own with a limit of its own. Those that take no times run side by side; then those
that do, one by one. What a part has found is kept when it fails or is stopped; a part whose package is missing is left out by name.

``result.json`` is written anew whenever a part ends, ``table.md`` beside it at the end, and ``log.txt`` has what the parts
printed. The status is 1 where nothing ran, else 0: a target that is missed is a finding, no failure.

With ``--dry`` everything that needs no GPU: all parts, tiny, on a CPU, whose times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.plan import INTERPRETED, NO_DEVICE, PARTS, Part
from benchmarks.on_gpu.show import summary, whole

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "benchmarks.on_gpu.part"]
LIMIT_S, RESERVE_S = 476.0, 4.0  # of the whole; of it for the last words
LEAST_S = 12.0  # a part that has less is not begun
POLL_S = 0.1
STATES = {
    0: "done",
    1: "done, with errors",
    NO_DEVICE: "not begun: there is no CUDA device",
}
SHOWN = 2000  # characters of what a part printed that stand in the JSON


class Running:
    """A part under way."""

    def __init__(self, part: Part, seconds: float, folder: Path, dry: bool) -> None:
        self.part, self.begun, self._until = part, time.monotonic(), time.monotonic() + seconds
        self._found, self.log = folder / f"{part.name}.json", folder / f"{part.name}.log"
        command = [*COMMAND, part.name, str(self._found), f"{seconds:.1f}"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own module
                command + ["--dry"] * dry,
                cwd=ROOT,
                env=environment(part, dry),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what it starts can be ended with it
            )

    def over(self) -> bool:
        """True when it has ended, or its time is up."""
        return self._ended() or time.monotonic() > self._until

    def _ended(self) -> bool:
        # Not by poll(), after which its number may be another process's, and what it left behind could not be ended safely.
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end(self) -> dict[str, Any]:
        """End it, and return what it has kept."""
        by_itself = self._ended()
        status = kill(self.process)
        state = STATES.get(status, f"died with status {status}") if by_itself else "stopped at its limit"
        took = time.monotonic() - self.begun
        found = json.loads(self._found.read_text(encoding="utf-8")) if self._found.exists() else {}
        log = self.log.read_text(encoding="utf-8", errors="replace")
        shown = {} if state == "done" else {"log": log[-SHOWN:]}
        return {"state": state, "took_s": round(took, 1), "what": self.part.what, **shown, **found}


def kill(process: subprocess.Popen[bytes]) -> int:
    """End a process that was begun here, and all that it began; return its status."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def environment(part: Part, dry: bool) -> dict[str, str]:
    """Return the variables of a part's process: it finds pplmon in the checkout, and compiles without helpers."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    if dry:
        own |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        own |= {"TRITON_INTERPRET": "1"} if part.name in INTERPRETED else {}
    return {**os.environ, **own}


def side_by_side() -> int:
    """Return how many parts may run at once: half of the cores, but one where the card takes one process only."""
    command = ["nvidia-smi", "--query-gpu=compute_mode", "--format=csv,noheader"]
    try:
        mode = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        mode = "Default"
    return max(1, (os.cpu_count() or 1) // 2) if "Default" in mode else 1


def outcomes(
    parts: list[Part], until: float, width: int, folder: Path, dry: bool
) -> Iterator[tuple[Part, dict[str, Any]]]:
    """Yield each part with what became of it, as soon as it is known. Whatever happens, nothing runs on afterwards."""
    waiting, running = list(parts), list[Running]()
    try:
        while waiting or running:
            while waiting and len(running) < width and not (running and (waiting[0].alone or running[0].part.alone)):
                part = waiting.pop(0)
                seconds = min(part.seconds, until - time.monotonic())
                if reason := left_out(part, seconds):
                    yield part, {"state": reason, "took_s": 0.0, "what": part.what}
                else:
                    running.append(Running(part, seconds, folder, dry))
            for one in [one for one in running if one.over()]:
                running.remove(one)
                yield one.part, one.end()
            time.sleep(POLL_S)
    finally:
        for one in running:
            kill(one.process)


def left_out(part: Part, seconds: float) -> str:
    """Return why a part is not begun; nothing where it is."""
    if missing := part.missing():
        return f"left out: {', '.join(missing)} is not installed"
    return "left out: no time is left" if seconds < min(LEAST_S, part.seconds) else ""


def run(parts: list[Part], limit_s: float, out: Path, dry: bool) -> dict[str, Any]:
    """Run parts, and return all that was found; it is on the disk, too, as far as it has come, at any moment."""
    begun = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"limit_s": limit_s, "dry": dry, "machine": None, "took_s": 0.0, "parts": {}}
    ran = {}
    with tempfile.TemporaryDirectory() as folder, open(out / "log.txt", "w", encoding="utf-8") as log:
        width = side_by_side()
        for part, found in outcomes(parts, begun + limit_s - RESERVE_S, width, Path(folder), dry):
            print(f"{time.monotonic() - begun:5.0f} s  {part.name}: {found['state']}", flush=True)
            about = found.get("found", {}).pop("machine", None)
            result["machine"] = result["machine"] or about
            ran[part.name] = found
            result["parts"] = {p.name: ran[p.name] for p in parts if p.name in ran}
            result["took_s"] = time.monotonic() - begun
            (out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            printed = Path(folder) / f"{part.name}.log"
            log.write(
                f"==== {part.name}\n{printed.read_text(encoding='utf-8', errors='replace') if printed.exists() else ''}\n"
            )
    (out / "table.md").write_text(whole(result), encoding="utf-8")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run, print what fits a screen, and return the status."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds, all in all")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these parts")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="where result.json, table.md and log.txt go")
    parser.add_argument("--dry", action="store_true", help="without a GPU: all parts, tiny, on a CPU")
    options = parser.parse_args(arguments)
    if not find_spec("torch"):
        print(
            f"{sys.executable} has no torch: name a Python that has it, as in make gpu PYTHON=.venv/bin/python",
            file=sys.stderr,
        )
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was begun here is ended
    parts = [part for part in PARTS if part.name in options.only]
    for part in parts:
        print(f"{part.name}: {part.what}; at most {part.seconds:.0f} s{', alone' if part.alone else ''}")
    result = run(parts, options.limit, options.out, options.dry)
    print(f"\n{summary(result)}\n\nall tables: {options.out}/table.md")
    return 0 if any(part.get("tables") for part in result["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
