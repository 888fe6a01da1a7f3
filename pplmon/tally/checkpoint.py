"""Save the names of a tally's integers beside its tensors in a ``state_dict``.

The names are a tensor, too: tools that read state dicts (safetensors, averages of checkpoints) expect tensors only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pplmon.extras import Measures
from pplmon.report import layout, saved
from pplmon.tally.records import State

KEY = "names"
EXTRA = ("extra_sums", "extra_maxima")


def names_of(extras: Sequence[Measures]) -> Tensor:
    """Return the version and all names, as the bytes of a JSON object [bytes] uint8."""
    sizes = saved.sizes_of(extras)
    names = {
        "version": saved.VERSION,
        "sums": layout.SUMS,
        "maxima": layout.MAXIMA,
        "extras": {name: size.sums for name, size in sizes.items()},
        "extra_maxima": {name: size.maxima for name, size in sizes.items()},
    }
    return torch.tensor(list(json.dumps(names).encode()), dtype=torch.uint8)


def translate(
    state_dict: dict[str, Any], prefix: str, own: State, empty: Mapping[str, Any], extras: Sequence[Measures]
) -> None:
    """Put a tally's integers in ``state_dict`` into this version's order; ``empty`` ones where it cannot be read."""
    note = state_dict.pop(prefix + KEY, None)
    given = [name for name in State._fields if prefix + name in state_dict]
    if not given:
        return
    names = {} if note is None else json.loads(bytes(note.tolist()))
    if not saved.is_readable(names.get("version")):
        state_dict.update({prefix + name: empty[name].clone() for name in State._fields})
        return

    def put(name: str, values: Sequence[int]) -> None:
        state_dict[prefix + name] = torch.tensor(values, dtype=torch.int64, device=getattr(own, name).device)

    with saved.reading() as reader:
        for name, wanted, missing in (("sums", layout.SUMS, 0), ("maxima", layout.MAXIMA, -1)):
            if name in given:
                values = state_dict[prefix + name].tolist()
                put(name, reader.ints(dict(zip(names[name], values, strict=True)), wanted, missing))
        if "extra_sums" in given:
            maxima = names.get("extra_maxima", {})
            sizes = {name: saved.Size(size, maxima.get(name, 0)) for name, size in names["extras"].items()}
            sums, largest = (state_dict[prefix + name].tolist() if name in given else [] for name in EXTRA)
            for name, values in zip(EXTRA, reader.extras(saved.by_extra(sums, largest, sizes), saved.sizes_of(extras))):
                put(name, values)
