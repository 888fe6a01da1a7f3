"""Numbers for the page's script: arrays as base64, and JSON that no markup can end."""

from __future__ import annotations

import base64
import json
import sys
from array import array
from collections.abc import Iterable
from typing import Any


def doubles(values: Iterable[float]) -> str:
    """Return numbers as little-endian float64 in base64: steps and tokens, which float32 would round."""
    return _base64(array("d", values))


def floats(values: Iterable[float]) -> str:
    """Return numbers as little-endian float32 in base64."""
    return _base64(array("f", values))


def script_json(value: Any) -> str:
    """Return ``value`` as JSON that may stand in a ``<script>``: text in it cannot end the element, or open a comment."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _base64(numbers: array[float]) -> str:
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()
