"""``pplmon.Monitor``: the monitor of a loop of one's own, which can take logits and labels from a hook on the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import nn

from pplmon.monitor import Monitor as PlainMonitor
from pplmon.monitor.evaluation import Pass
from pplmon.report.report import Report
from pplmon.trainers.capture import Targets
from pplmon.trainers.loop.hook import Hook

if TYPE_CHECKING:
    from typing_extensions import Self


class Monitor(PlainMonitor):
    """Watches a training loop: ``observe`` every micro-batch, ``step`` every optimizer step, ``close`` at the end.

    A ``hook`` on the model takes the place of ``observe``, and ``with pplmon.Monitor(…) as monitor`` that of ``close``.

    Args:
        every_n_steps: optimizer steps in a logged window.
        judge_every_n_steps: optimizer steps between two read-outs, at which the rules judge.
        numbers: "core", "all" or a list of names: what is logged.
        prefix: put before every log key, ``{prefix}{stage}/{name}``.
        tally: the pattern that is cloned for each stage.
        sinks: the places to show numbers and alerts (see ``pplmon.sinks``); used on the first rank of the group only.
        alerts: rules ``Report -> Alert | None``; ``None`` takes ``default_alerts()``, ``[]`` is off.
        on_alert: one callable or several, ``Alert -> None``, called on the first rank of the group.
        decode: ids -> str, to show the text around a worst token.
        reference: the journal of an earlier run on the same data, or its directory, read by the first rank: alerts say what
            both show (*data*) and what only this run does (*model*).
        grad_norm: ``log_grad_norm`` is called before each optimizer step: makes room for it, and adds a rule to the default set.
        min_severity: "info", "warning" or "critical": what ``on_alert`` and W&B's own alerts hear of. What is below is a
            notice: in the journal, marked in the loggers, a line on the console.

    Raises:
        ValueError: a cadence below 1, or an unknown name. Also at the first read-out, on every rank, if there were
            targets outside the vocabulary (the counts are kept). Later ones are an alert.
    """

    _hook: Hook | None = None

    def hook(
        self,
        model: nn.Module,
        logits: str | None = None,
        targets: Targets | None = None,
        shift: bool | None = None,
        recompute_logits: bool = False,
    ) -> Self:
        """Count every call of ``model`` that is given its targets, from here on, in place of ``observe``; return the monitor.

        Args:
            model: a Hugging Face model, or any module whose ``forward`` takes ``labels`` or ``targets`` and returns logits:
                alone, as ``.logits`` or ``["logits"]``, or beside a loss. A wrapper (DDP, FSDP, Fabric's, compiled) is fine.
            logits: the path of a submodule that gives the logits, where the model does not return them.
            targets: another name of that argument, or a callable(arguments).
            shift: logits at t predict the target at t+1. ``None``: as the loss that the model returns shows, else true for a
                Hugging Face causal model, else the tally's.
            recompute_logits: where the fused loss of a Hugging Face model makes no logits (Liger), compute them again from its
                hidden states, a few columns at a time: one more product with its head.

        Calls without a gradient count within ``stage`` only. ``close`` removes the hook.
        """
        if self._hook is not None:
            raise ValueError("this monitor has a hook on a model already; close it first")
        self._hook = Hook(self, model, logits, targets, shift, recompute_logits)
        return self

    @property
    def _step_under_way(self) -> int:
        return super()._step_under_way if self._hook is None else self._hook.session.step_under_way

    def step(self) -> Report | None:
        return super().step() if self._hook is None else self._hook.session.step_to()

    @contextmanager
    def stage(self, stage: str, loader: Any = None, local: bool = False, part: str | None = None) -> Iterator[Pass]:
        if self._hook is None:
            with super().stage(stage, loader, local, part) as opened:
                yield opened
            return
        if local and self.ranks > 1:
            raise ValueError("a hook chooses with all ranks what counts: a pass of one rank takes monitor.observe")
        with self._hook.stage(stage, loader, part) as opened:
            yield opened

    def state_dict(self, without_batch: bool = False) -> dict[str, Any]:
        if self._hook is not None:
            self._hook.session.settle()
        return super().state_dict(without_batch)

    def close(self) -> Report | None:
        hook, self._hook = self._hook, None
        if hook is None:
            return super().close()
        last = hook.session.close()
        hook.remove()
        return last

    def abandon(self, seconds: float = 10.0) -> None:
        hook, self._hook = self._hook, None
        if hook is not None:
            hook.give_up()
        super().abandon(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an exception abandon."""
        if kind is None:
            self.close()
        else:
            self.abandon()
