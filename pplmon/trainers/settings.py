"""The settings of a trainer's connection, checked when it is made and the same for every run."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

import torch

from pplmon import extras
from pplmon.alerts import MetricRule, Rule, check_severity
from pplmon.monitor import Monitor
from pplmon.monitor.delivery import Handler
from pplmon.monitor.judge import check_rules
from pplmon.monitor.probes import Probe, check_probes
from pplmon.monitor.publish import Places, wanted
from pplmon.monitor.schedule import Cadence
from pplmon.report.texts import Decode
from pplmon.sinks.base import Sink
from pplmon.tally import TokenTally
from pplmon.trainers.capture import Logits, Targets


@dataclass(frozen=True)
class Settings:
    """The user's settings; see ``PerplexityMonitor``. A session is one run with these settings."""

    logits: Logits | None = None
    targets: Targets | None = None
    shift: bool | None = None
    every_n_steps: int | None = None  # None: the trainer's own cadence
    judge_every_n_steps: int = 1
    numbers: str | Sequence[str] = "core"
    prefix: str = ""
    tally: TokenTally | None = None
    alerts: Sequence[Rule] | None = None
    on_alert: Handler | Sequence[Handler] = ()
    decode: Decode | None = None  # None: that of a tokenizer that the trainer's connection finds
    min_severity: str = "warning"
    probes: Sequence[Probe] = ()
    show: bool = False  # print the first batch of training once
    grad_norm: bool = False
    reference: str | os.PathLike[str] | None = None
    recompute_logits: bool = False  # of a Hugging Face model whose fused loss makes none
    first_only: bool = False  # further calls of a model in a batch are a reference's
    wire: str = "loop"  # the trainer that errors give advice for: "lightning", "hugging_face", "hook" or "loop"

    def __post_init__(self) -> None:
        Cadence(self.every_n_steps, self.judge_every_n_steps)
        wanted(self.numbers, self.tally if self.tally is not None else TokenTally())
        if self.alerts is not None:
            check_rules(self.alerts)
        check_severity(self.min_severity, "min_severity")
        check_probes(self.probes)
        if self.recompute_logits and self.logits is not None:
            raise ValueError(
                f"recompute_logits=True computes the logits of a Hugging Face model from its hidden states, and logits={self.logits!r} "
                "names another source of them: leave one of the two out"
            )

    @classmethod
    def of(cls, wire: str, given: Mapping[str, Any]) -> Settings:
        """Return the settings that a user gave by name, for one of the trainers' connections."""
        known = [field.name for field in fields(cls) if field.name not in ("wire", "first_only")]
        for name in given:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise TypeError(f"{name!r} is no setting: {hint}")
        return cls(wire=wire, **given)

    @property
    def own_group(self) -> bool:
        """Return True if the tally names the ranks that are counted together."""
        return self.tally is not None and self.tally.process_group is not None

    def rules(self) -> list[Rule] | None:
        """Return the rules of one run: a copy of each ``MetricRule``, which has state, and other rules themselves."""
        if self.alerts is None:
            return None
        return [copy.deepcopy(rule) if isinstance(rule, MetricRule) else rule for rule in self.alerts]

    def pattern(self, device: torch.device | None, group: Any) -> TokenTally:
        """Return the tally of one run, on a device, over the ranks that the user named, else over ``group``."""
        pattern = TokenTally() if self.tally is None else self.tally.clone()
        if device is not None:
            pattern.to(device)
        if pattern.process_group is None:
            pattern.process_group = group
        return pattern

    def monitor(
        self,
        sinks: Iterable[Sink],
        every_n_steps: int | None,
        device: torch.device | None,
        group: Any,
        decode: Decode | None,
        places: Places | None,
    ) -> Monitor:
        """Return the monitor of one run; see ``Session``."""
        monitor = Monitor(
            every_n_steps=(every_n_steps if self.every_n_steps is None else self.every_n_steps) or None,
            judge_every_n_steps=self.judge_every_n_steps,
            numbers=self.numbers,
            prefix=self.prefix,
            tally=self.pattern(device, group),
            sinks=sinks,
            alerts=self.rules(),
            on_alert=self.on_alert,
            min_severity=self.min_severity,
            grad_norm=self.grad_norm,
            reference=self.reference,
            decode=self.decode or decode,
            places=places,
        )
        more = self.pass_pattern(monitor.tally)
        if more is not None:
            monitor.also_measure_in_passes(more)
        return monitor

    def pass_pattern(self, pattern: TokenTally) -> TokenTally | None:
        """Return what passes are counted with if the user gave no tally: two more extras, which cost almost nothing."""
        if self.tally is not None:
            return None
        more = TokenTally(extras=[extras.Rollouts(), extras.Novelty()], process_group=pattern.process_group)
        more.to(pattern.device)
        return more
