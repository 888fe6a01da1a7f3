"""Puts a page together: one HTML file that holds its styles, its scripts and its data, and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPTS = "data format view theme marks distribution readout chart control tokens keep main".split()
STYLES = "page charts evidence".split()


def render(content: Mapping[str, Any], data: str) -> str:
    """Return the page. ``content`` fills the template, which escapes it; ``data`` is JSON for the script."""
    from markupsafe import Markup

    scripts = _scripts()
    html: str = _template().render(
        **content,
        css=Markup(_styles()),  # noqa: S704 - our own files
        scripts=[Markup(script) for script in scripts],  # noqa: S704
        hashes=Markup(" ".join(map(_hash, scripts))),  # noqa: S704 - base64 in quotes
        data=Markup(data),  # noqa: S704 - script_json escapes it
    )
    return html


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(HERE / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html")


@cache
def _scripts() -> list[str]:
    """Return uPlot under its licence, and our own script: the browser runs these and no other (see the page's policy)."""
    licence = _read("uplot/LICENSE").replace("*/", "")
    ours = "\n".join(_read(f"static/{name}.js") for name in SCRIPTS)
    return [f"/*\n{licence}\n*/\n{_read('uplot/uPlot.iife.min.js')}", f'(() => {{\n"use strict";\n{ours}}})();\n']


@cache
def _styles() -> str:
    return "\n".join([_read("uplot/uPlot.min.css"), *(_read(f"static/{name}.css") for name in STYLES)])


def _read(name: str) -> str:
    text = (HERE / name).read_text(encoding="utf-8")
    assert not re.search(r"</(script|style)|<!--", text, re.IGNORECASE), f"{name} would end its element"
    return text


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
