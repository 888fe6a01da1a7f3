"""Read the batches that ``pplmon doctor`` is to look at: from a file, or from a function of the user's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TENSORS = ("logits", "input_ids", "attention_mask")
TARGETS = ("targets", "labels", "target")
FILES = (".pt", ".pth", ".npz", ".safetensors")
HINT = (
    'a batch is a dict with "logits" and "targets" (or "labels"), and where you have them "loss", "input_ids", '
    '"attention_mask" and "shift"'
)
Batch = dict[str, Any]


def batches_of(source: str, most: int) -> list[Batch]:
    """Return the first batches of a file, or of a function that is named as ``module:function`` or ``file.py:function``.

    Raises:
        ValueError: there are none, or they have no targets. OSError, ImportError: it cannot be read, or made.
    """
    place = Path(source)
    if place.suffix in FILES and not place.is_file():
        raise ValueError(f"{source} does not exist; write it by torch.save; {HINT}")
    given = _from_file(place) if place.suffix in FILES else _from_function(source)
    found = [_named(source, batch) for batch in islice(_each(source, given), most)]
    if not found:
        raise ValueError(f"{source} gave no batch; {HINT}")
    return found


def _from_file(path: Path) -> Any:
    if path.suffix == ".npz":
        import numpy as np

        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise ImportError(f"to read {path} takes safetensors: pip install safetensors") from None
        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of pickle, zip and torch, which all have their own
        raise ValueError(
            f"{path} is no file of plain tensors ({type(error).__name__}); write it by torch.save of a dict of tensors"
        ) from None


def _from_function(source: str) -> Any:
    module, colon, name = source.rpartition(":")
    if not colon or not name:
        raise ValueError(
            f"{source!r} is neither a file ({', '.join(FILES)}) nor a function, as package.module:function"
        )
    found: Any = _module(module)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{module} has no {name!r}; name a function that returns or yields batches")
        found = getattr(found, part)
    return found() if isinstance(found, Callable) else found  # type: ignore[arg-type]


def _module(name: str) -> Any:
    if not name.endswith(".py"):
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, here)
        return importlib.import_module(name)
    path = Path(name).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"{name} is no file; name one that has the function")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # as if it were run as a script
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _each(source: str, given: Any) -> Iterator[Mapping[str, Any]]:
    """Yield single batches, whether one was given or several."""
    if isinstance(given, Mapping):
        yield given
    elif isinstance(given, Iterable) and not isinstance(given, (Tensor, str, bytes)):
        for batch in given:
            if not isinstance(batch, Mapping):
                raise ValueError(f"{source} gave a {type(batch).__name__} where a batch should be; {HINT}")
            yield batch
    else:
        raise ValueError(f"{source} gave a {type(given).__name__}; {HINT}")


def _named(source: str, batch: Mapping[str, Any]) -> Batch:
    """Return the arguments of ``diagnose`` that a batch has; one that ``SaveBatch`` wrote holds them under "batch"."""
    inner = batch["batch"] if isinstance(batch.get("batch"), Mapping) else batch
    targets = next((inner[name] for name in TARGETS if isinstance(inner.get(name), Tensor)), None)
    found: Batch = {name: inner[name] for name in TENSORS if isinstance(inner.get(name), Tensor)}
    if targets is None:
        raise ValueError(f"{source} has no targets, only {', '.join(map(repr, inner)) or 'nothing'}; {HINT}")
    return {**found, "targets": targets, "loss": inner.get("loss"), "shift": inner.get("shift")}
