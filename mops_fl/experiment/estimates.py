"""How long cells will take: from a short calibration of each method, kept for this machine."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mops_fl.code_digest import code_digest
from mops_fl.config import Config
from mops_fl.errors import RunError
from mops_fl.experiment.plan import Cell
from mops_fl.files import cache_folder, made_once
from mops_fl.run.provenance import machine, versions

START_SECONDS = 25.0
"""Flower and Ray, from nothing to the first message and back to nothing; seen on two cores."""

_FILE = "speed.json"

_CALIBRATED = (
    *("model", "dtype", "device", "dataset", "data-path", "max-length", "method", "engine"),
    *("batch-size", "experts", "prompts-per-expert", "injection-layer", "gate-top", "gate-mode"),
    *("lora-rank", "num-clients", "num-samples", "training", "prefix-store-gb"),
)
"""Keys on which the speed depends."""


@dataclass(frozen=True)
class Speed:
    """Seconds on one worker."""

    load: float
    """Until the first step."""
    step: float
    """Of one client's local step, in a cohort where the configuration has cohorts."""
    row: float
    """Of evaluating one row."""


def calibrate(config: Config) -> Speed:
    """Time a few steps in a process that ends; once, as long as machine and code stay the same.

    Raises:
        RunError: that failed.
    """
    flat = config.flat()
    facts = [[flat[key] for key in _CALIBRATED], config.backbone.spec.quantisation]
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    key = json.dumps([facts, machine(), shown, versions(), code_digest()])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    with made_once(cache_folder() / "speeds" / name) as made:
        if made.folder is not None:
            (made.folder / _FILE).write_text(json.dumps(asdict(_timed(config))), encoding="utf-8")
    return Speed(**json.loads((made.target / _FILE).read_text(encoding="utf-8")))


def _timed(config: Config) -> Speed:
    # zeros cost what other weights cost: nothing is pruned to be timed
    flat = {**config.flat(), "compression": config.backbone.spec.quantisation or "none"}
    command = [sys.executable, "-P", "-m", "mops_fl.training.speed"]
    done = subprocess.run(
        command, input=json.dumps(flat), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RunError(f"the calibration failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    return Speed(**json.loads(done.stdout.splitlines()[-1]))


def estimate(config: Config, speed: Speed, workers: int) -> float:
    """Seconds of a run.

    Args:
        config: of the run.
        speed: of its method on one worker.
        workers: that share the clients of a round.
    """
    federation, prompts, clients = config.federation, config.prompts, config.partition.num_clients
    seen = clients - config.partition.num_unseen
    active = {"local": seen, "centralised": 1}.get(config.training, federation.active_clients)
    rounds = 0 if config.method == "base" else federation.num_server_rounds
    before = prompts.pretrain_prompt_steps if prompts.pretrain_data != "none" else 0
    # a share of 90 % in training at most; the mean client holds so many rows
    held = max(1.0, config.data.num_samples * config.data.test_fraction / clients)
    rows = min(held, config.data.eval_samples or held)
    some = min(federation.evaluate_clients or clients, clients)
    evaluations = some * (rounds // federation.eval_every) + clients
    work = rounds * active * config.train.local_steps * speed.step + evaluations * rows * speed.row
    share = min(workers, active)
    return START_SECONDS + speed.load + before * speed.step * 2 + work / share


def estimates(cells: Iterable[Cell], workers: int) -> dict[Cell, float]:
    """Seconds of each cell that can be timed here; configurations of one speed are timed once."""
    speeds: dict[tuple, Speed | None] = {}
    found = {}
    for cell in cells:
        flat: Mapping[str, Any] = cell.config.flat()
        key = tuple(flat[name] for name in _CALIBRATED)
        if key not in speeds:
            speeds[key] = None
            # what is wrong with the cell is said when it is run
            with contextlib.suppress(RunError):
                speeds[key] = calibrate(cell.config)
        if speed := speeds[key]:
            found[cell] = estimate(cell.config, speed, workers)
    return found
