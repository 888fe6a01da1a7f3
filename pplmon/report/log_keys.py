"""Split log keys: ``{prefix}{stage}/{name}``, with ``/dataloader_idx_{i}`` behind it for one of several loaders."""

from __future__ import annotations

import re
from typing import NamedTuple

from pplmon.report.declared import find

_LOADER = re.compile(r"/dataloader_idx_(\d+)$")
_STAGE = re.compile(r"(train|val|test)/")
_PLAIN = re.compile(r"(?P<prefix>.*?)(?P<stage>train|val|test)/(?P<name>[^/]+)", re.DOTALL)


class Key(NamedTuple):
    """The parts of one log key."""

    prefix: str
    stage: str
    name: str  # of the number, as a report has it
    loader: int | None  # which dataloader, where the key is one loader's own


def split_key(key: str) -> Key | None:
    """Return the parts of ``key``; ``None`` for a key of another form. A name with a "/" has to be declared by an extra."""
    found = _LOADER.search(key)
    loader, rest = (int(found[1]), key[: found.start()]) if found else (None, key)
    for stage in _STAGE.finditer(rest):
        name = rest[stage.end() :]
        if "/" in name and find(name) is not None:
            return Key(rest[: stage.start()], stage[1], name, loader)
    plain = _PLAIN.fullmatch(rest)
    return None if plain is None else Key(plain["prefix"], plain["stage"], plain["name"], loader)
