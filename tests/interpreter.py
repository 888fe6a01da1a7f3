"""Triton programs without a GPU: a process of its own in which Triton interprets them.

Triton decides when it is first imported whether it compiles or interprets, and this process may need it to compile.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any
from unittest import mock

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call an importable ``function`` where Triton programs run: here with a GPU, else in the interpreter."""
    if DEVICE == "cuda":
        return function(*arguments, **named)
    # Pickled here: handed over as they are, tensors would travel through shared memory.
    return pickle.loads(_interpreter().submit(_call, pickle.dumps((function, arguments, named))).result())


def run_afresh(function: Callable[..., Any]) -> Any:
    """Call an importable ``function`` likewise, in a process that has imported no program yet."""
    with _start() as pool:
        return pool.submit(function).result()


@cache
def _interpreter() -> ProcessPoolExecutor:
    return _start()


def _start() -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with mock.patch.dict(os.environ, TRITON_INTERPRET=str(int(DEVICE == "cpu")), OMP_NUM_THREADS="1"):
        pool.submit(os.getpid).result()  # the process starts here, and inherits the variable
    return pool


def _call(packed: bytes) -> bytes:
    function, arguments, named = pickle.loads(packed)
    return pickle.dumps(function(*arguments, **named))
