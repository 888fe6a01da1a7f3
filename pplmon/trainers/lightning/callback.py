"""WIRE: ``PerplexityMonitor``, the callback for ``pytorch_lightning`` and ``lightning.pytorch``. No arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor

try:
    from pytorch_lightning import Callback
except ImportError:  # the same classes under the other name
    from lightning.pytorch import Callback  # type: ignore[assignment,no-redef,import-not-found,unused-ignore]

from pplmon.alerts import MetricRule, Rule
from pplmon.doctor.loss_agrees import LossGuard
from pplmon.monitor.delivery import Handler
from pplmon.monitor.judge import check_rules
from pplmon.monitor.readouts import wanted
from pplmon.monitor.schedule import Cadence
from pplmon.report.declared import find
from pplmon.report.report import Report
from pplmon.report.worst import Decode
from pplmon.tally import TokenTally
from pplmon.trainers.capture import Capture, Logits, Targets
from pplmon.trainers.lightning import private_names as facts
from pplmon.trainers.lightning.loaders import TrainerPass
from pplmon.trainers.lightning.monitor import TrainerMonitor

EPOCH_NUMBERS = ("cross_entropy", "perplexity", "token_accuracy", "max_token_loss")


class PerplexityMonitor(Callback):
    """Add it to a ``Trainer``: exact perplexity, accuracy and worst tokens in the trainer's loggers, and alerts.

    Args:
        logits: where logits are: a submodule's path, a key of the step's output, or a callable(outputs, batch).
        targets: where targets are: a key, attribute or index of the batch, or a callable(batch).
        shift: logits at t predict the target at t+1. ``None``: true for a Hugging Face causal model, else the tally's.
        every_n_steps: optimizer steps in a logged window; ``None`` is the trainer's ``log_every_n_steps``.
        judge_every_n_steps: optimizer steps between two read-outs, at which the rules judge.
        numbers: "core", "all" or a list of names.
        prefix: put before every log key.
        tally: the pattern that is cloned for each stage.
        alerts: rules; ``None`` takes ``default_alerts()``, ``[]`` is off.
        on_alert: callables that are given each alert, on the first rank.
        decode: ids -> str, to show text; ``None`` takes that of a tokenizer which the datamodule or the module holds.

    How logits and targets are found when neither is named is told in ``pplmon.trainers.capture``.
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
    ) -> None:
        super().__init__()
        Cadence(every_n_steps, judge_every_n_steps)
        tally = tally if tally is not None else TokenTally()
        wanted(numbers, tally)
        if alerts is not None:
            check_rules(alerts)
        self._capture_settings = (logits, targets, shift)
        self._every_n_steps = every_n_steps
        self._alerts = alerts
        self._settings: dict[str, Any] = {
            "judge_every_n_steps": judge_every_n_steps,
            "numbers": numbers,
            "prefix": prefix,
            "tally": tally,
            "on_alert": on_alert,
            "decode": decode,
        }
        self._capture = Capture(*self._capture_settings)
        self._monitor: TrainerMonitor | None = None
        self._guard = LossGuard()
        self._pass: TrainerPass | None = None
        self._micro_batch = 0
        self._fitting = False
        self._resumed: dict[str, Any] | None = None
        where = getattr(logits, "__qualname__", type(logits).__name__) if callable(logits) else repr(logits)
        self._state_key = f"PerplexityMonitor(prefix={prefix!r}, logits={where})"

    @property
    def state_key(self) -> str:
        """Tell two monitors in one trainer apart by their prefix and by where they look for logits."""
        return self._state_key  # Lightning asks in every hook

    def observe_tokens(self, logits: Tensor, targets: Tensor, **data: Any) -> None:
        """Count a batch from inside the module's step; see ``pplmon.observe``."""
        self._capture.observe(logits, targets, **data)

    # A run begins.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Start anew: a run that ended in an exception may have left hooks."""
        self._capture.detach()
        self._pass, self._resumed, self._fitting = None, None, stage == "fit"
        if stage == "fit" or (self._monitor is not None and self._monitor.ended):
            self._monitor = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Set hooks and make the monitor of this run."""
        self._capture = Capture(*self._capture_settings)
        self._capture.attach(pl_module)
        self._guard = LossGuard()
        self._monitor = self._make_monitor(trainer, pl_module)
        self._resume()

    def _make_monitor(self, trainer: Any, pl_module: Any) -> TrainerMonitor:
        every = self._every_n_steps if self._every_n_steps is not None else trainer.log_every_n_steps
        # Our rules remember what they saw: each run has its own. A user's rule stays the object that the user has.
        rules = None
        if self._alerts is not None:
            rules = [copy.deepcopy(rule) if isinstance(rule, MetricRule) else rule for rule in self._alerts]
        tally = self._settings["tally"].clone().to(pl_module.device)
        replicated = tally.process_group is None
        if replicated:
            tally.process_group = facts.data_parallel_group(trainer)
        decode = self._settings["decode"] or facts.decoder_of(trainer, pl_module)
        settings = {**self._settings, "tally": tally, "decode": decode}
        return TrainerMonitor(
            trainer,
            replicated,
            sinks=facts.sinks_of(trainer, self._settings["prefix"]),
            every_n_steps=every or None,
            alerts=rules,
            **settings,
        )

    # Training.

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Learn who needs our numbers at their own step."""
        monitor = self._running()
        head = f"{monitor.prefix}train/"
        ours = [key.removeprefix(head) for key in facts.watched_keys(trainer) if key.startswith(head)]
        monitor.wait_for_window = any(find(name) is not None for name in ours)
        self._micro_batch = 0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Send the epoch before to the loggers, now that it is known which keys the module logs itself."""
        self._running().send_held()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Listen for this micro-batch."""
        monitor = self._running()
        if monitor.takes_part:
            self._capture.open("train", monitor.tally)
        self._capture.batch(batch, facts.step_of(trainer), self._micro_batch)
        monitor.see(facts.step_of(trainer), self._micro_batch, batch)
        self._guard.before(monitor.tally)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count this micro-batch, and close the optimizer step if it was its last."""
        monitor = self._running()
        self._capture.end_batch(outputs)
        self._capture.close()
        if not self._guard.done:
            self._guard.after(monitor.tally, _loss(outputs, trainer.accumulate_grad_batches))
        self._micro_batch += 1
        if facts.optimizer_stepped(trainer):
            self._micro_batch = 0
            if monitor.step_to(facts.step_of(trainer)) is not None:
                self._guard.check(warn=monitor.writes)
            trainer.should_stop = trainer.should_stop or monitor.should_stop

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the epoch's own numbers."""
        monitor = self._running()
        step = facts.step_of(trainer) - 1
        report = monitor.end_epoch().report(max(step, 0), "train")
        trainer.should_stop = trainer.should_stop or monitor.should_stop
        kept = {name: report.numbers[name] for name in EPOCH_NUMBERS}
        monitor.publish(Report(report.step, "train_epoch", kept), f"{monitor.prefix}train/", "_epoch")
        trainer.should_stop = trainer.should_stop or monitor.should_stop

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the last, shorter window and let go of files."""
        self._running().close()
        self._guard.check(warn=self._running().writes)

    # Validation and test.

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a pass, but for the sanity check."""
        if not trainer.sanity_checking:
            self._begin_pass(trainer, pl_module, "val", trainer.val_dataloaders)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a pass."""
        self._begin_pass(trainer, pl_module, "test", trainer.test_dataloaders)

    def _begin_pass(self, trainer: Any, pl_module: Any, stage: str, loaders: Any) -> None:
        if self._monitor is None or self._monitor.trainer is not trainer:
            self._monitor = self._make_monitor(trainer, pl_module)
        if not self._capture.attached:
            self._capture = Capture(*self._capture_settings)
            self._capture.attach(pl_module)
        self._monitor.collect()  # an alert must not wait for the pass to end
        self._pass = self._monitor.open_pass(stage, facts.loaders_of(loaders))

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Listen for this batch."""
        if self._pass is not None:
            tally, repeated = self._pass.begin_batch(dataloader_idx)
            if self._running().takes_part:
                self._capture.open(self._pass.stage, tally, leave_out=repeated)
            self._capture.batch(batch, facts.step_of(trainer), batch_idx)

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count this batch."""
        if self._pass is not None:
            self._capture.end_batch(outputs)
            self._pass.end_batch(dataloader_idx, self._capture.left_out)
            self._capture.close()

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Publish the pass: in time for every callback that monitors it, whatever their order."""
        if self._pass is not None:
            monitor = self._running()
            self._pass.count_repeated()
            monitor.finish(self._pass, facts.step_of(trainer))
            self._pass = None
            trainer.should_stop = trainer.should_stop or monitor.should_stop

    on_test_epoch_end = on_validation_epoch_end

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Send the pass to the loggers, likewise."""
        if not trainer.sanity_checking:
            self._running().send_held()

    on_test_end = on_validation_end

    # A run ends.

    def state_dict(self) -> dict[str, Any]:
        """Return the open window, the rules' memory and the counts. Lightning asks every rank, and saves one answer."""
        return {} if self._monitor is None else {"monitor": self._monitor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written, on any number of ranks; only ``fit`` does."""
        self._resumed = state_dict.get("monitor")
        self._resume()

    def _resume(self) -> None:
        # Strategies that shard the model restore after on_fit_start, the others before it.
        if self._fitting and self._monitor is not None and self._resumed is not None:
            self._monitor.load_state_dict(self._resumed)
            self._resumed = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let go of the module and write what is held back; nothing is sent to other ranks."""
        self._capture.detach()
        if self._monitor is not None:
            self._monitor.abandon()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of the module and of files."""
        self._capture.detach()
        if self._monitor is not None:
            self._monitor.release()
        facts.finish_forked_runs(trainer)

    def _running(self) -> TrainerMonitor:
        if self._monitor is None:
            raise RuntimeError("PerplexityMonitor was called outside a run of a Trainer")
        return self._monitor


def _loss(outputs: Any, accumulation: int) -> Tensor | None:
    """The loss that ``training_step`` returned: Lightning hands it on divided by the accumulation."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    return loss * accumulation if isinstance(loss, Tensor) else None
