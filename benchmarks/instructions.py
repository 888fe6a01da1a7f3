"""Instructions per logit in the Triton kernel's loop, counted in machine code for an H200. No GPU is needed.

    python -m benchmarks.instructions [--out result.json]

The kernel is compiled for sm_90 and disassembled with what Triton's package brings. Counted is the loop that reads whole
blocks; all else runs once per row. A GPU that reads logits as fast as its memory gives them has a fixed number of
instructions to spend on each: below it a kernel can run at the memory's speed, above it it cannot. Nothing here is a
time: whether the memory's speed is reached, only a GPU tells.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from pplmon.measure.triton import launch as kernel

LANES_PER_S = 132 * 128 * 1.98e9  # an H200: multiprocessors, instructions that each can start in a clock, clocks
BYTES_PER_S = 4.3e12  # its memory, as a copy measures it
VOCABULARIES = (32000, 50257, 128256)
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
RUNTIME = {"logits": "*{}", "targets": "*i64", "mask": "*i1", "predicted": "*i64", "moved": "*i64"} | dict.fromkeys(
    ("correct", "scored", "invalid"), "*i1"
)
FLOATS = ("nll", "top_probability", "spread")


class Code(NamedTuple):
    """Machine code: instructions in order, and (first, last) of each loop."""

    instructions: list[str]
    loops: list[tuple[int, int]]


def compiled(dtype: torch.dtype, entropy: bool, lanes: int, warps: int) -> str:
    """Compile the program for sm_90 and return its disassembly."""
    import triton
    from triton.backends.compiler import GPUTarget

    from pplmon.measure.triton.program import measure_row

    constants = {"masked": True, "ignore_index": -100, "shift": 1, "entropy": entropy, "C": lanes}
    constants["K"] = kernel.CHUNK_BYTES // dtype.itemsize
    types = {name: "constexpr" if name in constants else "i32" for name in measure_row.arg_names}
    types |= dict.fromkeys(FLOATS, "*fp32") | {name: to.format(NAMES[dtype]) for name, to in RUNTIME.items()}
    source = triton.compiler.ASTSource(measure_row, types, constants)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [disassembler(), "-c", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own file
    return done.stdout


def disassembler() -> str:
    """Return the path of the nvdisasm that Triton's package brings."""
    import triton

    return str(Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm")


def parse(text: str) -> Code:
    """Find the instructions and the loops, which are jumps back."""
    labels: dict[str, int] = {}
    code = Code([], [])
    for line in map(str.strip, text.splitlines()):
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(code.instructions)
        elif found := re.match(r"/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
            jump = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", found[1])
            if jump and jump[1] in labels:
                code.loops.append((labels[jump[1]], len(code.instructions)))
            code.instructions.append(found[1])
    return code


def loaded_bytes(instructions: list[str]) -> int:
    """How many bytes one thread's loads bring, and how wide they are."""
    widths = {"128": 16, "64": 8, "U16": 2, "U8": 1}
    loads = [found[1].split(".") for text in instructions if (found := re.search(r"\b(LDG\S*)", text))]
    return sum(next((widths[part] for part in parts if part in widths), 4) for parts in loads)


def row(dtype: torch.dtype, entropy: bool) -> dict[str, object]:
    """Count for one way to compile the program: that of a long row."""
    size = dtype.itemsize
    lanes, warps = kernel.shape_of_program(max(VOCABULARIES) * size)
    code = parse(compiled(dtype, entropy, lanes, warps))
    loops = [code.instructions[first : last + 1] for first, last in code.loops]
    # The loop over whole blocks is the one that spends least on a logit; that over the ragged block has masks, too.
    loop = min((body for body in loops if "MUFU.EX2" in " ".join(body)), key=lambda b: len(b) / loaded_bytes(b))
    logits = loaded_bytes(loop) // size
    once = len(code.instructions) - len(loop)

    def of_row(vocab: int) -> float:
        rounds = vocab * size // (32 * warps * loaded_bytes(loop))
        return (rounds * len(loop) + once) * 32 * warps / vocab

    def per_logit(pattern: str) -> float:
        return sum(bool(re.search(pattern, text)) for text in loop) / logits

    registers = {int(number) for text in code.instructions for number in re.findall(r"\bR(\d+)\b", text)}
    return {
        "dtype": NAMES[dtype],
        "entropy": entropy,
        "per_logit": len(loop) / logits,
        "budget": LANES_PER_S / (BYTES_PER_S / size),
        "exp2_per_logit": per_logit(r"\bMUFU\.EX2\b"),
        "exp2_budget": LANES_PER_S / 8 / (BYTES_PER_S / size),  # 16 of them in a clock
        "barriers_and_shuffles": round(per_logit(r"\b(BAR|SHFL|WARPSYNC)") * logits),
        "bytes_per_load": loaded_bytes(loop) // sum("LDG" in text for text in loop),
        "registers": max(registers) + 1,
        "once_per_row": once,
        "per_logit_with_ends": {vocab: of_row(vocab) for vocab in VOCABULARIES},
    }


def table(rows: list[dict[str, object]]) -> Table:
    """Show the rows."""
    shown = Table(
        title="machine instructions per logit for sm_90 (SASS, counted, not run); budget: an H200 at 4.3 TB/s"
    )
    ends = [f"whole row, V={vocab}" for vocab in VOCABULARIES]
    names = ["logits", "entropy", "in the loop", "budget", "exp2", "budget", "barriers, shuffles", "load", "registers"]
    for column in [*names, *ends]:
        shown.add_column(column, justify="left" if column in ("logits", "entropy") else "right")
    for r in rows:
        numbers = [f"{r[name]:.2f}" for name in ("per_logit", "budget", "exp2_per_logit", "exp2_budget")]
        counts = [str(r["barriers_and_shuffles"]), f"{r['bytes_per_load']} B", str(r["registers"])]
        whole = [f"{value:.1f}" for value in r["per_logit_with_ends"].values()]  # type: ignore[attr-defined]
        shown.add_row(str(r["dtype"]), "yes" if r["entropy"] else "no", *numbers, *counts, *whole)
    shown.caption = "the same code whatever the stride and the alignment of a row"
    return shown


def main(arguments: list[str] | None = None) -> None:
    """Count, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    options = parser.parse_args(arguments)
    rows = [row(dtype, entropy) for dtype in NAMES for entropy in (False, True)]
    Console(width=max(Console().width, 150)).print(table(rows))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        about = {"machine": machine(), "triton": version("triton"), "target": "sm_90", "counted": "SASS"}
        options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
