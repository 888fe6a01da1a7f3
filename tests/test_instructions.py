"""The kernel's machine code stays within what an H200 can start while its memory brings the logits. Compiled, not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import instructions

ROOT = Path(__file__).parent.parent
# In the loop, per logit: what Triton 3.7 gives, and room for a version that gives a little more.
MOST = {("bf16", False): 9, ("fp16", False): 9, ("fp32", False): 10}
MOST |= {("bf16", True): 11.5, ("fp16", True): 11.5, ("fp32", True): 13}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the benchmark writes, from a process of its own, where Triton has compiled nothing yet."""
    pytest.importorskip("triton", reason="there is no Triton for this platform")
    if not Path(instructions.disassembler()).exists():
        pytest.skip("this package of Triton brings no disassembler")
    folder = tmp_path_factory.mktemp("instructions")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run(
        [sys.executable, "-m", "benchmarks.instructions", "--out", folder / "out.json"],
        env={**environment, "TRITON_CACHE_DIR": str(folder / "cache")},
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return list(json.loads((folder / "out.json").read_text())["rows"])


@pytest.mark.slow  # test_gpu_benchmark compiles two of the six, and looks at their loads
def test_the_loop_is_within_the_budget(rows: list[dict[str, Any]]) -> None:
    """Few instructions, one exponential and an eighth or a quarter per logit, wide loads, nothing that waits for others."""
    assert {(row["dtype"], row["entropy"]) for row in rows} == set(MOST)
    for row in rows:
        assert row["per_logit"] <= MOST[row["dtype"], row["entropy"]] < row["budget"]
        assert row["exp2_per_logit"] == (1.25 if row["dtype"] == "fp32" else 1.125) < row["exp2_budget"]
        assert row["barriers_and_shuffles"] == 0
        assert row["bytes_per_load"] == 16
        assert row["registers"] <= 64  # half of a multiprocessor's threads at least
        assert all(whole < row["budget"] for whole in row["per_logit_with_ends"].values())


@pytest.mark.slow
def test_the_budget_is_that_of_an_h200(rows: list[dict[str, Any]]) -> None:
    """15.6 instructions for each logit of two bytes, and twice that for four."""
    assert {row["dtype"]: round(row["budget"], 1) for row in rows} == {"bf16": 15.6, "fp16": 15.6, "fp32": 31.1}


def test_loops_loads_and_barriers_are_seen() -> None:
    """In code of our own: a loop within a loop, loads of three widths, one of them under a condition."""
    text = """
        /*0000*/                   S2R R1, SR_TID.X ;
    .L_x_1:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
    .L_x_0:
        /*0020*/              @!P0 LDG.E R8, desc[UR4][R2.64+0x800] ;
        /*0030*/                   LDG.E.U16 R8, desc[UR4][R2.64] ;
        /*0040*/               @P1 BRA `(.L_x_0) ;
        /*0050*/                   BRA `(.L_x_1) ;
        /*0060*/                   BRA `(.L_x_2) ;
    .L_x_2:
        /*0070*/                   EXIT ;
    """
    code = instructions.parse(text)
    assert len(code.instructions) == 8 and code.loops == [(2, 4), (1, 5)]
    assert instructions.loaded_bytes(code.instructions) == 16 + 4 + 2
