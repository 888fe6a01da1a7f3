"""Four pictures of what a perplexity hides, drawn from the journal that examples/python_source.py left.

python examples/python_source_pictures.py
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from pplmon.sinks import read_journal

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"  # told apart by colour-blind eyes, too
Passes = list[dict[str, Any]]


def curve(axes: Axes, passes: Passes, name: str, label: str, color: str, style: str = "-", va: str = "center") -> None:
    """Draw a number of each pass over optimizer steps, with its name at its end."""
    points = [(row["step"], row["numbers"][name]) for row in passes if row["numbers"].get(name) is not None]
    axes.plot(*zip(*points), style, color=color, marker="o", ms=4)
    axes.annotate(label, points[-1], xytext=(6, 0), textcoords="offset points", va=va, color=color)
    axes.set(yscale="log", xlabel="optimizer step", xticks=[step for step, _ in points])
    axes.yaxis.set_major_formatter("{x:g}")


def by_position(numbers: dict[str, Any], head: str, tail: str) -> tuple[list[int], list[float]]:
    """Return where the parts of positions begin, and a number of each."""
    found = {
        int(name.removeprefix(head).split("/")[0]): value
        for name, value in numbers.items()
        if name.startswith(head) and name.endswith(f"/{tail}") and value is not None
    }
    return sorted(found), [found[start] for start in sorted(found)]


def names(axes: Axes, passes: Passes) -> None:
    """Perplexity as the product of structure and content."""
    axes.set_title("perplexity = structure × content: most of it is which name, not what kind of token")
    curve(axes, passes, "perplexity", "perplexity", GREY)
    curve(axes, passes, "content_perplexity", "content: which of its kind", ORANGE)
    curve(axes, passes, "structure_perplexity", "structure: what kind of token", BLUE)


def own_text(axes: Axes, passes: Passes) -> None:
    """The loss of the correct tokens, after correct and after generated ones."""
    numbers = passes[-1]["numbers"]
    axes.set_title("the same tokens cost more after the model's own text than after the correct one")
    for kind, label, color in (("", "after its own tokens", ORANGE), ("teacher_forced_", "after correct tokens", BLUE)):
        starts, losses = by_position(numbers, "free_running/position/", f"{kind}cross_entropy")
        places = list(range(len(starts)))
        axes.plot(places, losses, color=color, marker="o")
        axes.annotate(
            label, (places[-1], losses[-1]), xytext=(6, 0), textcoords="offset points", va="center", color=color
        )
        axes.set_xticks(places, [str(start) for start in starts])
    axes.set(xlabel="tokens generated before", ylabel="nats per token")


def sureness(axes: Axes, passes: Passes) -> None:
    """Accuracy beside the probabilities that are taken for it."""
    axes.set_title("accuracy is many times 1/perplexity, and near the probability of the model's first choice")
    curve(axes, passes, "mean_top_probability", "mean probability of the first choice", BLUE, "--", "bottom")
    curve(axes, passes, "token_accuracy", "accuracy", GREEN, va="top")
    curve(axes, passes, "mean_target_probability", "mean p(target)", GREY)
    curve(axes, passes, "inverse_perplexity", "1/perplexity", ORANGE)


def not_alike(axes: Axes, passes: Passes) -> None:
    """The cross-entropy of kinds of tokens, of domains and of names, old and new."""
    numbers = passes[-1]["numbers"]
    bars = [("all tokens", numbers["cross_entropy"], GREY)]
    bars += [("id that is new in its window", numbers["novel_cross_entropy"], ORANGE)]
    bars += [("id that has occurred", numbers["seen_cross_entropy"], ORANGE)]
    for head, color in (("class", BLUE), ("group", GREEN)):
        found = {
            name.split("/")[1]: numbers[name] for name in numbers if name.startswith(f"{head}/") and name.endswith("y")
        }
        kinds = {kind: numbers[f"{head}/{kind}/cross_entropy"] for kind in found if numbers[f"{head}/{kind}/tokens"]}
        bars += [(f"{head} {kind}", value, color) for kind, value in sorted(kinds.items(), key=lambda item: -item[1])]
    labels, values, colors = zip(*bars[::-1])
    axes.barh(labels, values, color=colors)
    axes.set_title("one mean stands for tokens that are anything but alike")
    axes.set(xlabel="nats per token")


def main() -> None:
    """Draw all pictures of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/python_source"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    passes = [row for row in read_journal(options.run) if row["kind"] == "report" and row["stage"] == "val"]
    pictures: dict[str, Callable[[Axes, Passes], None]] = {
        "beyond_names": names, "beyond_own_text": own_text, "beyond_sureness": sureness, "beyond_not_alike": not_alike,
    }  # fmt: skip
    for name, draw in pictures.items():
        figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
        draw(axes, passes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.25 if name != "beyond_not_alike" else 0.02)
        figure.savefig(options.out / f"{name}.png", dpi=80)
        print(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
