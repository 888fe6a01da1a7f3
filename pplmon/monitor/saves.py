"""Save everything that a resumed run needs, and restore it on any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pplmon.extras import Measures
from pplmon.monitor.readouts import Engine
from pplmon.report import saved
from pplmon.report.totals import Totals
from pplmon.tally import Doing, TokenTally


class Saves(Engine):
    """Saves and restores the open window, what is not read out yet, the states of the rules and the run's counts."""

    def mark_batch(self, empty: bool) -> None:
        """Remember what was counted before the micro-batch that begins; ``empty`` if that is known to be nothing."""
        resumes = self._resumed_at == self._step  # the tally holds what a loaded state had not read out
        self._before_batch.mark(self._link.tally, empty and not resumes)

    def state_dict(self, without_batch: bool = False) -> dict[str, Any]:
        """Return everything that a resumed run needs, as plain values. Every rank calls it, and gets the same.

        After ``abandon`` nothing is sent, and the state has merged totals only: the interrupted step will be repeated.
        ``without_batch`` leaves out the micro-batch under way, because the trainer will repeat it.
        """
        self.collect()
        doing = Doing("checkpoint", step=self.last_step)
        votes = self._shifts.votes("train", final=True)
        unread = self._link.whole(self._not_read_out(without_batch), doing._replace(votes=votes))
        released = self._shifts.released_at_checkpoint(self._link.votes)
        if released is not None:
            for taken in released:
                self._take_in(taken)
            unread = self._link.whole(self._not_read_out(without_batch), doing)
        self._see_loss()
        self._delivery.flush()
        return self._state(self._name(), unread.silent(), self._link.gather(self._windows.window))

    def _not_read_out(self, without_batch: bool) -> TokenTally:
        """Return the tally that holds what no read-out has: of closed micro-batches only, where the trainer repeats the last."""
        if without_batch and not self._abandoned:
            return self._before_batch.tally
        return self._link.pattern if self._link.clearing else self._link.tally

    def closed_state(self) -> dict[str, Any]:
        """Return the state of a run that was closed, for one that goes on in this process. Nothing is sent."""
        return self._state(self._run, Totals(), self._windows.window)

    def _state(self, name: str | None, unread: Totals, window: Totals) -> dict[str, Any]:
        return {
            "version": saved.VERSION,
            "run": name,
            "step": self._step,
            "micro_batch": self._micro_batch,
            "unread": unread.state_dict(),
            "judge": self._judge.state_dict(),
            **self._windows.state_dict(window),
        }

    def _name(self) -> str | None:
        """Return the name of the run in the journal, which the writing rank tells the others the first time."""
        if not self._named and self._run is not None and self.ranks > 1:
            (number,) = self._link.sum([int(self._run, 16) if self.writes else 0], self.last_step)
            self._run = f"{number:08x}"
        self._named = True
        return self._run

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state, on any number of ranks: nothing is lost or counted twice. Every rank loads the same."""
        if not saved.is_readable(state.get("version")):
            return
        pattern = self._link.pattern
        first = self._link.home.rank == 0
        with saved.reading() as reader:

            def read(extras: tuple[Measures, ...], part: Mapping[str, Any]) -> Totals:
                return Totals.from_state_dict(part, extras, reader).fitted(pattern.top_k, pattern.context)

            totals_of = partial(read, pattern.extras)
            self._windows.load_state_dict(state, totals_of, partial(read, self._pass_pattern.extras), first)
            unread = totals_of(state["unread"])
        self._judge.load_state_dict(state["judge"])
        self._step, self._micro_batch = state["step"], state["micro_batch"]
        self._run, self._named = state.get("run"), True  # an old state has no name
        # The journal needs the states of the rules at this point, for replays.
        self._resumed_at, self._started = self._step, False
        if first:
            self._link.tally.add_totals(unread)
            self._link.numbers.restore(unread.own, self._step)
