"""The figures of the house: rooms, floors and arrows of a small tree, and the rooms of a followed call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import house

FILES = {
    "setup.py": "",
    "docs/conf.py": "import pplmon.top",
    "tests/test_a.py": "import pplmon.top",
    "examples/loop.py": "import pplmon\nfrom pplmon import middle, Middle",
    "data/readme.txt": "import pplmon.top",
    "pplmon/__init__.py": "from pplmon.middle import Middle",
    "pplmon/base.py": "import math",
    "pplmon/middle/__init__.py": "from pplmon.middle.part import Middle",
    "pplmon/middle/part.py": "def lazily():\n    from pplmon.base import f\n    import pplmon.base",
    "pplmon/top.py": "from pplmon import Middle\nfrom pplmon.middle import part\nimport pplmon.base as base",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small tree."""
    for name, source in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path


def test_rooms_arrows_and_floors(root: Path) -> None:
    """An import counts wherever it stands; the package's door is a floor, and no room."""
    files = house.rooms(root)
    assert set(files) == {house.DOOR, "setup", "examples", "base", "middle", "top"}
    pairs = house.arrows(files)
    inner = {("middle", "base"), ("top", "middle"), ("top", "base"), ("examples", "middle")}
    assert pairs == inner | {(house.DOOR, "middle"), ("top", house.DOOR), ("examples", house.DOOR)}
    assert house.floors(pairs) == 4  # top, the door, middle, base


def test_a_circle_has_no_floors(root: Path) -> None:
    """It is shown, in place of a number."""
    (root / "pplmon/base.py").write_text("def f():\n    import pplmon.top")
    with pytest.raises(ValueError, match="a circle of imports: base → top → base"):
        house.floors(house.arrows(house.rooms(root)))


def test_a_window_is_followed_from_logits_to_a_scalar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a plain loop and by a ``Trainer``, to the sink, and the same each time."""
    house.main(["--out", str(tmp_path / "house.json")])
    found = json.loads((tmp_path / "house.json").read_text(encoding="utf-8"))
    for name, trail in found["trails"].items():
        assert {"tally", "monitor", "sinks"} <= set(trail["entered"])
        assert len(trail["entered"]) == trail["rooms"] < trail["changes"]
        assert house.TRAILS[name](str(tmp_path / name)).summary() == trail
    assert f"{found['rooms']}" in capsys.readouterr().out


def test_a_change_is_counted_there_and_back() -> None:
    """A call into another room and the return from it are two; comprehensions, and code that is not ours, are none."""
    trail = house.Trail()
    trail.stops = ["monitor", "monitor", "tally", "monitor", "monitor"]
    assert trail.summary() == {"rooms": 2, "changes": 2, "entered": ["monitor", "tally"]}
    assert house.Trail().summary() == {"rooms": 0, "changes": 0, "entered": []}
    assert house._room((lambda: None).__code__) is None
