"""What leaks: attacks on a client's round, as `experiments/results/leakage.csv` and `.md`.

python -m experiments.leakage --dolly dolly-15k.jsonl
"""

import argparse
import os
import time
from dataclasses import astuple, fields
from pathlib import Path

import torch

from experiments.leakage.leakage_page import page
from experiments.leakage.study import Line, Sizes, Study
from experiments.leakage.victim import Victim
from mops_fl.config import Config
from mops_fl.files import write_text
from mops_fl.run.folder import csv_line


def main() -> None:
    """Run the study and write both files, the table after every attack."""
    parser = argparse.ArgumentParser("python -m experiments.leakage", None, __doc__)
    parser.add_argument("--dolly", default="", help="JSONL with Dolly's schema; `skills` without")
    parser.add_argument("--model", default="smollm2-135m", help="as the key `model`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/leakage.csv"))
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    data = {"dataset": "dolly", "data-path": options.dolly} if options.dolly else {}
    config = Config.from_flat(
        {
            **data,
            **{"model": options.model, "dtype": "float32", "device": "cpu", "seed": options.seed},
            **{"max-length": 128, "num-clients": 10, "prefix-store-gb": 0.0},
        }
    )
    began, processor = time.perf_counter(), time.process_time()
    lines: list[Line] = []
    for line in Study(Victim(config), Sizes()).run():
        lines.append(line)
        print(*astuple(line), flush=True)
        names = tuple(field.name for field in fields(Line))
        write_text(options.out, "".join(map(csv_line, [names, *map(astuple, lines)])))
    seconds = time.perf_counter() - began, time.process_time() - processor
    write_text(options.out.with_suffix(".md"), page(lines, config, Sizes(), *seconds))


if __name__ == "__main__":
    main()
