"""Does the doctor find what is wrong, and nothing where nothing is? Mistakes planted in small models, and right set-ups.

    python -m benchmarks.doctor [--models Llama,GPT-2,T5,Mixtral] [--seed 0] [--vocab 64] [--rows 8] [--longest 24] [--held-out] [--json FILE]

Each model is tried fresh and trained for a few seconds, with logits in fp32 and in bf16, and with a loss in bf16. Two minutes
for a model on one CPU core. The rules were written on Llama and GPT-2 with seed 0: other models, seeds and sizes are new to them. ``--held-out``
tries the mistakes and set-ups that were written after the rules, and no others.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="Llama,GPT-2,T5,Mixtral")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--longest", type=int, default=24)
    parser.add_argument("--held-out", action="store_true", help="only what was written after the rules")
    parser.add_argument("--json", type=Path, help="write every outcome to this file")
    options = parser.parse_args(arguments)

    from benchmarks.doctor.examples import Size
    from benchmarks.doctor.held_out import HELD_OUT, RIGHT_HELD_OUT
    from benchmarks.doctor.mistakes import MISTAKES
    from benchmarks.doctor.right import ALONE, RIGHT
    from benchmarks.doctor.table import rows_of, summary
    from benchmarks.doctor.trial import of_mistakes, of_right

    torch.set_num_threads(1)
    size = Size(options.vocab, rows=options.rows, longest=options.longest)
    models = options.models.split(",")
    mistakes = HELD_OUT if options.held_out else MISTAKES
    outcomes = list(of_mistakes(models, size, options.seed, mistakes))
    print(*rows_of(outcomes, models, mistakes), sep="\n")
    print(*summary(outcomes), sep="\n")
    setups, alone = (RIGHT_HELD_OUT, {}) if options.held_out else (RIGHT, ALONE)
    right = list(of_right(models, size, options.seed, setups, alone))
    false = [(name, said) for name, said in right if said]
    print(
        f"{len(right)} right set-ups of {len({name.split(',')[0] for name, _ in right})} kinds, {len(false)} with a finding"
    )
    print(*(f"  {name}: {said[0]}" for name, said in false), sep="\n")
    if options.json:
        lines = [{**vars(o), "said": [str(f) for f in o.said]} for o in outcomes]
        options.json.write_text(json.dumps(lines, indent=1), encoding="utf-8")
    return int(
        bool(false)
        or any(count for count in Counter(o.sign for o in outcomes if o.precision != "bf16 loss") if count == "×")
    )
