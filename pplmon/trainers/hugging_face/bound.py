"""Take from one ``Trainer`` what a callback does not see: inputs, losses, evaluation, and the rows that it logs.

Methods of this one trainer are wrapped; each calls the original and changes nothing of its own.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pplmon.report.report import Report
from pplmon.trainers.hugging_face import facts
from pplmon.trainers.hugging_face.checkpoint import load
from pplmon.trainers.hugging_face.preferences import preferences
from pplmon.trainers.hugging_face.rows import Rows
from pplmon.trainers.session import Session

if TYPE_CHECKING:
    from pplmon.trainers.hugging_face.callback import PerplexityCallback

OURS = ("sample_ids", "group_ids", "document_ids", "mask")  # a collator's own words to pplmon: no model takes them
WRAPPED = ("train", "compute_loss", "prediction_step", "evaluation_loop", "log")


class Bound:
    """A trainer and its callback. Begins and ends batches and passes, and adds numbers to the trainer's rows."""

    def __init__(self, trainer: Any, callback: PerplexityCallback) -> None:
        self._trainer, self._callback = trainer, callback
        self.rows = Rows(trainer, callback.prefix)
        self.heads = {"train": "", "val": "eval_", "test": "test_"}  # of keys in rows, by the stage of a report
        self._resumes_from: Any = None  # what train() was told
        self._inputs: dict[str, Any] = {}  # of the loss under way
        self._generates = False  # in the prediction step under way
        self._last: Report | None = None  # shown
        for name in WRAPPED:
            original = getattr(trainer, name)
            setattr(trainer, name, functools.wraps(original)(functools.partial(getattr(self, f"_{name}"), original)))

    @property
    def has_reference(self) -> bool:
        """Return True if the trainer compares its model with a reference."""
        return facts.has_reference(self._trainer)

    @property
    def callbacks(self) -> list[Any]:
        """Return the trainer's callbacks."""
        return list(self._trainer.callback_handler.callbacks)

    def popped_labels(self, batch: Any) -> Tensor | None:
        """Return the labels that the loss took out of its inputs before the model saw them, as label smoothing does."""
        return None if "labels" in self._inputs else batch.get("labels")

    def show(self, report: Report | None) -> None:
        """Put a window's numbers into the row that the trainer logs next."""
        session = self._callback.session
        if report is not None and report is not self._last and session is not None and not report.ranks_missing:
            self._last = report
            self.rows.put(session.monitor.publisher.keys(report, ""))

    def resume(self, session: Session) -> None:
        """Go on where the checkpoint was written that the trainer resumes from."""
        if not self._trainer.state.global_step:
            return
        state = load(self._resumes_from, self._trainer.args, session.monitor)
        if state is not None:
            session.load_state_dict(state)

    # What is wrapped.

    def _train(self, original: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        self._resumes_from = resume_from_checkpoint
        try:
            return original(resume_from_checkpoint, *args, **kwargs)
        except BaseException:
            self._callback.abandon()
            raise

    def _compute_loss(self, original: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        session, step = self._callback.session, self._callback.step
        if session is None or self._generates or not (session.in_pass or step is not None):
            return original(model, inputs, *args, **kwargs)
        session.begin_batch({**inputs, **preferences(self._trainer, inputs, self._callback.groups)}, step)
        for name in OURS:
            inputs.pop(name, None)
        self._inputs = inputs
        try:
            compares = facts.is_cross_entropy(self._trainer, inputs)
            result = original(model, inputs, *args, **kwargs)
            loss = result[0] if isinstance(result, tuple) else result
            items = kwargs.get("num_items_in_batch")
            session.end_batch(loss if compares else None, times=facts.loss_times(self._trainer, items), items=items)
        finally:
            self._inputs = {}
        return result

    def _prediction_step(self, original: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a step that generates, and then calls the model for its loss by itself."""
        session = self._callback.session
        if session is None or not session.in_pass or not getattr(self._trainer.args, "predict_with_generate", False):
            return original(model, inputs, *args, **kwargs)
        self._generates = True
        try:
            # Without the labels: the calls of ``generate`` have none, and are not to be scored by them.
            session.begin_batch({name: inputs.pop(name) for name in OURS if name in inputs})
            result = original(model, inputs, *args, **kwargs)
            session.end_batch()
        finally:
            self._generates = False
        return result

    def _evaluation_loop(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        trainer, callback = self._trainer, self._callback
        given = facts.arguments(original, args, kwargs)
        head = f"{given['metric_key_prefix']}_"
        session = callback.session
        if session is None or (session.monitor.ended and not trainer.is_in_train):  # a run under way keeps its counts
            session = callback.begin(trainer.args, trainer.state, trainer.model, trainer.processing_class)
        elif not session.listening:
            session.listen_to(trainer.model)
        stage, part = facts.pass_of(given)
        opened = session.begin_pass(stage, [given["dataloader"]], part=part)
        self.heads[opened.name] = head
        try:
            output = original(*args, **kwargs)
        except BaseException:
            if not trainer.is_in_train:  # else the training that it is a part of ends
                callback.abandon()
            raise
        report = session.end_pass()
        if not report.ranks_missing:
            self.rows.add(output.metrics, head, session.monitor.publisher.keys(report, ""))
            facts.give_watched(trainer.args, output.metrics, f"{head}{callback.prefix}", report)
        trainer.control.should_training_stop = trainer.control.should_training_stop or session.should_stop
        if not trainer.is_in_train:
            session.release()
        return output

    def _log(self, original: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        session = self._callback.session
        if facts.is_summary(logs) and session is not None:
            # Not in on_train_end: by then report_to targets have closed their runs.
            self.show(session.close())
            self.rows.send()
        if facts.is_train_row(logs):
            return self.rows.log(original, logs, *args, **kwargs)
        return original(logs, *args, **kwargs)
