"""The places beside a ``Trainer``'s own rows: the journal, the terminal, and alerts in its own W&B run or TensorBoard."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from pplmon.monitor.publish import Places
from pplmon.report.declared import known
from pplmon.report.log_keys import split_key
from pplmon.sinks import Console, Journal, Sink
from pplmon.sinks.dashboards import any_part
from pplmon.sinks.tensorboard import TensorBoard
from pplmon.sinks.wandb import WandB
from pplmon.trainers.hugging_face.facts import tag_of


class OwnPlaces(Places):
    """The directory that alert handlers write to, where the user named none."""

    def __init__(self, directory: str) -> None:
        self.log_dir = directory


class _Board(TensorBoard):
    """The writer of ``report_to="tensorboard"``: charts, texts and histograms, beside the scalars that the trainer writes."""

    def __init__(self, callback: Any, prefix: str) -> None:
        super().__init__(writer=callback.tb_writer)
        self._callback = callback
        self._own = (f"{prefix}train/", f"{prefix}val/", f"{prefix}test/")

    @property
    def writer(self) -> Any:
        """Return the writer, while the trainer has one: it closes it when training ends."""
        return self._callback.tb_writer or _Nowhere()

    def close(self) -> None:
        self.writer.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        super().scalars({tag: value for tag, value in values.items() if not tag.startswith(self._own)}, step)

    def tags(self, prefix: str, stage: str, name: str) -> str:
        # An evaluation under a prefix of its own, "mine_perplexity", is "train/mine_perplexity" there.
        heads = {"train": "train/", "val": "(?:eval/(?:[^/]+_)?|train/[^/]+_)", "test": "test/(?:[^/]+_)?"}
        # "structure_perplexity" is no perplexity of a data set named "structure"
        longer = [other.removesuffix(name) for other in known() if other.endswith(f"_{name}") and "/" not in other]
        others = "".join(f"(?<!{re.escape(f'/{words}')})(?<!{re.escape(f'_{words}')})" for words in longer)
        return rf"^{heads[stage]}{others}(?:pplmon/)?{re.escape(prefix)}{any_part(name)}$"


class _Nowhere:
    """A writer that writes nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class _Run(WandB):
    """The run of ``report_to="wandb"``: pictures, tables and best values, beside the numbers that the trainer logs."""

    def __init__(self, run: Any, prefix: str, heads: Mapping[str, str]) -> None:
        super().__init__(run=run)
        self._heads = heads
        self._own = (f"{prefix}train/", f"{prefix}val/", f"{prefix}test/")

    def row(self, values: Mapping[str, Any], step: int | None) -> None:
        kept = {k: v for k, v in values.items() if not (isinstance(v, (int, float)) and k.startswith(self._own))}
        if kept:
            super().row(kept, step)

    def key(self, key: str, part: str) -> str:
        found = split_key(key.removesuffix(f"/{part}"))
        head = None if found is None else self._heads.get(f"{found.stage}/{part}" if part else found.stage)
        return key if found is None or head is None else tag_of(f"{head}{found.prefix}{found.name}")


def sinks_beside(args: Any, prefix: str, callbacks: Sequence[Any], heads: Mapping[str, str]) -> list[Sink]:
    """Return what takes more than scalars, where the trainer's rows reach every target of ``report_to``.

    ``heads`` are what precedes a number in the keys of these rows, by the stage of a report.
    """
    targets = _targets(callbacks, prefix, heads)
    return [Journal(args.output_dir, prefix=prefix), *targets, _console(args, reports=False)]


def own_sinks(args: Any, prefix: str) -> list[Sink]:
    """Return the sinks of a callback that no trainer's rows are open to."""
    found: list[Sink] = [Journal(args.output_dir, prefix=prefix), _console(args, reports=True)]
    if "tensorboard" in args.report_to:
        found.append(TensorBoard(Path(args.output_dir) / "runs" / "pplmon"))
    return found


def _console(args: Any, reports: bool) -> Console:
    return Console(print=None if args.disable_tqdm else tqdm.write, reports=reports)


def _targets(callbacks: Sequence[Any], prefix: str, heads: Mapping[str, str]) -> list[Sink]:
    """Return the trainer's own W&B run and TensorBoard writer, which are open by now, on the rank that has them."""
    found: list[Sink] = []
    for callback in callbacks:
        name = type(callback).__name__
        if name == "TensorBoardCallback" and callback.tb_writer is not None:
            found.append(_Board(callback, prefix))
        run = getattr(sys.modules.get("wandb"), "run", None) if name == "WandbCallback" else None
        if run is not None:
            found.append(_Run(run, prefix, heads))
    return found
