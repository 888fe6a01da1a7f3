"""Find the reader for a path, and read it as a series."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pplmon.replay.read.columns import Place
from pplmon.replay.read.reader import Reader, readers
from pplmon.replay.read.series import ReplayError, Series


def read(
    path: str | Path, mapped: Mapping[str, Place] | None = None, step: str | None = None, run: str | None = None
) -> Series:
    """Read a run from its file or its directory.

    Args:
        path: a journal, a TensorBoard directory or event file, a W&B offline run or its ``.wandb`` file, or a CSV file.
        mapped: column -> (stage, name), for columns with names that pplmon does not know.
        step: the column that counts optimizer steps; ``None`` finds it.
        run: the name of a run in a journal that holds several; ``None`` takes the last.

    Raises:
        ReplayError: there is nothing to read, or needed columns are missing.
    """
    reader, found = locate(Path(path))
    if run is not None and not mapped and step is None:
        return reader.read_run(found, run)
    return reader.read(found, mapped or {}, step)


def locate(path: Path) -> tuple[Reader, Path]:
    """Return the reader for a path, and the path that it reads: a file, or TensorBoard's directory.

    Raises:
        ReplayError: no reader fits, or several do.
    """
    known = readers()
    if not path.exists():
        files = ", ".join(reader.pattern for reader in known)
        raise ReplayError(f"{path} does not exist; give a run's directory or file ({files})")
    if path.is_file():
        reader = next((reader for reader in known if reader.matches(path)), None)
        if reader is None:
            *others, last = (reader.expects for reader in known)
            raise ReplayError(f"{path} is of no known kind: expected {', '.join(others)} or {last}")
        return reader, path
    for within in ("", "**/"):  # what lies in the directory itself, else below it
        for reader in known:
            places = sorted({reader.place(file) for file in path.glob(within + reader.pattern)})
            if len(places) == 1:
                return reader, places[0]
            if places:
                some = "".join(f"\n  {place}" for place in places[:8]) + ("\n  …" if len(places) > 8 else "")
                raise ReplayError(f"{path} holds {len(places)} runs ({reader.kind}); give one of them:{some}")
    files = ", ".join(reader.pattern for reader in known)
    raise ReplayError(f"{path} holds none of {files}, at any depth; give a run's directory, or a .csv file by its name")
