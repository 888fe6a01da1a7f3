"""The site builds without a warning, has every page, and documents every name of its API page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material", reason='the site is built by pip install -e ".[docs]"')
pytest.importorskip("mkdocstrings")

ROOT = Path(__file__).parents[1]


def test_the_site_builds_with_every_page_in_it(tmp_path: Path) -> None:
    """As ``make docs`` builds it: a broken link or a name that is gone is an error."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= {path.parent.name for path in tmp_path.rglob("index.html")}
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [page for page in pages if f"{page}.md" not in nav]
    api = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    named = re.findall(r"^::: (pplmon\.\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(named) > 8
    assert not [name for name in named if f'id="{name}"' not in api]
