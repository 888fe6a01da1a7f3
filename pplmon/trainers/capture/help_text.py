"""Write the error for no logits found: the line to write for each source of logits, and the nearest names."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from torch import nn

SOURCES = """\
pplmon found no logits and targets in the first {stage} batch. Use one of these:
  1. in the module's step:       pplmon.observe(self, logits, targets)
                                 (a fused loss has no logits: pplmon.observe(self, pplmon.TokenStats.from_losses(nll, targets)))
  2. name them:                  PerplexityMonitor(logits="model.head", targets="labels")
                                 (a submodule's path or a key of the step's output; a key, attribute or index of the batch)
  3. return them from the step:  return {{"loss": loss, "logits": logits, "labels": labels}}
  4. a Hugging Face model that is a submodule of the module and is called with labels=...{hint}"""


def nothing_found(stage: str, module: nn.Module | None, logits: Any, hooked: bool) -> str:
    """Return the text of the error (or, outside training, the warning)."""
    return SOURCES.format(stage=stage, hint=_near(module, logits, hooked))


def _near(module: nn.Module | None, logits: Any, hooked: bool) -> str:
    if not isinstance(logits, str) or module is None:
        return ""
    if hooked:
        return f"\nThe submodule {logits!r} gave no logits that fit the targets."
    names = [name for name, _ in module.named_modules() if name]
    near = get_close_matches(logits, names, n=3, cutoff=0.3) or names[:5]
    return (
        f"\nlogits={logits!r} is neither a submodule of {type(module).__name__} (nearest: {', '.join(near) or 'none'}) "
        "nor a key of what the step returned."
    )
