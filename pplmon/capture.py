"""How logits and targets are found in a user's module without changing it.

Four ways, in this order; the first that gives something on the first batch of a stage is the only one used there:

1. ``pplmon.observe(self, logits, targets)`` in the step;
2. ``logits=`` names a submodule (hooked), a key of the step's output, or is a callable; ``targets=`` a part of the batch;
3. the step returns a dict with ``logits`` and ``labels`` or ``targets``;
4. a Hugging Face model inside the module (hooked), with the ``labels`` it was given.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from pplmon.tally import TokenTally
from pplmon.tokens import TokenStats, shifted, token_stats

Logits = str | Callable[[Any, Any], Tensor]
Targets = str | int | Callable[[Any], Tensor]

OBSERVE, CONFIGURED, RETURNED, HUGGING_FACE = range(1, 5)
TARGET_NAMES = ("labels", "targets")
BATCH_KEYS = ("mask", "document_ids", "sample_ids", "group_ids", "input_ids")

# Heads named like causal ones that score labels as given: the decoder of an encoder–decoder family by itself.
_UNSHIFTED_FAMILIES = frozenset(
    "bart bigbird_pegasus blenderbot blenderbot-small marian mbart musicgen musicgen_melody mvp pegasus plbart "
    "speech_to_text_2 trocr whisper xlnet cpmant".split()
)
_CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")

WAYS = """\
pplmon found no logits and targets in the first {stage} batch. Use one of these:
  1. in the module's step:       pplmon.observe(self, logits, targets)
  2. name them:                  PerplexityMonitor(logits="model.head", targets="labels")
                                 (a submodule's path or a key of the step's output; a key, attribute or index of the batch)
  3. return them from the step:  return {{"loss": loss, "logits": logits, "labels": labels}}
  4. a Hugging Face model that is a submodule of the module and is called with labels=...{hint}"""


class Capture:
    """Finds logits and targets, stage by stage, and counts them in that stage's tally."""

    def __init__(self, logits: Logits | None, targets: Targets | None, shift: bool | None) -> None:
        self._logits, self._targets, self._shift = logits, targets, shift
        self._hooks: list[Any] = []
        self._hooked = 0  # which way the hook serves
        self._module: nn.Module | None = None
        self._chosen: dict[str, int] = {}
        self._stage: str | None = None
        self._tally: TokenTally | None = None
        self._trials: dict[int, TokenTally] = {}
        self._batch: Any = None
        self._address: dict[str, int] = {}
        self._pieces: list[TokenStats] = []
        self._warned: set[str] = set()

    # Hooks.

    def attach(self, module: nn.Module) -> None:
        """Set the hooks. It has to happen before the module's first compiled call."""
        self.detach()
        self._module = module
        if isinstance(self._logits, str):
            target = dict(module.named_modules()).get(self._logits) if self._logits else None
            if target is not None:
                self._hook(target, CONFIGURED)
        elif self._logits is None:
            model = _hugging_face_model(module)
            if model is not None:
                self._hook(model, HUGGING_FACE)

    def detach(self) -> None:
        """Remove the hooks and forget the stage under way."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._hooked, self._module = [], 0, None
        self.close()

    @property
    def attached(self) -> bool:
        """True between ``attach`` and ``detach``."""
        return self._module is not None

    def _hook(self, target: nn.Module, way: int) -> None:
        @torch.compiler.disable  # a measurement is not part of the user's graph
        def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            # Activation checkpointing runs the forward again during backward; that is no new batch.
            if self._stage is not None and torch._C._current_graph_task_id() == -1:
                self._take_call(module, args, kwargs, output, way)

        self._hooked = way
        self._hooks.append(target.register_forward_hook(take, with_kwargs=True))

    # A stage, and its batches.

    def open(self, stage: str, tally: TokenTally) -> None:
        """Listen, and count in ``tally``."""
        self._stage, self._tally = stage, tally

    def close(self) -> None:
        """Stop listening."""
        self._stage, self._tally, self._batch = None, None, None
        self._trials, self._pieces = {}, []

    def batch(self, batch: Any, step: int, micro_batch: int) -> None:
        """A new batch begins."""
        self._batch = batch
        self._address = {"step": step, "micro_batch": micro_batch}
        self._pieces = []

    @torch.no_grad()
    def end_batch(self, outputs: Any) -> None:
        """The step is over: look at what it returned, and after the first batch choose the way."""
        if self._stage is None:
            return
        chosen = self._chosen.get(self._stage)
        if chosen in (None, CONFIGURED) and self._logits is not None and self._hooked != CONFIGURED:
            self._take_configured(outputs)
        if chosen in (None, RETURNED) and self._logits is None:
            self._take_returned(outputs)
        if self._pieces:
            self._warn("pieces", "a hooked module gave logits for a part of the targets only; they are not counted")
            self._pieces = []
        self._batch = None
        if chosen is None:
            self._choose()

    @torch.compiler.disable
    def observe(self, logits: Tensor, targets: Tensor, shift: bool | None = None, **data: Tensor) -> None:
        """Way 1: the module's own words. Does nothing outside a stage."""
        if self._stage is not None:
            shift = self._shift if shift is None else shift
            self._count(OBSERVE, logits, targets, shift, {**self._batch_data(targets), **data})

    def _choose(self) -> None:
        assert self._stage is not None and self._tally is not None
        trials, self._trials = self._trials, {}
        if trials:
            way = min(trials)
            self._chosen[self._stage] = way
            self._tally.merge_state(trials[way])
            return
        text = WAYS.format(stage=self._stage, hint=self._near())
        if self._stage == "train":
            raise ValueError(text)
        self._warn(f"none in {self._stage}", text)

    # The four ways.

    def _take_call(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any, way: int) -> None:
        if way == HUGGING_FACE:
            labels = _argument(module, args, kwargs, "labels")
            if labels is None and self._targets is None:
                return  # called for something else, or for its logits alone
            logits = _logits_of(output, has_loss=labels is not None)
            targets = labels if labels is not None else self._batch_targets()
            causal = _shifts(module) if labels is not None else False
            shift = causal if self._shift is None else self._shift
        else:
            logits, targets, shift = _logits_of(output), self._batch_targets(), self._shift
        if logits is None or targets is None:
            return
        fitted = _fit(logits, targets)
        if fitted is not None:
            self._count(way, fitted, targets, shift, self._batch_data(targets))
        elif not self._take_piece(way, logits, targets, shift):
            self._warn(
                "shape",
                f"a call of {type(module).__name__} gave logits {tuple(logits.shape)}, which do not fit targets "
                f"{tuple(targets.shape)}; it is not counted (generation?)",
            )

    def _take_piece(self, way: int, logits: Tensor, targets: Tensor, shift: bool | None) -> bool:
        """Count a head that is applied to chunks of positions, once all of its pieces are there."""
        if logits.dim() != 3 or targets.dim() != 2 or logits.shape[0] != targets.shape[0]:
            return False
        start = sum(piece.batch_shape[1] for piece in self._pieces)
        stop = start + logits.shape[1]
        if stop > targets.shape[1]:
            return False
        tally = self._target_tally(way, shift)
        if tally is None:
            return True
        data = self._batch_data(targets)
        mask = data.pop("mask", None)
        if tally.shift:
            targets, mask = shifted(targets, mask)
        part = slice(start, stop)
        piece = token_stats(
            logits, targets[:, part], tally.ignore_index, None if mask is None else mask[:, part]
        )
        self._pieces.append(piece)
        if stop == targets.shape[1]:
            joined, self._pieces = TokenStats.join(self._pieces, shift=tally.shift), []
            tally.update(joined, **data, **self._address)
        return True

    def _take_configured(self, outputs: Any) -> None:
        if callable(self._logits):
            logits = self._logits(outputs, self._batch)
        else:
            logits = outputs.get(self._logits) if isinstance(outputs, Mapping) else None
        if logits is None:
            return
        targets = self._batch_targets()
        if targets is None and isinstance(outputs, Mapping):
            targets = _first(outputs, TARGET_NAMES)
        if targets is not None:
            self._count(CONFIGURED, _fit(logits, targets, logits), targets, self._shift, self._batch_data(targets))

    def _take_returned(self, outputs: Any) -> None:
        if not isinstance(outputs, Mapping) or not isinstance(outputs.get("logits"), Tensor):
            return
        targets = self._batch_targets() if self._targets is not None else _first(outputs, TARGET_NAMES)
        if targets is not None:
            logits = outputs["logits"]
            self._count(RETURNED, _fit(logits, targets, logits), targets, self._shift, self._batch_data(targets))

    def _count(self, way: int, logits: Any, targets: Tensor, shift: bool | None, data: dict[str, Tensor]) -> None:
        tally = self._target_tally(way, shift)
        if tally is not None:
            tally.update(logits, targets, **data, **self._address)

    def _target_tally(self, way: int, shift: bool | None) -> TokenTally | None:
        """The tally that this way counts in: the stage's own, once chosen; before that one of its own."""
        assert self._stage is not None and self._tally is not None
        chosen = self._chosen.get(self._stage)
        if chosen is not None:
            tally = self._tally if chosen == way else None
        else:
            if way not in self._trials:
                self._trials[way] = self._tally.clone()
                self._trials[way].reset()
            tally = self._trials[way]
        if tally is not None and shift is not None:
            tally.shift = shift
        return tally

    # The batch.

    def _batch_targets(self) -> Tensor | None:
        batch, wanted = self._batch, self._targets
        if wanted is None:
            if isinstance(batch, Mapping):
                return _first(batch, (*TARGET_NAMES, "target"))
            named = _first(vars(batch), TARGET_NAMES) if hasattr(batch, "__dict__") else None
            return batch[1] if named is None and isinstance(batch, (tuple, list)) and len(batch) > 1 else named
        if callable(wanted):
            return wanted(batch)
        try:
            return batch[wanted]  # type: ignore[no-any-return]
        except (KeyError, IndexError, TypeError):
            if isinstance(wanted, str) and hasattr(batch, wanted):
                return getattr(batch, wanted)  # type: ignore[no-any-return]
            known = f"has the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else f"is a {type(batch).__name__}"
            raise ValueError(f"targets={wanted!r} is no key, attribute or index of the batch, which {known}") from None

    def _batch_data(self, targets: Tensor) -> dict[str, Tensor]:
        """What else the batch says of its tokens, under the names that ``TokenTally.update`` knows."""
        if not isinstance(self._batch, Mapping):
            return {}
        found = {}
        for name in BATCH_KEYS:
            value = self._batch.get(name)
            if not isinstance(value, Tensor):
                continue
            wanted = targets.shape[:1] if name == "sample_ids" else targets.shape
            if value.shape == wanted or name == "group_ids" and value.shape == targets.shape[:1]:
                found[name] = value.bool() if name == "mask" else value
            elif name != "input_ids":
                self._warn(
                    name, f"batch[{name!r}] has shape {tuple(value.shape)}, not {tuple(wanted)}: it is not used by pplmon"
                )
        return found

    # Words.

    def _near(self) -> str:
        if not isinstance(self._logits, str) or self._module is None:
            return ""
        names = [name for name, _ in self._module.named_modules() if name]
        near = get_close_matches(self._logits, names, n=3, cutoff=0.3) or names[:5]
        if self._hooked:
            return f"\nThe submodule {self._logits!r} gave no logits that fit the targets."
        return (
            f"\nlogits={self._logits!r} is neither a submodule of {type(self._module).__name__} (nearest: "
            f"{', '.join(near) or 'none'}) nor a key of what the step returned."
        )

    def _warn(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(f"pplmon: {text}", stacklevel=3)


def _hugging_face_model(module: nn.Module) -> nn.Module | None:
    """The outermost ``PreTrainedModel``, told by its name so that transformers need not be imported."""
    for child in module.modules():
        inner = getattr(child, "_orig_mod", child)  # a torch.compile wrapper: hooked outside the graph
        if any(base.__name__ == "PreTrainedModel" for base in type(inner).__mro__):
            return child
    return None


def _shifts(module: nn.Module) -> bool:
    """True for a decoder-only causal model, which moves its labels by one itself."""
    model = getattr(module, "_orig_mod", module)
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "model_type", "") in _UNSHIFTED_FAMILIES:
        return False
    return type(model).__name__.endswith(_CAUSAL_SUFFIXES)


