"""How fast this machine trains and evaluates a configuration: a few steps, timed.

    python -m mops_fl.training.speed < flat.json

prints ``{"load": …, "step": …, "row": …}``: seconds until the first step, of one client's local
step, and of evaluating one row. A program of its own, since who asks stays without torch.
"""

import json
import sys
import time

from mops_fl.base.prepare import prepared
from mops_fl.config import Config
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import PRETRAINED, PROMPTS

_COHORT = 5
"""Clients that are timed together, where the configuration has cohorts."""


def measure(config: Config) -> dict[str, float]:
    """Seconds to load, of a local step and of evaluating a row, on one worker."""
    prepared(config.backbone)  # a conversion happens once, not in every run
    begun = time.perf_counter()
    trainer = Trainer(config)
    cohort = _COHORT if config.federation.engine == "cohort" else 1
    partitions = list(range(min(cohort, config.partition.num_clients)))
    start = trainer.method.initial(config, trainer.model_facts.sizes, config.seed)
    # P¹ at its start: a step costs the same whatever its values are
    frozen = {PRETRAINED: start[PROMPTS]} if trainer.method.pretrains(config.prompts) else {}
    tensors, step = [start] * len(partitions), 0.0
    if start:
        # the first time computes what later rounds find in the store
        trainer.train_cohort(partitions, 1, tensors, frozen)
        loaded = time.perf_counter()
        trainer.train_cohort(partitions, 1, tensors, frozen)
        step = (time.perf_counter() - loaded) / len(partitions) / config.train.local_steps
    loaded = time.perf_counter()
    trainer.evaluate_cohort(partitions, tensors, frozen)
    rows = sum(len(trainer.held_out(partition)[0]) for partition in partitions)
    row = (time.perf_counter() - loaded) / max(rows, 1)
    return {"load": loaded - begun, "step": step, "row": row}


if __name__ == "__main__":
    stated = json.load(sys.stdin) | {"local-steps": 2}
    print(json.dumps(measure(Config.from_flat(stated))))
