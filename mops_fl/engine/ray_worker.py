"""Workers as Ray actors: how they are started in their slots.

Flower's own client actors hold all of Ray's CPUs and GPUs from the start and stay idle under this
engine, so these actors reserve nothing: each is bound to a node and told its device and threads.
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import mops_fl
from mops_fl.config import Config
from mops_fl.engine.pool import Shard
from mops_fl.engine.slots import Slot, slots_of
from mops_fl.errors import RunError
from mops_fl.machine import GPU_WORKERS_VARIABLE, WORKERS_VARIABLE
from mops_fl.training.tasks import Served

_PATIENCE_SECONDS = 120.0
"""How long Flower may take to start Ray or to reach its cluster."""

_START_SECONDS = 600.0
"""How long a worker's process may take to start and to import what it needs."""


def find_slots(device: str, threads: int | None) -> list[Slot]:
    """`slots_of` the Ray cluster that this process is connected to.

    ``--workers`` times ``--cpus-per-client`` is the number of CPUs of a Ray that Flower starts.

    Raises:
        RunError: Ray was not started in time.
    """
    _wait_for_ray()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"]]
    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in nodes}
    slots = slots_of({node["NodeID"]: node["Resources"] for node in nodes}, device, threads)
    return [replace(slot, host=hosts[slot.node]) for slot in slots]


def _wait_for_ray() -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not ray.is_initialized():
        if time.monotonic() > deadline:
            raise RunError(f"Flower did not start Ray within {_PATIENCE_SECONDS:.0f} s")
        time.sleep(0.05)


class _Actor:
    """A `CohortWorker`, made where it runs: this process need not load what it loads."""

    def __init__(self, config: Config, device: str, threads: int) -> None:
        from mops_fl.engine.worker import CohortWorker

        self._worker = CohortWorker(config, device, threads)

    def serve(self, tasks: Shard) -> Served:
        return self._worker.serve(tasks)


@dataclass(frozen=True)
class RayPlace:
    """Starts workers in one slot."""

    config: Config
    slot: Slot

    def __call__(self) -> "RayWorker":
        return RayWorker(self.config, self.slot)

    def __str__(self) -> str:
        return str(self.slot)


class RayWorker:
    """A `CohortWorker` in a process of its own, somewhere in the Ray cluster."""

    def __init__(self, config: Config, slot: Slot) -> None:
        """Start the process and wait until it can serve.

        Raises:
            ray.exceptions.RayError: it could not start, or not in time.
        """
        options: dict[str, Any] = {
            "num_cpus": 0,
            "max_restarts": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(slot.node, soft=False),
            "runtime_env": {"env_vars": _environment(slot)},
        }
        # ray's types do not know the methods of an actor
        kind: Any = ray.remote(_Actor)
        self._actor: Any = kind.options(**options).remote(config, slot.device, slot.threads)
        try:
            ray.get(self._actor.__ray_ready__.remote(), timeout=_START_SECONDS)
        except BaseException:
            self.stop()
            raise

    def serve(self, tasks: Shard) -> Served:
        """Answer tasks there.

        Raises:
            ray.exceptions.RayError: the process died or cannot be reached any more.
            Exception: what the `CohortWorker` raised.
        """
        try:
            return ray.get(self._actor.serve.remote(tasks))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def stop(self) -> None:
        """Kill the process."""
        ray.kill(self._actor)


def _environment(slot: Slot) -> dict[str, str]:
    """Variables of a worker's process, which imports this very copy of the code where it has it.

    A machine without that folder imports the copy that its own Python finds: Ray puts what the
    variable is there in the place of ``${PYTHONPATH}``.
    """
    source = str(Path(mops_fl.__file__).resolve().parents[1])
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [source, "${PYTHONPATH}", *filter(None, own)]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "OMP_NUM_THREADS": str(slot.threads),
        WORKERS_VARIABLE: str(slot.workers),
        GPU_WORKERS_VARIABLE: "1",
        # Ray hides the GPUs from an actor that reserves none.
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    }
