"""Workers as Ray actors: where they may run, and how they are started there.

Flower's own client actors hold all of Ray's CPUs and GPUs from the start and stay idle under this
engine, so these actors reserve nothing: each is bound to a node and told its device and threads.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import mops_fl
from mops_fl.config import Config
from mops_fl.engine.pool import Shard
from mops_fl.engine.tasks import Served
from mops_fl.errors import RunError

_PATIENCE_SECONDS = 120.0
"""How long Flower may take to start Ray or to reach its cluster."""


@dataclass(frozen=True)
class Slot:
    """A place for one worker."""

    node: str
    """Ray's id of the machine."""
    device: str
    """`cpu` or `cuda:N`, as the processes of that machine count."""
    threads: int
    """CPU threads."""


def find_slots(device: str) -> list[Slot]:
    """A slot for each GPU of the Ray cluster that this process is connected to, or for each CPU.

    ``--workers`` times ``--cpus-per-client`` is the number of CPUs of a Ray that Flower starts.

    Args:
        device: of the configuration; `auto` takes CPUs only where no node has a GPU, and `cuda:N`
            that GPU of each node.

    Raises:
        RunError: Ray was not started in time.
    """
    _wait_for_ray()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"]]
    return slots_of({node["NodeID"]: node["Resources"] for node in nodes}, device)


def slots_of(nodes: Mapping[str, Mapping[str, float]], device: str) -> list[Slot]:
    """`find_slots` for nodes by id with their resources, as Ray states them."""
    gpus, cpus = [], []
    for node, resources in sorted(nodes.items()):
        cpu_count, gpu_count = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        names = [f"cuda:{index}" for index in range(gpu_count)]
        if device.startswith("cuda:"):
            names = [name for name in names if name == device]
        gpus += [Slot(node, name, max(1, cpu_count // len(names))) for name in names]
        cpus += [Slot(node, "cpu", 1)] * cpu_count
    if device == "cpu" or (device == "auto" and not gpus):
        return cpus
    return gpus


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


class RayWorker:
    """A `CohortWorker` in a process of its own, somewhere in the Ray cluster."""

    def __init__(self, config: Config, slot: Slot) -> None:
        """Start the process; what goes wrong there is raised by `serve`."""
        options: dict[str, Any] = {
            "num_cpus": 0,
            "max_restarts": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(slot.node, soft=False),
            "runtime_env": {"env_vars": _environment(slot)},
        }
        # ray's types do not know the methods of an actor
        kind: Any = ray.remote(_Actor)
        self._actor: Any = kind.options(**options).remote(config, slot.device, slot.threads)

    def serve(self, tasks: Shard) -> Served:
        """Answer tasks there.

        Raises:
            ray.exceptions.RayError: the process died, could not start, or its device is lost.
        """
        return ray.get(self._actor.serve.remote(tasks))

    def stop(self) -> None:
        """Kill the process."""
        ray.kill(self._actor)


def _environment(slot: Slot) -> dict[str, str]:
    """Variables of a worker's process, which imports this very copy of the code."""
    source = str(Path(mops_fl.__file__).resolve().parents[1])
    paths = [source, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "OMP_NUM_THREADS": str(slot.threads),
        # Ray hides the GPUs from an actor that reserves none.
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    }
