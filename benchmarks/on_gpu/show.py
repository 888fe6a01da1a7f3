"""The results in one table of Markdown: the parts, the targets of docs/performance.md with what was found, then each part's tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

TRITON, ENTROPY, UPDATE = "pplmon triton", "pplmon triton, entropy", "pplmon TokenTally.update"
COMPILE = "torch.compile(F.cross_entropy(x.float()) + argmax)"
Row = dict[str, Any]


class Target(NamedTuple):
    """A promise, and what was found; ``found`` is None where it was not measured, ``met`` where nothing is promised."""

    what: str
    wanted: str
    found: str | None
    met: bool | None


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table of Markdown."""
    lines = [columns, ["-"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def targets(parts: dict[str, Row]) -> list[Target]:
    """Judge what the parts found."""
    found = {name: part.get("found", {}) for name, part in parts.items()}
    return [
        *_of_speed(found.get("speed", {}).get("rows", [])),
        *_of_launches(found.get("launches", {})),
        *_of_exactness(found.get("exactness", {})),
        *_of_ranks(found.get("nccl", {})),
        _of_training("a training step, percent more", 0.5, found.get("training", {}).get("step")),
        _of_training("a training step of 8 B, percent more", 0.1, found.get("training-8b", {}).get("step")),
        *_of_tests(found),
    ]


def _target(
    what: str,
    wanted: str,
    values: Sequence[float],
    worst: Callable[..., float],
    met: Callable[[float], bool],
    form: str,
) -> Target:
    if not values:
        return Target(what, wanted, None, met=False)
    value = worst(values)
    return Target(what, wanted, format(value, form), met(value))


def _of_speed(rows: list[Row]) -> list[Target]:
    def of(way: str, key: str, dtypes: str = "bfloat16 float32", whole: bool | None = None) -> list[float]:
        return [
            row[key] for row in rows
            if row["way"] == way and row["dtype"] in dtypes and (whole is None or (row["vocab"] % 8 == 0) == whole)
        ]  # fmt: skip

    times = {(row["vocab"], row["dtype"], row["way"]): row.get("all_ms") for row in rows}
    compiled = [
        statistics.median(b / a for a, b in zip(taken, times[vocab, dtype, COMPILE]))
        for (vocab, dtype, way), taken in times.items()
        if way == TRITON and (vocab, dtype, COMPILE) in times
    ]
    beyond = [(row["peak_bytes"] - 2**20) / row["tokens"] for row in rows if row["way"] == UPDATE]
    return [
        _target("bf16, over one read", "<= 1.15", of(TRITON, "over_floor", "bfloat16", whole=True), max, lambda x: x <= 1.15, ".3f"),
        _target("bf16 with entropy", "<= 1.2", of(ENTROPY, "over_floor", "bfloat16", whole=True), max, lambda x: x <= 1.2, ".3f"),
        _target("fp32, over one read", "<= 1.1", of(TRITON, "over_floor", "float32", whole=True), max, lambda x: x <= 1.1, ".3f"),
        _target("V % 8 != 0, over one read", "<= 1.5", of(TRITON, "over_floor", whole=False), max, lambda x: x <= 1.5, ".3f"),
        _target("a whole update, over one read", "-", of(UPDATE, "over_floor"), max, lambda x: None, ".3f"),
        _target("times as fast as torchmetrics", ">= 4", of(TRITON, "faster_than_torchmetrics"), min, lambda x: x >= 4, ".1f"),
        _target("times as fast as torch.compile", ">= 2", compiled, min, lambda x: x >= 2, ".1f"),
        _target("peak memory of an update, B a token, less 1 MiB", "<= 64", beyond, max, lambda x: x <= 64, ".1f"),
    ]  # fmt: skip


def _of_launches(found: Row) -> list[Target]:
    # An extra adds its own operators to the update, and a step its read-out.
    updates = [row for name, row in found.get("calls", {}).items() if "Entropy" not in name and "step" not in name]
    every = list(found.get("calls", {}).values())
    graph, beside = found.get("graph"), found.get("beside_the_step")
    in_time = None if beside is None else beside["right"] and beside["arrived_ms"] < beside["step_done_ms"] / 2
    shown = beside and f"arrived after {beside['arrived_ms']:.2f} ms, step done after {beside['step_done_ms']:.0f}"
    refused = None if not every else sum(bool(row["refused"]) for row in every)
    return [
        _target("launches of an update", "<= 6", [row["launches"] for row in updates], max, lambda x: 1 <= x <= 6, "d"),
        _target("waits of an update or a step", "0", [row["syncs"] for row in every], max, lambda x: x == 0, "d"),
        Target("calls refused where waits are errors", "0", None if refused is None else str(refused), refused == 0),
        _target("new device memory of a warm call", "0", [row["new_memory"] for row in every], max, lambda x: x == 0, "d"),
        Target("a CUDA graph's replays count right", "yes", graph and _yes(all(graph.values())), bool(graph and all(graph.values()))),
        Target("a read-out arrives while the step runs on", "yes", shown, bool(in_time)),
    ]  # fmt: skip


def _of_exactness(found: Row) -> list[Target]:
    rows, counting = found.get("tokens", []), found.get("counting")
    differing = None if counting is None else sum(bool(names) for names in counting.values())
    return [
        _target("error of a loss, of max(1, abs lse)", "<= 2e-6", [row["nll"] for row in rows], max, lambda x: x <= 2e-6, ".1e"),
        _target("wrong argmaxes or hits", "0", [row["wrong_ids"] for row in rows], sum, lambda x: x == 0, "d"),
        Target("batches that kernels and arrays count unlike", "0", None if differing is None else str(differing), differing == 0),
    ]  # fmt: skip


def _of_ranks(found: Row) -> list[Target]:
    nccl, two = found.get("nccl"), found.get("two_ranks_are_one")
    together = two and all(all(rank.values()) for rank in two)
    shown = (
        nccl
        and f"{_yes(nccl['right'])}: {nccl['collectives']} collectives, {nccl['bytes']} B, {nccl['ms_to_arrive']:.2f} ms"
    )
    return [
        Target("a read-out through NCCL is right", "yes, 2 collectives", shown, bool(nccl and nccl["right"] and nccl["collectives"] == 2)),
        Target("two ranks are one", "yes", two and _yes(together), bool(together)),
    ]  # fmt: skip


def _of_training(what: str, most: float, step: Row | None) -> Target:
    over = step and step["overhead"]
    shown = (
        over
        and step
        and f"{over['percent']:+.2f} ({over['low']:+.2f} to {over['high']:+.2f}), {step['parameters'] / 1e9:.1f} B"
    )
    return Target(what, f"<= {most}", shown, bool(over and over["percent"] <= most))


def _of_tests(found: dict[str, Row]) -> list[Target]:
    shown = []
    for name in ("tests", "kernel-tests"):
        outcomes = found.get(name, {}).get("outcomes")
        text = outcomes and ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        shown.append(
            Target(name, "all pass", text, bool(outcomes and not outcomes.get("failed") and outcomes.get("passed")))
        )
    return shown


def _verdict(target: Target) -> str:
    return "" if target.found is None or target.met is None else "met" if target.met else "MISSED"


def _yes(value: Any) -> str:
    return "yes" if value else "no"


def summary(result: Row) -> str:
    """Return the parts and the targets: what fits a screen."""
    about = result["machine"] or {}
    card = about.get("gpu") or ("a CPU: a dry run" if result["dry"] else "no GPU")
    where = f"{card}, torch {about.get('torch')}, Triton {about.get('triton')}, Python {about.get('python')}"
    parts = [
        [name, part["state"], f"{part['took_s']:.0f}", len(part.get("errors", []))]
        for name, part in result["parts"].items()
    ]
    judged = [
        [t.what, t.wanted, t.found or "not measured", "" if result["dry"] else _verdict(t)]
        for t in targets(result["parts"])
    ]
    return "\n\n".join([
        f"# make gpu\n\n{where}. {result['took_s']:.0f} of {result['limit_s']:.0f} s.",
        table(["part", "state", "s", "errors"], parts),
        table(["target", "wanted", "found", ""], judged),
    ])  # fmt: skip


def whole(result: Row) -> str:
    """Return all tables, the errors last."""
    pages = [summary(result)]
    for name, part in result["parts"].items():
        tables = [f"### {title}\n\n{text}" for title, text in part.get("tables", {}).items()]
        pages.append("\n\n".join([f"## {name}", part["what"] + ".", *tables]))
        pages += [f"- warned: {text}" for text in part.get("found", {}).get("warnings", [])]
        pages += [f"- failed at {error['step']}: {error['error']}" for error in part.get("errors", [])]
    return "\n\n".join(pages) + "\n"
