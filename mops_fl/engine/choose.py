"""Which engine a run takes, and where it runs."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.superlink.grid import InMemoryGrid

from mops_fl.config import Config
from mops_fl.engine.slots import Slot, threads_of_a_client
from mops_fl.errors import ConfigError

_CPU_COHORT = 5
"""Clients in one forward on the CPU. The same whatever the number of workers is, and so are the
results: which clients share a forward pass changes their last bits.

With SmolLM2-135M in bfloat16 on one thread, a cohort of 5 took 1.4 times the steps a second of one
client on `skills` rows (52 tokens), 1.1 times on Dolly's (122 tokens). A round of 10 clients is two
such cohorts, so more than two workers would stand idle: `auto` leaves the CPU to Flower's own
scheduling, and `engine = cohort` is worth its while on few cores."""


@dataclass(frozen=True)
class Placement:
    """Which processes serve the clients of a run. Bits of the results depend on threads."""

    engine: str
    """`clients` or `cohort`."""
    workers: int | None = None
    """Processes side by side; None where Flower or the nodes decide."""
    threads: int | None = None
    """CPU threads of each; None where Flower or the nodes decide, or where workers differ."""
    devices: tuple[str, ...] = ()
    """Those of cohorts; with `engine=clients` every client finds its own."""
    cohort_size: int | None = None
    """Clients in one forward pass; 0 for a worker's share of a phase."""
    simulated: bool = True
    """Whether clients are virtual, with all data at hand."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` says of it."""
        return {**asdict(self), "devices": list(self.devices)}


def start_engine(config: Config, grid: Grid) -> tuple[Grid, Placement]:
    """The Grid for a run, and who serves it: Flower's own for `engine=clients`, else cohorts.

    Raises:
        ConfigError: `engine=cohort` outside a simulation, or without the device that it is to use.
        RunError: Flower did not start Ray.
    """
    engine = config.federation.engine
    if not isinstance(grid, InMemoryGrid):
        if engine == "cohort":
            raise ConfigError(
                "engine=cohort is for simulations: in a deployment every node trains its own "
                "client; use engine=clients or engine=auto"
            )
        return grid, Placement("clients", simulated=False)
    # A deployment goes without Ray, which takes seconds to import.
    from mops_fl.engine.ray_worker import find_slots

    threads = threads_of_a_client()
    slots = find_slots(config.backbone.device, threads)
    on_gpus = any(slot.device != "cpu" for slot in slots)
    if engine == "clients" or (engine == "auto" and not on_gpus):
        # Without threads, or with shares of GPUs, only Flower knows how many clients it runs.
        workers = None if on_gpus or not threads else len(slots)
        return grid, Placement("clients", workers, threads)
    if not slots:
        raise ConfigError(
            f"device={config.backbone.device!r}: no machine of the Ray cluster has such a device; "
            "use device=cpu or device=auto"
        )
    return _cohorts(config, grid, slots, 0 if on_gpus else _CPU_COHORT)


def _cohorts(
    config: Config, grid: Grid, slots: list[Slot], default_size: int
) -> tuple[Grid, Placement]:
    from mops_fl.engine.grid import CohortGrid
    from mops_fl.engine.ray_worker import RayPlace

    size = config.federation.cohort_size or default_size
    # No phase has more shards than this.
    slots = slots[: -(-config.partition.num_clients // (size or 1))]
    threads = {slot.threads for slot in slots}
    placement = Placement(
        engine="cohort",
        workers=len(slots),
        threads=threads.pop() if len(threads) == 1 else None,
        devices=tuple(sorted({slot.device for slot in slots})),
        cohort_size=size,
    )
    log(
        logging.INFO,
        "engine: cohorts of %s clients on %d workers (%s), CPU threads of each: %s",
        size or "all",
        placement.workers,
        ", ".join(placement.devices),
        placement.threads or "its share",
    )
    return CohortGrid(grid, config, [RayPlace(config, slot) for slot in slots], size), placement
