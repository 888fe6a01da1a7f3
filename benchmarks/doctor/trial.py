"""A trial: a set-up is diagnosed on its first batch, and on two and three of them, as a callback would go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.doctor.examples import Example, Size, examples, in_dtype
from benchmarks.doctor.mistakes import Cross, Given, Mistake
from pplmon.doctor import Finding, Loss, Observation, judge, measure

BATCHES = 3
InModel = tuple[str, Callable[[Example, Cross], Given]]
Alone = tuple[str, Callable[[], list[Given]]]
# Logits and loss: rounded to bf16 or not, and the loss of them in fp32, as transformers compute it, or in bf16.
PRECISIONS = {"fp32": (torch.float32, True), "bf16": (torch.bfloat16, True), "bf16 loss": (torch.bfloat16, False)}
UNDECIDED = {"several_fit", "low_precision_loss"}  # these ask for more, and name nothing else


@dataclass(frozen=True)
class Outcome:
    """What was said of a mistake."""

    mistake: str
    model: str
    trained: bool
    precision: str
    found_at: int  # the batch that its name was said at and stayed; 0: never
    misnamed_at: int  # the last batch that another name was said at; 0: never
    said: list[Finding]  # of all batches

    @property
    def sign(self) -> str:
        """Return one character: the batch, − where nothing was named, × where something else was to the end."""
        if self.found_at:
            return str(self.found_at)
        return "×" if self.misnamed_at == BATCHES else "−"


def observation(given: Given) -> Observation:
    measured = measure(
        given.logits, given.targets, given.shift, given.input_ids, given.attention_mask, given.ignore_index, given.mask
    )
    loss = None if given.loss is None else Loss.of(given.loss)
    return Observation(measured.facts(), loss, given.run, measured)


def findings(batches: Sequence[Given]) -> list[list[Finding]]:
    """Return the findings on the first batch, on the first two, and so on."""
    seen = [observation(given) for given in batches]
    return [judge(seen[:number], batches[0].ignore_index) for number in range(1, len(seen) + 1)]


def outcome(
    mistake: str, kinds: Sequence[str], model: str, trained: bool, precision: str, batches: Sequence[Given]
) -> Outcome:
    said = findings(batches)
    named = [any(f.kind in kinds for f in found) for found in said]
    other = [any(f.kind not in {*kinds, *UNDECIDED} for f in found) for found in said]
    found_at = len(named) - named[::-1].index(False) + 1 if False in named else 1
    misnamed_at = max((at for at, wrong in enumerate(other, 1) if wrong), default=0)
    return Outcome(mistake, model, trained, precision, found_at if named[-1] else 0, misnamed_at, said[-1])


def of_mistakes(models: Sequence[str], size: Size, seed: int, mistakes: Mapping[str, Mistake]) -> Iterator[Outcome]:
    """Yield the outcome of every mistake, planted in every model, fresh and trained, in every precision."""
    for model in models:
        for trained in (False, True):
            made = examples(model, size, seed, trained, BATCHES)
            for precision, (dtype, in_fp32) in PRECISIONS.items():
                rounded = [in_dtype(example, dtype) for example in made]
                for name, mistake in mistakes.items():
                    batches = [mistake.plant(example, Cross(in_fp32)) for example in rounded]
                    yield outcome(name, mistake.kinds, model, trained, precision, batches)


def of_right(
    models: Sequence[str], size: Size, seed: int, setups: Mapping[str, InModel], alone_ones: Mapping[str, Alone]
) -> Iterator[tuple[str, list[Finding]]]:
    """Yield each right set-up, in every model, state and precision, with all that was said of it, which should be nothing."""
    for name, (_, alone) in alone_ones.items():
        yield name, [f for found in findings(alone()) for f in found]
    for model in models:
        for trained in (False, True):
            made = examples(model, size, seed, trained, BATCHES)
            for precision, (dtype, in_fp32) in PRECISIONS.items():
                rounded = [in_dtype(example, dtype) for example in made]
                for name, (_, plain) in setups.items():
                    said = findings([plain(example, Cross(in_fp32)) for example in rounded])
                    yield (
                        f"{name}, {model}, {'trained' if trained else 'fresh'}, {precision}",
                        [f for x in said for f in x],
                    )
