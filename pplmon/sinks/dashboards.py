"""The charts of a run, in reading order: the one list that every dashboard is made from."""

from __future__ import annotations

from dataclasses import dataclass

# What a line is called in a legend, in a few words. A number that is not here goes by its own name.
LABELS = {
    "cross_entropy": "mean",
    "token_loss_p50": "median",
    "token_loss_p99": "99th percentile",
    "max_token_loss": "worst token",
    "max_sequence_loss": "worst sequence",
    "perplexity": "perplexity",
    "token_accuracy": "token accuracy",
    "mean_target_probability": "mean p(target)",
    "inverse_perplexity": "1 / perplexity",
    "worst_1pct_share": "share of the worst 1 %",
    "nonfinite_tokens": "non-finite tokens",
    "structure_perplexity": "structure",
    "content_perplexity": "content",
    "calibration_error": "calibration error",
    "overconfidence": "overconfidence",
    "novel_cross_entropy": "new in their sequence",
    "seen_cross_entropy": "seen there before",
    "novel_share": "new in their sequence",
    "seen_share": "seen there before",
    "rollout_match_1": "1 token",
    "rollout_match_2": "2 tokens",
    "rollout_match_4": "4 tokens",
    "rollout_match_8": "8 tokens",
    "rollout_match_16": "16 tokens",
    "mean_hit_run": "tokens in a row",
    "free_running/cross_entropy": "after its own tokens",
    "free_running/teacher_forced_cross_entropy": "the same after correct ones",
}

# Curves that count what happened: they stand first, because no sampling, smoothing or clipped axis hides a step of theirs.
COUNTS = {"alerts_total": "Alerts so far", "notices_total": "Notices so far"}
LOSSES = "token_loss"  # the histogram of a window's tokens, in places that draw histograms
HEATMAP = "alert_text"  # the text around an alert's worst tokens, in places that show HTML
WORST = "worst_of_run"  # the text around the worst tokens of the run, as text or HTML
TABLES = ("worst_tokens", "worst_sequences")  # of the run, in places that keep tables


@dataclass(frozen=True)
class Chart:
    """Numbers that are read together."""

    key: str  # a short name, for links and ids
    title: str
    names: tuple[str, ...]  # of numbers, as they are declared; what is to be seen first comes first
    stages: tuple[str, ...] = ("train",)
    unit: str = ""
    meaning: str = ""  # how to read it, in one sentence
    band: tuple[str, str] | None = None  # the lower and the upper of two numbers that hold the others between them
    logarithmic: bool = False  # its values span orders of magnitude
    only_above_zero: bool = False  # nothing is to be seen while all values are 0


def any_part(name: str) -> str:
    """Return the regular expression of a number: with any text in place of the part in braces."""
    return "/".join("[^/]+" if part.startswith("{") else part for part in name.split("/"))


CHARTS = (
    Chart(
        key="loss",
        title="Token loss",
        names=("max_sequence_loss", "max_token_loss", "token_loss_p99", "cross_entropy", "token_loss_p50"),
        unit="nats",
        meaning="One corrupted sequence lifts its own line and hardly the mean; a run that diverges lifts the median, too.",
        band=("token_loss_p50", "token_loss_p99"),
    ),
    Chart(
        key="perplexity",
        title="Perplexity",
        names=("perplexity",),
        stages=("train", "val"),
        meaning="exp(mean loss), on a logarithmic axis: lower is better; val above train and rising is overfitting.",
        logarithmic=True,
    ),
    Chart(
        key="accuracy",
        title="Accuracy and probability of the target",
        names=("token_accuracy", "mean_target_probability", "inverse_perplexity"),
        meaning="How often the first guess is right, how probable targets are on average, and their geometric mean.",
    ),
    Chart(
        key="tail",
        title="Share of the worst 1 % of tokens in the loss",
        names=("worst_1pct_share",),
        stages=("train", "val"),
        meaning="A leap means that few tokens make the loss: look at the worst tokens, not at the mean.",
    ),
    Chart(
        key="nonfinite",
        title="Non-finite tokens",
        names=("nonfinite_tokens",),
        stages=("train", "val"),
        unit="count",
        meaning="Tokens whose loss is NaN or infinite: anything above 0 is broken.",
        only_above_zero=True,
    ),
)

# How many tokens have which loss, one column a window, from a report's histogram; its lines lie upon it.
DISTRIBUTION = Chart(
    key="distribution",
    title="Loss of all tokens over time",
    names=("token_loss_p99", "token_loss_p50"),
    unit="nats",
    meaning="The stronger the colour, the more tokens have that loss; a spike is a few tokens far above the others.",
)

# Of numbers that are there only where their extra or probe is: of each part of the tokens one line.
EXTRAS = (
    Chart(
        key="groups",
        title="Loss of each group",
        names=("group/{name}/cross_entropy",),
        stages=("train", "val"),
        unit="nats",
        meaning="A group that rises while the others fall is what the mean of all hides.",
    ),
    Chart(
        key="classes",
        title="Loss of each class of tokens",
        names=("class/{name}/cross_entropy",),
        stages=("train", "val"),
        unit="nats",
        meaning="The mean loss of the tokens whose target is in a class.",
    ),
    Chart(
        key="structure",
        title="Perplexity of structure and content",
        names=("structure_perplexity", "content_perplexity"),
        stages=("train", "val"),
        meaning="Which class comes next, and which token of that class: their product is the perplexity.",
        logarithmic=True,
    ),
    Chart(
        key="positions",
        title="Loss by position in the sequence",
        names=("position/{from}/cross_entropy",),
        stages=("train", "val"),
        unit="nats",
        meaning="Each line begins at that position, and ends at twice that: with more context the loss is lower.",
    ),
    Chart(
        key="novelty",
        title="Loss of new and of repeated tokens",
        names=("novel_cross_entropy", "seen_cross_entropy"),
        stages=("train", "val"),
        unit="nats",
        meaning="A token that its sequence has not had yet, such as a new name, is a freer choice than one that it has.",
    ),
    Chart(
        key="novelty_share",
        title="Share of new and of repeated tokens",
        names=("novel_share", "seen_share"),
        stages=("train", "val"),
        meaning="This is of the text, not of the model: it stays as it is while the data are the same.",
    ),
    Chart(
        key="rollouts",
        title="Greedy tokens that are right",
        names=("rollout_match_1", "rollout_match_2", "rollout_match_4", "rollout_match_8", "rollout_match_16"),
        stages=("train", "val"),
        meaning="How often greedy generation from the correct text gives its next tokens, all of them.",
    ),
    Chart(
        key="hit_run",
        title="Greedy tokens until the first miss",
        names=("mean_hit_run",),
        stages=("train", "val"),
        unit="tokens",
        meaning="How many tokens greedy generation from the correct text gets right in a row, on average.",
    ),
    Chart(
        key="calibration",
        title="Calibration",
        names=("calibration_error", "overconfidence"),
        stages=("train", "val"),
        meaning="How far the model's probabilities are from how often it is right; overconfidence above 0 is surer than right.",
    ),
    Chart(
        key="free_running",
        title="Loss after the model's own tokens",
        names=("free_running/cross_entropy", "free_running/teacher_forced_cross_entropy"),
        stages=("val",),
        unit="nats",
        meaning="The distance of the lines is what a model loses by going on from its own output in place of correct text.",
    ),
)