def _argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    if name in kwargs or not args:
        return kwargs.get(name)
    try:
        forward = getattr(module, "_orig_mod", module).forward
        return inspect.signature(forward).bind_partial(*args, **kwargs).arguments.get(name)
    except TypeError:
        return None


def _logits_of(output: Any, has_loss: bool = False) -> Tensor | None:
    """A tensor, ``.logits``, ``["logits"]``, or the first of a tuple (the second, after a loss)."""
    if isinstance(output, (tuple, list)) and not hasattr(output, "logits"):
        first_is_loss = has_loss and len(output) > 1 and isinstance(output[0], Tensor) and output[0].dim() == 0
        output = output[int(first_is_loss)] if output else None
    elif isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    else:
        output = getattr(output, "logits", output)
    return output if isinstance(output, Tensor) and output.is_floating_point() and output.dim() in (2, 3) else None


def _fit(logits: Tensor, targets: Tensor, otherwise: Any = None) -> Any:
    """Return logits whose leading shape is that of the targets; flat ones [B·T, V] are viewed as [B, T, V]."""
    if logits.shape[:-1] == targets.shape:
        return logits
    if logits.dim() == 2 and targets.dim() == 2 and logits.shape[0] == targets.numel():
        return logits.view(*targets.shape, logits.shape[1]) if logits.is_contiguous() else otherwise
    return otherwise


def _first(values: Mapping[str, Any], names: Sequence[str]) -> Tensor | None:
    return next((values[name] for name in names if isinstance(values.get(name), Tensor)), None)


@torch.compiler.disable
def observe(module: nn.Module, logits: Tensor, targets: Tensor, **data: Any) -> None:
    """Show logits [B, T, V] or [N, V] and targets to the monitors of the module's trainer; does nothing without one.

    ``data`` are what ``TokenTally.update`` takes (mask, document_ids, sample_ids, …) and ``shift``.
    """
    # A LightningModule raises where it has no trainer, so its private attribute is asked.
    for callback in getattr(getattr(module, "_trainer", None), "callbacks", ()):
        take = getattr(callback, "observe_tokens", None)
        if take is not None:
            take(logits, targets, **data)
