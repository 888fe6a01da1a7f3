"""Numbers of the user's own in a monitor: what is logged by name, and the norm of the gradients."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import Tensor, nn

from pplmon.measure.outside_graphs import outside_graphs
from pplmon.monitor.readouts import Engine


class Logs(Engine):
    """Takes numbers of the user's own along with the read-outs."""

    _said_train_only = False

    @property
    def _step_under_way(self) -> int:
        """Return the step that a number belongs to which is logged now."""
        return self._step

    @outside_graphs
    def log(self, name: str, value: Tensor | float, step: int | None = None) -> None:
        """Log a number of your own, such as "optim/lr", for the optimizer step under way. Never waits for the device.

        Of several values in a step, over micro-batches and ranks, the largest counts, and so it does over the steps of a
        window; NaN is above all. It is logged as ``{prefix}{name}``, judged, journalled and drawn like any number. Training
        only: what is logged in a pass is left out. Every rank logs the same names, at most 16.

        ``step`` is for a trainer that counts by itself.

        Raises:
            ValueError: the name has no "/", or is a number of pplmon's; the value is not one real number.
        """
        if self._pass is not None:
            if not self._said_train_only:
                self._said_train_only = True
                warnings.warn(
                    f"pplmon: {name!r} was logged in a pass of {self._pass.stage} and is left out: numbers of one's own are of training",
                    stacklevel=3,
                )
        elif self._link.takes_part:
            self._link.numbers.log(name, value, self._step_under_way if step is None else step)

    def log_grad_norm(self, parameters: Iterable[nn.Parameter], step: int | None = None) -> None:
        """Log the norm of all gradients as "optim/grad_norm", before they are clipped. Every rank calls it.

        Gradients that every rank has are counted once, and those that are cut over ranks (DTensor, FSDP2) added up, in the
        read-out. Of several optimizers in a step they are all one; over several steps the largest counts.

        Raises:
            ValueError: the monitor was made without ``grad_norm=True``.
        """
        if self._norms is None:
            raise ValueError(
                "log_grad_norm needs room in the read-outs, which all ranks agree on: Monitor(grad_norm=True)"
            )
        if self._link.takes_part and self._pass is None:
            squares = self._delivery.guard(
                self._norms, "grad_norm", self._norms.squares, parameters, self._link.tally.group
            )
            if squares is not None:
                self._link.numbers.add_squares(squares, self._step_under_way if step is None else step)
