"""``pplmon doctor``: look at the first batches that a training step would see, and say what does not agree."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pplmon.report.answer import Answer, CommandError, Exit

if TYPE_CHECKING:
    from pplmon.doctor import Finding, Observation
    from pplmon.doctor.batches import Batch
    from pplmon.doctor.first_batch import Decode


def add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    text = "compare logits, targets, loss and ids of the first batches, and say what does not agree"
    more = (
        f"{text[0].upper()}{text[1:]}. A batch is a dict with logits and targets (or labels), and where you have them loss, "
        "input_ids, attention_mask and shift. Without logits only what ids and labels say is looked at, as of a file "
        "that SaveBatch wrote. Exit code: 0 where all agrees, 1 with findings, 2 where the input cannot be used."
    )
    doctor = commands.add_parser("doctor", help=text, description=more)
    doctor.add_argument(
        "source",
        metavar="SOURCE",
        help="a file (.pt, .pth, .npz, .safetensors), or a function that returns or yields batches: package.module:function or "
        "file.py:function",
    )
    doctor.add_argument(
        "--shift",
        action=argparse.BooleanOptionalAction,
        help="logits at t predict the target at t+1, or at t (default: what the batch says under shift, else at t)",
    )
    doctor.add_argument("--ignore-index", type=int, default=-100, metavar="ID", help="(default: %(default)s)")
    doctor.add_argument("--batches", type=int, default=3, metavar="N", help="look at so many (default: %(default)s)")
    doctor.add_argument("--show", action="store_true", help="print the first batch, with what is not scored in grey")
    doctor.add_argument("--tokenizer", metavar="NAME_OR_PATH", help="of transformers, for --show (default: ids)")
    doctor.set_defaults(answers=_doctor)


def _doctor(options: argparse.Namespace) -> Iterator[Answer]:
    from pplmon.doctor import judge
    from pplmon.doctor.batches import batches_of

    try:
        if options.batches < 1:
            raise ValueError(f"--batches must be 1 or more, got {options.batches}")
        batches = batches_of(options.source, options.batches)
        seen = [_observation(batch, options) for batch in batches]
        if len({batch.facts.shift for batch in seen}) > 1:
            raise ValueError("the batches say unlike things under shift; state one by --shift or --no-shift")
        decode = _decode(options.tokenizer) if options.show else None
    except Exception as error:  # of a user's function whatever it raises: no traceback of ours is of use
        raise CommandError(f"{type(error).__name__}: {error}") from error
    findings = judge(seen, options.ignore_index)
    yield Answer(
        lambda: _values(options.source, batches, seen, findings),
        lambda: _print(batches, seen, findings, options.show, decode),
        Exit.FOUND if findings else Exit.FINE,
    )


def _observation(batch: Batch, options: argparse.Namespace) -> Observation:
    """Measure a batch. Without logits, some that know nothing stand for them: what ids and labels say does not depend on them."""
    import torch

    from pplmon.doctor import alignment
    from pplmon.doctor.diagnose import observation

    targets, ids, logits, loss = batch["targets"], batch.get("input_ids"), batch.get("logits"), batch["loss"]
    stated = batch["shift"] if options.shift is None else options.shift
    if logits is None:
        vocab = 1 + max(int(part.max()) if part.numel() else 0 for part in (targets, ids) if part is not None)
        logits, loss = torch.zeros(()).expand(*targets.shape, max(vocab, 1)), None

    def under(shift: bool) -> Observation:
        return observation(logits, targets, loss, shift, ids, batch.get("attention_mask"), options.ignore_index)

    seen = under(bool(stated))
    labels_are_ids = stated is None and "logits" not in batch and alignment([seen.facts]) == 0
    return under(shift=True) if labels_are_ids else seen  # as models take them, which shift them


def _decode(name: str | None) -> Decode | None:
    if name is None:
        return None
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ImportError(
            "--tokenizer takes transformers: pip install transformers, or leave it out to see ids"
        ) from None
    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    return lambda ids: str(tokenizer.decode(ids))


def _values(
    source: str, batches: Sequence[Batch], seen: Sequence[Observation], findings: Sequence[Finding]
) -> dict[str, Any]:
    return {
        "source": source,
        "batches": len(seen),
        "tokens": _tokens(seen),
        "shift": bool(seen[0].facts.shift),
        "cross_entropy": _mean(seen) if _have_logits(batches) else None,
        "loss": _losses(seen),
        "findings": [asdict(finding) for finding in findings],
    }


def _print(
    batches: Sequence[Batch],
    seen: Sequence[Observation],
    findings: Sequence[Finding],
    shows: bool,
    decode: Decode | None,
) -> None:
    from rich.console import Console
    from rich.text import Text

    from pplmon.doctor.first_batch import rows_of, show
    from pplmon.report.visible import visible

    console = Console(highlight=False)
    first = seen[0].measured
    if shows and first is not None:
        show(console, rows_of(first.tokens, bool(first.shift), decode), first.tokens.targets)
    for finding in findings:
        console.print(Text.assemble((finding.kind, "bold yellow"), ": ", visible(finding.text)), soft_wrap=True)
        console.print(Text(f"  {visible(finding.fix)}", "green"), soft_wrap=True)
    console.print(Text(_summary(batches, seen, findings)), soft_wrap=True)


def _summary(batches: Sequence[Batch], seen: Sequence[Observation], findings: Sequence[Finding]) -> str:
    of = f"{len(seen)} batch{'es' if len(seen) > 1 else ''}, {_tokens(seen)} scored tokens"
    if not _have_logits(batches):
        return f"{of}: {_count(findings)} in ids and labels; there are no logits to compare with a loss"
    measured = f"{of}, cross-entropy {_mean(seen):.5g} nats per token with shift={bool(seen[0].facts.shift)}"
    losses = _losses(seen)
    if findings:
        return f"{measured}: {_count(findings)}"
    if not losses:
        return f"{measured}: no findings; give the loss, too, to know that it is the right number"
    return f"{measured}: it agrees with the loss, {sum(losses) / len(losses):.5g}"


def _have_logits(batches: Sequence[Batch]) -> bool:
    return all("logits" in batch for batch in batches)


def _count(findings: Sequence[Finding]) -> str:
    return "1 finding" if len(findings) == 1 else f"{len(findings) or 'no'} findings"


def _tokens(seen: Sequence[Observation]) -> int:
    return int(sum(batch.facts.sums[batch.facts.told].tokens for batch in seen))


def _mean(seen: Sequence[Observation]) -> float:
    from math import nan

    tokens = _tokens(seen)
    return sum(batch.facts.sums[batch.facts.told].nll for batch in seen) / tokens if tokens else nan


def _losses(seen: Sequence[Observation]) -> list[float]:
    return [batch.loss.value for batch in seen if batch.loss is not None]
