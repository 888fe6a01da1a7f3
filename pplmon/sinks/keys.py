"""Log keys, read back: ``{prefix}{stage}/{name}``, with ``/dataloader_idx_{i}`` behind it where there are several."""

from __future__ import annotations

import re
from typing import NamedTuple

_KEY = re.compile(
    r"(?P<prefix>.*?)(?P<stage>train|val|test)/(?P<name>[^/]+)(?:/dataloader_idx_(?P<loader>\d+))?", re.DOTALL
)


class Key(NamedTuple):
    """The parts of one log key."""

    prefix: str
    stage: str
    name: str  # of the number: what the catalogue calls it
    loader: int | None  # which dataloader, where the key is one loader's own


def split_key(key: str) -> Key | None:
    """Return the parts of ``key``; ``None`` for a key of another form, such as an extra's with a "/" in its name."""
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    loader = found["loader"]
    return Key(found["prefix"], found["stage"], found["name"], None if loader is None else int(loader))
