"""Compiles the kernels of ``pplmon.tally.count.triton.launch`` for GPUs that need not be here, and prints their names."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pplmon.tally.count.triton.launch import close_sequences, count, cut, finish

ARCHITECTURES = (90, 80)
FLOATS, MASKS = ("nll_", "top_"), ("scored_", "invalid_", "crosses_", "correct_", "valid_", "crosses")
SCALARS = dict.fromkeys(("length", "tokens", "vocab", "table", "least", "missing", "rank", "of_tokens"), "i32")
SCALARS |= {"step": "i32", "micro_batch": "i32", "uniform": "fp32"}
NUMBERS = {"K": 8, "C": 24, "C_SEQUENCE": 6, "TWICE": 16, "WIDE": 32, "WIDTH": 1024, "CONTEXT": 8, "SHIFT": 1}


def signature(kernel: Any) -> tuple[dict[str, str], dict[tuple[int, ...], Any]]:
    """The types of the arguments, with everything on that a batch may bring, and the compile-time values."""
    types, values = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name.isupper():
            types[name], values[(place,)] = "constexpr", NUMBERS.get(name, True)
        elif name in FLOATS:
            types[name] = "*fp32"
        elif name in MASKS:
            types[name] = "*u8"
        elif name == "sequences" or (name == "of_sequences" and kernel is finish):
            types[name] = "i32"
        else:
            types[name] = SCALARS.get(name, "*i64")
    return types, values


for architecture in ARCHITECTURES:
    for kernel in (cut, count, close_sequences, finish):
        types, values = signature(kernel)
        source = ASTSource(kernel, types, constexprs=values)
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
        assert "cubin" in compiled.asm
        print(kernel.__name__)
