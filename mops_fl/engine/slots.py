"""Where workers may run, from what a Ray cluster says it has. Ray itself is not needed here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Slot:
    """A place for one worker."""

    node: str
    """Ray's id of the machine."""
    device: str
    """`cpu` or `cuda:N`, as the processes of that machine count."""
    threads: int
    """CPU threads."""
    host: str = ""
    """The machine's name."""
    workers: int = field(default=1, compare=False)
    """Workers that share the machine's memory."""

    def __str__(self) -> str:
        return f"{self.device} on {self.host or 'Ray node'} ({self.node[:8]})"


def slots_of(
    nodes: Mapping[str, Mapping[str, float]], device: str, threads: int | None
) -> list[Slot]:
    """A slot for each GPU of the cluster, or for each `threads` CPUs of a machine: at least one.

    Args:
        nodes: Ray's ids of machines, with their resources as Ray states them.
        device: of the configuration; `auto` takes CPUs only where no node has a GPU, and `cuda:N`
            that GPU of each node.
        threads: of each worker; None for one beside other workers on CPUs, and for a GPU's share
            of its machine.
    """
    gpus, cpus = [], []
    for node, resources in sorted(nodes.items()):
        cpu_count, gpu_count = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        names = [f"cuda:{index}" for index in range(gpu_count)]
        if device.startswith("cuda:"):
            names = [name for name in names if name == device]
        share = threads or max(1, cpu_count // max(1, len(names)))
        gpus += [Slot(node, name, share, workers=len(names)) for name in names]
        count = max(cpu_count // (threads or 1), min(cpu_count, 1))
        cpus += [Slot(node, "cpu", threads or 1, workers=count)] * count
    if device == "cpu" or (device == "auto" and not gpus):
        return cpus
    return gpus


def threads_of_a_client() -> int | None:
    """What ``--cpus-per-client`` says, or the environment of a plain ``flwr run``; None if neither.

    Flower does not tell the ServerApp what it gives to a client. The launcher hands it to all
    processes as ``OMP_NUM_THREADS``, which is what their libraries go by, too.
    """
    # OpenMP allows a list, with a number for each level of nested loops.
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None
