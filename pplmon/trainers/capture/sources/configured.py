"""Take logits from the place that the user named: a submodule's path, a key of the step's output, or a callable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from pplmon.trainers.capture.batch import Targets, targets_of
from pplmon.trainers.capture.modules import logits_in
from pplmon.trainers.capture.sources.source import Called, Found, Source, targets_beside

Logits = str | Callable[[Any, Any], Tensor]


class Configured(Source):
    """The place that ``logits=`` names: a submodule where there is one of this path, else a part of the step's output."""

    one_call = True

    def __init__(self, logits: Logits, targets: Targets | None, shift: bool | None) -> None:
        self._logits, self._targets, self._shift = logits, targets, shift
        self.hooked = False

    def modules_in(self, module: nn.Module) -> dict[str, nn.Module]:
        """Return the submodule of this path."""
        found = dict(module.named_modules()).get(self._logits) if isinstance(self._logits, str) else None
        self.hooked = found is not None
        return {} if found is None else {str(self._logits): found}

    def of_call(self, called: Called, batch: Any) -> Found | None:
        """Return the submodule's logits with the batch's targets."""
        logits, targets = logits_in(called.output), targets_of(batch, self._targets)
        if logits is None or targets is None:
            return None
        return Found(logits, targets, self._shift, self._shift is not None, called.path)

    def of_step(self, outputs: Any, batch: Any) -> Found | None:
        """Return the logits that the key or the callable picks from the step's output."""
        if self.hooked:
            return None
        given = outputs if isinstance(outputs, Mapping) else {}
        logits = self._logits(outputs, batch) if callable(self._logits) else given.get(self._logits)
        targets = None if logits is None else targets_beside(given, batch, self._targets)
        if targets is None:
            return None
        return Found(logits, targets, self._shift, self._shift is not None, "what the step returned")  # type: ignore[arg-type]
