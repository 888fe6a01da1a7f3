"""Print the oldest version of each dependency that pyproject.toml states, as arguments of pip: what make test-oldest installs."""

from __future__ import annotations

import re

from tests.launch import ROOT

TRIED = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist")  # of those that tests need


def floors(text: str) -> list[str]:
    """Return "name==version" for each "name>=version" of the dependencies, and for what tests need."""
    needed = text.split("dependencies = [", 1)[1].split("]", 1)[0]
    pins = dict(re.findall(r'"([\w-]+)>=([\w.]+)', needed))
    pins |= {name: version for name, version in re.findall(r'"([\w-]+)>=([\w.]+)', text) if name in TRIED}
    return [f"{name}=={version}" for name, version in pins.items()]


if __name__ == "__main__":
    print(*floors((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
