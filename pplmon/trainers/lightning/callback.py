"""``PerplexityMonitor``, the callback for ``pytorch_lightning`` and ``lightning.pytorch``: hooks call a session."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

try:
    from pytorch_lightning import Callback
except ImportError:  # the same classes under the other name
    from lightning.pytorch import Callback  # type: ignore[assignment,no-redef,import-not-found,unused-ignore]

from pplmon.alerts import Rule
from pplmon.monitor.delivery import Handler
from pplmon.monitor.probes import Probe
from pplmon.report.texts import Decode
from pplmon.tally import TokenTally
from pplmon.trainers.capture import Logits, Targets
from pplmon.trainers.lightning import private_names as facts
from pplmon.trainers.lightning.places import TrainerPlaces
from pplmon.trainers.session import Session
from pplmon.trainers.settings import Settings


class PerplexityMonitor(Callback):
    """A callback that logs exact perplexity, accuracy and worst tokens to the trainer's loggers, and raises alerts.

    Args:
        logits: the source of logits: a submodule's path, a key of the step's output, or a callable(outputs, batch).
        targets: the source of targets: a key, attribute or index of the batch, or a callable(batch).
        shift: logits at t predict the target at t+1. ``None``: true for a Hugging Face causal model, else the tally's.
        every_n_steps: optimizer steps in a logged window; ``None`` is the trainer's ``log_every_n_steps``.
        judge_every_n_steps: optimizer steps between two read-outs, at which the rules judge.
        numbers: "core", "all" or a list of names.
        prefix: put before every log key.
        tally: the pattern that is cloned for each stage.
        alerts: rules; ``None`` takes ``default_alerts()``, ``[]`` is off.
        on_alert: callables that are given each alert, on the first rank.
        decode: ids -> str, to show text; ``None`` takes that of a tokenizer which the datamodule or the module holds.
        min_severity: "info", "warning" or "critical": what ``on_alert`` and W&B's own alerts hear of. What is below is a
            notice: in the journal, marked in the loggers, a line on the console.
        probes: measurements that run the model by themselves at the end of a pass (see ``FreeRunningProbe``).
        show: print the first rows of the first batch of training once, with the tokens that are not scored in grey.
        grad_norm: log the norm of all gradients before they are clipped, as "optim/grad_norm", and judge it.
        reference: the journal of an earlier run on the same data: alerts say what both show, and what only this run does.
        recompute_logits: where the fused loss of a Hugging Face model makes no logits (Liger), compute them again from its hidden
            states, a few columns at a time: one more product with its head.

    Without ``logits`` and ``targets`` they are found as described in ``pplmon.trainers.capture.find``.
    """

    def __init__(
        self,
        logits: Logits | None = None,
        targets: Targets | None = None,
        shift: bool | None = None,
        every_n_steps: int | None = None,
        judge_every_n_steps: int = 1,
        numbers: str | Sequence[str] = "core",
        prefix: str = "",
        tally: TokenTally | None = None,
        alerts: Sequence[Rule] | None = None,
        on_alert: Handler | Sequence[Handler] = (),
        decode: Decode | None = None,
        min_severity: str = "warning",
        probes: Sequence[Probe] = (),
        show: bool = False,
        grad_norm: bool = False,
        reference: str | os.PathLike[str] | None = None,
        recompute_logits: bool = False,
    ) -> None:
        super().__init__()
        self._settings = Settings(
            logits=logits,
            targets=targets,
            shift=shift,
            every_n_steps=every_n_steps,
            judge_every_n_steps=judge_every_n_steps,
            numbers=numbers,
            prefix=prefix,
            tally=tally,
            alerts=alerts,
            on_alert=on_alert,
            decode=decode,
            min_severity=min_severity,
            probes=probes,
            show=show,
            grad_norm=grad_norm,
            reference=reference,
            recompute_logits=recompute_logits,
            wire="lightning",
        )
        self._session: Session | None = None
        self._fitting = False
        self._resumed: dict[str, Any] | None = None  # a state that no session has loaded yet
        self._before: dict[str, Any] | None = None  # the state in which the same trainer's last fit ended
        where = getattr(logits, "__qualname__", type(logits).__name__) if callable(logits) else repr(logits)
        self._state_key = f"PerplexityMonitor(prefix={prefix!r}, logits={where})"

    @property
    def state_key(self) -> str:
        """Return a key that differs between monitors of one trainer with different prefixes or sources of logits."""
        return self._state_key  # Lightning asks in every hook

    # A run begins.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Start anew: a run that ended in an exception may have left hooks."""
        self._resumed, self._before, self._fitting = None, None, stage == "fit"
        if self._session is not None:
            self._session.stop_listening()
            if self._fitting or self._session.monitor.ended:
                if self._session.closed and self._session.monitor.trainer is trainer:
                    self._before = self._session.monitor.closed_state()
                self._session = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the session of this run."""
        self._session = self._begin(trainer, pl_module)
        if self._resumed is None and self._before is not None and facts.step_of(trainer) == self._before["step"]:
            self._resumed = self._before  # the trainer fits further
        self._resume()

    def _begin(self, trainer: Any, pl_module: Any) -> Session:
        settings = self._settings
        return Session(
            settings,
            pl_module,
            sinks=facts.sinks_of(trainer, settings.prefix),
            every_n_steps=trainer.log_every_n_steps,
            device=pl_module.device,
            group=None if settings.own_group else facts.data_parallel_group(trainer),
            decode=settings.decode or facts.decoder_of(trainer, pl_module),
            places=TrainerPlaces(trainer, settings.own_group),
        )

    # Training.

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find out if a scheduler or callback needs the numbers at their own step."""
        self._running().window.wait_for(facts.watched_keys(trainer))

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Send the previous epoch to the loggers, now that the module's own keys are known."""
        session = self._running()
        session.monitor.publisher.send_held()
        session.begin_epoch(facts.batches_of(trainer))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin this micro-batch."""
        self._running().begin_batch(batch, facts.step_of(trainer))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Take the norm of the gradients, which are not clipped yet."""
        self._running().log_grad_norm(p for group in optimizer.param_groups for p in group["params"])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count this micro-batch, and close the optimizer step if it was its last."""
        session = self._running()
        session.end_batch(outputs, trainer.accumulate_grad_batches)
        if facts.optimizer_stepped(trainer):
            session.step_to(facts.step_of(trainer))
            if session.window.watched:
                session.window.show(facts.watchers_ask(trainer, batch_idx))
            trainer.should_stop = trainer.should_stop or session.should_stop

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Publish the epoch's own numbers."""
        session = self._running()
        session.end_epoch(facts.epoch_ends(trainer))
        trainer.should_stop = trainer.should_stop or session.should_stop

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the last, shorter window and close files."""
        self._running().close()

    # Validation and test.

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a pass, except for the sanity check."""
        if not trainer.sanity_checking:
            self._begin_pass(trainer, pl_module, "val")

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a pass."""
        self._begin_pass(trainer, pl_module, "test")

    def _begin_pass(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self._session is None or self._session.monitor.trainer is not trainer:
            self._session = self._begin(trainer, pl_module)
        elif not self._session.listening:
            self._session.listen_to(pl_module)
        self._session.begin_pass(stage, facts.loaders_of(trainer), self._fitting and facts.epoch_ends(trainer))

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin this batch."""
        if self._session is not None and self._session.in_pass:
            self._session.begin_batch(batch, facts.step_of(trainer), dataloader_idx)

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count this batch."""
        if self._session is not None and self._session.in_pass:
            self._session.end_batch(outputs)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Publish the pass: in time for every callback that monitors it, whatever their order."""
        if self._session is not None and self._session.in_pass:
            self._session.end_pass(facts.step_of(trainer))
            trainer.should_stop = trainer.should_stop or self._session.should_stop

    on_test_epoch_end = on_validation_epoch_end

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Send the pass to the loggers."""
        if not trainer.sanity_checking:
            self._running().monitor.publisher.send_held()

    on_test_end = on_validation_end

    # A run ends.

    def state_dict(self) -> dict[str, Any]:
        """Return the open window, the rules' states and the counts. Lightning asks every rank, and saves one."""
        if self._session is None:
            return {}
        return {"monitor": self._session.state_dict(facts.repeats_batch(self._session.monitor.trainer))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written, on any number of ranks; only ``fit`` does."""
        self._resumed = state_dict.get("monitor")
        self._resume()

    def _resume(self) -> None:
        # Strategies that shard the model restore after on_fit_start, the others before it.
        if self._fitting and self._session is not None and self._resumed is not None:
            self._session.load_state_dict(self._resumed)
            self._resumed = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Remove hooks and write everything that is buffered; nothing is sent to other ranks."""
        if self._session is not None:
            self._session.abandon()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Remove hooks and close files."""
        if self._session is not None:
            self._session.release()
        facts.finish_forked_runs(trainer)

    def _running(self) -> Session:
        if self._session is None:
            raise RuntimeError("PerplexityMonitor was called outside a run of a Trainer")
        return self._session
