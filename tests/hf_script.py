"""Run by ``test_hf_ranks``: the Hugging Face ``Trainer`` on ranks that accelerate starts over gloo, one case after another."""

from __future__ import annotations

import json
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist
import transformers

import pplmon
from tests.hf_kit import build, rows, trainer
from tests.launch import launch

EVAL_ROWS = 10  # 2 ranks of 3 rows a batch: the last batches are filled up with rows that were there


def watched(where: Path, **given: Any) -> Any:
    """A trainer of 2 ranks."""
    own = {name: given.pop(name) for name in ("alerts", "on_alert", "every_n_steps") if name in given}
    made = trainer(where, build(), **{"ddp_backend": "gloo", **given})
    pplmon.watch(made, **own)
    return made


def evaluates(where: Path) -> Any:
    """Train with a model that stays as it is; the trainer's history."""
    made = watched(
        where, learning_rate=0.0, eval_strategy="steps", eval_steps=2, report_to=["tensorboard"],
        eval_dataset=rows(EVAL_ROWS, seed=2),
    )  # fmt: skip
    made.train()
    return made.state.log_history


def straight(where: Path) -> Any:
    """Train in one go."""
    made = watched(where, max_steps=4, logging_steps=2, save_strategy="steps", save_steps=1)
    made.train()
    return made.state.log_history


def resumed(where: Path) -> Any:
    """Train again from the third checkpoint of ``straight``, in the middle of a window."""
    made = watched(where, max_steps=4, logging_steps=2, save_strategy="steps", save_steps=1)
    made.train(resume_from_checkpoint=str(where.parent / "straight" / "checkpoint-3"))
    return made.state.log_history


def resumed_apart(where: Path) -> Any:
    """Train again from that checkpoint, where each rank has a disk of its own: the second has no file of pplmon's."""
    disk = where / str(dist.get_rank())
    source = where.parent / "straight" / "checkpoint-3"
    ours = shutil.ignore_patterns("pplmon.pt") if dist.get_rank() else None
    shutil.copytree(source, disk / "checkpoint-3", ignore=ours)
    made = watched(disk, max_steps=4, logging_steps=2)
    made.train(resume_from_checkpoint=True)
    return made.state.log_history


def stops(where: Path) -> Any:
    """Stop on all ranks at the same step."""
    made = watched(where, alerts=[pplmon.Above("cross_entropy", 1.0)], on_alert=pplmon.Stop())
    made.train()
    return made.state.global_step


class Breaks(transformers.TrainerCallback):
    """Raises at the end of the second step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise KeyError("planned")


def trains_again(where: Path) -> Any:
    """Train anew after an exception, in the same process group."""
    made = watched(where, callbacks=[Breaks()], learning_rate=0.0)
    try:
        made.train()
    except KeyError:
        made.pop_callback(Breaks)
    made.train()
    return made.state.log_history


def sharded(where: Path) -> Any:
    """Train a model that FSDP2 cuts over the ranks."""
    made = watched(
        where, learning_rate=0.0, fsdp="full_shard", eval_strategy="steps", eval_steps=2,
        fsdp_config={"fsdp_version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
    )  # fmt: skip
    made.train()
    return made.state.log_history


CASES = (evaluates, straight, resumed, resumed_apart, stops, trains_again, sharded)


def run(where: Path) -> None:
    """Run every case; what each gave is in ``{case}.{rank}.json``, with what pplmon warned of."""
    transformers.utils.logging.set_verbosity_error()
    for case in CASES:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = case(where / case.__name__)
            except Exception:
                result = traceback.format_exc()
        told = [str(each.message) for each in caught if "pplmon" in str(each.message)]
        (where / f"{case.__name__}.{dist.get_rank()}.json").write_text(json.dumps([result, told]))
    dist.destroy_process_group()


if __name__ == "__main__":
    print(launch(run, 2, Path(sys.argv[1]), timeout_s=140.0))
