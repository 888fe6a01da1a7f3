"""Take logits from any module that is given its targets: nanoGPT's ``forward(idx, targets)``, and what is like it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pplmon.trainers.capture.batch import Targets, targets_of
from pplmon.trainers.capture.modules import arguments, logits_in, loss_in
from pplmon.trainers.capture.sources.hugging_face import HuggingFace
from pplmon.trainers.capture.sources.source import Called, Found, Source


class Arguments(Source):
    """The module itself, where there is no Hugging Face model in it."""

    def __init__(self, targets: Targets | None, shift: bool | None) -> None:
        self._targets, self._shift = targets, shift

    def modules_in(self, module: nn.Module) -> dict[str, nn.Module]:
        """Return the module, without the wrappers that call it."""
        return {} if HuggingFace(None, None).modules_in(module) else {"": innermost(module)}

    def of_call(self, called: Called, batch: Any) -> Found | None:
        """Return the call's logits with the targets among its arguments."""
        given = arguments(called.module, called.args, called.kwargs)
        if isinstance(self._targets, str) and self._targets not in given:
            return None
        logits, targets = logits_in(called.output), targets_of(given, self._targets)
        if logits is None or not isinstance(targets, Tensor):
            return None
        name = type(called.module).__name__
        return Found(logits, targets, self._shift, self._shift is not None, name, loss=loss_in(called.output))


def innermost(module: nn.Module) -> nn.Module:
    """Return the module that DDP, FSDP or Fabric wrap, whose arguments have their own names."""
    inner = getattr(module, "module", None)
    return innermost(inner) if isinstance(inner, nn.Module) else module
