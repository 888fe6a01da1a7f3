"""Keep pplmon's state in a file of its own in each ``checkpoint-N/`` of a ``Trainer``."""

from __future__ import annotations

import io
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from pplmon.monitor import Monitor

FILE_NAME = "pplmon.pt"


def save(state: dict[str, Any], args: Any, trainer_state: Any) -> None:
    """Write a state, which is the same on every rank, beside the checkpoint of this step, if that is still there."""
    folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{trainer_state.global_step}"
    if not trainer_state.is_world_process_zero or not folder.is_dir():
        return
    try:
        torch.save(state, folder / FILE_NAME)
    except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
        warnings.warn(
            f"pplmon: {folder / FILE_NAME} could not be written ({error}): a run that is resumed from there counts anew. Training "
            "goes on.",
            RuntimeWarning,
            stacklevel=2,
        )


def load(resumes_from: Any, args: Any, monitor: Monitor) -> Any:
    """Return the state beside the checkpoint that the trainer was told to resume from, ``None`` without one.

    Every rank calls it, and gets the state that the first rank found: only one wrote it, maybe to a disk of its own.
    """
    packed = monitor.from_first(partial(_read, resumes_from, args))
    return torch.load(io.BytesIO(packed), weights_only=True) if packed else None


def _read(resumes_from: Any, args: Any) -> bytes:
    """Return the file, empty where there is none that can be read."""
    folder = get_last_checkpoint(args.output_dir) if resumes_from is True else resumes_from  # type: ignore[no-untyped-call,unused-ignore]
    path = Path(folder or "") / FILE_NAME
    if not folder or not path.is_file():
        return b""
    try:
        packed = path.read_bytes()
        torch.load(io.BytesIO(packed), weights_only=True)
    except Exception as error:
        warnings.warn(
            f"pplmon: {path} cannot be read ({type(error).__name__}): counts and rules begin anew at this step.",
            RuntimeWarning,
            stacklevel=2,
        )
        return b""
    return packed
