"""``FreeRunningProbe``: measure the correct tokens while the model reads what it wrote itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from pplmon.measure.tokens import token_stats
from pplmon.monitor.probes.base import Ranks
from pplmon.monitor.probes.continuations import Continuations
from pplmon.monitor.probes.forward import Forward, device_of, evaluating, logits_of
from pplmon.monitor.probes.greedy import Continued, continue_greedily
from pplmon.report.checks import at_least
from pplmon.tally import TokenTally


class FreeRunningProbe:
    """A probe that measures the correct tokens while the model reads what it generated, beside the usual measurement.

    The last ``horizon`` tokens of each sequence are its correct continuation, the others its prompt. The model continues the
    prompt greedily, and at each position the correct token is scored twice: given the correct tokens before it
    (teacher-forced, as in every validation) and given the generated ones (free-running). Numbers are named
    ``free_running/…``; those by position have the first position of parts that double: 0, 1, 2, 4, 8, …

    Up to the first token that differs both are the same by definition: that part tells how long the model stays on the
    text. **After it** the correct token is scored in a text that it was not written for. A high loss there says that the model has
    left the text for good, not that what it writes is bad: any other good answer counts as one that left. Its trend
    over a run, and its distance from the teacher-forced loss on the same tokens, are what can be read.

    It needs nothing but forwards: all tokens are generated at once, and again, until none changes. This gives what
    generation token by token gives, in at most ``horizon`` forwards, fewer where all of a batch settle earlier. A Hugging Face model
    whose prompts are of one length generates with its cache instead, and one forward checks the result.

    Args:
        sequences: [S, L] integer ids, or a list of 1-dim ones of any lengths above ``horizon``; the same on every rank. Each
            rank runs its share of them.
        horizon: the tokens of each continuation.
        every_n_validations: run in every n-th validation pass, the first included; in every test pass.
        forward: ``forward(model, ids [B, T]) -> logits [B, T, V]``; ``None`` calls the model with ids alone.
        batch_size: sequences in a forward.
        max_forwards: the most forwards of a rank in one pass; ``None`` is what always suffices. Tokens that may still change
            when it is reached are left out, and counted as ``free_running/unsettled_tokens``.

    Raises:
        TypeError, ValueError: arguments that cannot work, told when it is made.
    """

    declares = Continuations.declares

    def __init__(
        self,
        sequences: Tensor | Sequence[Tensor] | Sequence[Sequence[int]],
        horizon: int = 32,
        every_n_validations: int = 1,
        forward: Forward | None = None,
        batch_size: int = 8,
        max_forwards: int | None = None,
    ) -> None:
        for name, value in (
            ("horizon", horizon),
            ("every_n_validations", every_n_validations),
            ("batch_size", batch_size),
        ):
            at_least(name, value)
        self.horizon, self.every_n_validations, self.batch_size = horizon, every_n_validations, batch_size
        self.forward = forward
        self._rows = [_check_row(row, horizon) for row in sequences]
        if not self._rows:
            raise ValueError("FreeRunningProbe needs at least one sequence, got none")
        batches = ceil(len(self._rows) / batch_size)
        self.max_forwards = batches * horizon if max_forwards is None else max_forwards
        at_least("max_forwards", self.max_forwards)
        if self.max_forwards < batches:
            raise ValueError(
                f"max_forwards={max_forwards} is less than one forward for each of {batches} batches "
                f"({len(self._rows)} sequences by {batch_size}); raise it, or batch_size, or give fewer sequences"
            )

    def due(self, number: int) -> bool:
        """Return True in the first validation pass, and in every n-th after it."""
        return (number - 1) % self.every_n_validations == 0

    def run(self, model: nn.Module, ranks: Ranks = Ranks()) -> TokenTally:  # noqa: B008 (it is immutable)
        """Run the model on this rank's share and return what was counted. Every rank makes as many forwards.

        Raises:
            RuntimeError: the model failed on some rank; raised on every rank, in the same round.
        """
        counted = TokenTally(ignore_index=None, top_k=1, extras=[Continuations()])
        batches = self._share(ranks)
        rounds = max(self.max_forwards // len(batches), 1)
        forwards = 0
        with evaluating(model):
            for rows in batches:
                found, real = self._continue(model, rows, rounds, ranks)
                forwards += found.forwards
                _count(counted, found, real, forwards)
        return counted

    def _share(self, ranks: Ranks) -> list[list[Tensor | None]]:
        """Return the batches of a rank: as many on each, ``None`` where it has no sequence left."""
        each = ceil(len(self._rows) / ranks.size)
        mine: list[Tensor | None] = list(self._rows[ranks.rank :: ranks.size])
        mine += [None] * (each - len(mine))
        return [mine[start : start + self.batch_size] for start in range(0, each, self.batch_size)]

    def _continue(
        self, model: nn.Module, rows: list[Tensor | None], rounds: int, ranks: Ranks
    ) -> tuple[Continued, Tensor]:
        device, real = device_of(model), [row is not None for row in rows]
        filled = [
            self._rows[0] if row is None else row for row in rows
        ]  # a rank without any runs one that is not counted
        ids = nn.utils.rnn.pad_sequence(filled, batch_first=True).to(device)
        starts = torch.tensor([len(row) - self.horizon for row in filled], device=device)
        failed: list[Exception] = []

        def run(ids: Tensor) -> Tensor:
            try:
                return logits_of(model, ids, self.forward)
            except Exception as error:
                failed.append(error)  # the other ranks must not wait for this one
                return torch.zeros(*ids.shape, 1, device=device)

        def unfinished(mine: bool) -> bool:
            others, failures = ranks.sums([int(mine), len(failed)])
            if failures:
                why = failed[0] if failed else f"{failures} of the other ranks failed"
                raise RuntimeError(f"FreeRunningProbe could not run the model: {why}") from (
                    failed[0] if failed else None
                )
            return others > 0

        alike = len({len(row) for row in filled}) == 1
        guess = _generated(model, self.horizon) if self.forward is None and alike else None
        found = continue_greedily(run, ids, starts, self.horizon, rounds, unfinished, guess)
        return found, torch.tensor(real, device=device)


def _count(tally: TokenTally, found: Continued, real: Tensor, forwards: int) -> None:
    """Add a batch to the tally; rows that only fill it are not scored."""
    correct = found.forced.targets.view(found.settled.shape)
    forced = found.forced.correct
    assert forced is not None
    stats = token_stats(found.logits, correct, ignore_index=None, mask=found.settled & real[:, None])
    tally.update(
        stats,
        forced_nll=found.forced.nll,
        forced_correct=forced,
        hits=found.generated == correct,
        settled=found.settled,
        real=real,
        forwards=torch.tensor(forwards),
    )


def _generated(model: Any, horizon: int) -> Callable[[Tensor], Tensor] | None:
    """Return a function that continues with the model's own ``generate`` and cache; ``None`` where it has none."""
    can = getattr(model, "can_generate", None)
    if can is None or not can() or not hasattr(model, "generate"):
        return None

    def guess(ids: Tensor) -> Tensor:
        prompt = ids[:, :-horizon]
        ends: dict[str, Any] = {"eos_token_id": None, "pad_token_id": 0}  # it must not stop, nor fill up
        how = {"max_new_tokens": horizon, "min_new_tokens": horizon, "do_sample": False, "num_beams": 1, **ends}
        written: Tensor = model.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
        return written[:, prompt.shape[1] :]

    return guess


def _check_row(row: Any, horizon: int) -> Tensor:
    ids = torch.as_tensor(row).detach().cpu()
    if ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(
            f"sequences must be [S, L] integer ids, or a list of 1-dim ones; one of them is {ids.dtype} {tuple(ids.shape)}"
        )
    if len(ids) <= horizon:
        raise ValueError(
            f"a sequence has {len(ids)} ids, but horizon={horizon} of them are the continuation and at least one is the prompt; "
            "give longer sequences, or a smaller horizon"
        )
    return ids.long()
