"""Which engine a run takes."""

import logging
from functools import partial

from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.superlink.grid import InMemoryGrid

from mops_fl.config import Config
from mops_fl.engine.grid import CohortGrid
from mops_fl.engine.ray_worker import RayWorker, Slot, find_slots
from mops_fl.errors import ConfigError

_CPU_COHORT = 5
"""Clients in one forward on the CPU. The same whatever the number of workers is, and so are the
results: which clients share a forward pass changes their last bits.

With SmolLM2-135M in bfloat16 on one thread, a cohort of 5 took 1.4 times the steps a second of one
client on `skills` rows (52 tokens), 1.1 times on Dolly's (122 tokens). A round of 10 clients is two
such cohorts, so more than two workers would stand idle: `auto` leaves the CPU to Flower's own
scheduling, and `engine = cohort` is worth its while on few cores."""


def engine_grid(config: Config, grid: Grid) -> Grid:
    """The Grid for a run: Flower's own for `engine=clients`, else one of cohorts.

    Raises:
        ConfigError: `engine=cohort` outside a simulation, or without the device that it is to use.
        RunError: Flower did not start Ray.
    """
    engine = config.federation.engine
    if engine == "clients":
        return grid
    if not isinstance(grid, InMemoryGrid):
        if engine == "auto":
            return grid
        raise ConfigError(
            "engine=cohort is for simulations: in a deployment every node trains its own client; "
            "use engine=clients or engine=auto"
        )
    slots = find_slots(config.backbone.device)
    on_gpus = any(slot.device != "cpu" for slot in slots)
    if engine == "auto" and not on_gpus:
        return grid
    if not slots:
        raise ConfigError(
            f"device={config.backbone.device!r}: no machine of the Ray cluster has such a device; "
            "use device=cpu or device=auto"
        )
    return _cohort_grid(config, grid, slots, 0 if on_gpus else _CPU_COHORT)


def _cohort_grid(config: Config, grid: Grid, slots: list[Slot], default_size: int) -> CohortGrid:
    size = config.federation.cohort_size or default_size
    # No phase has more shards than this.
    slots = slots[: -(-config.partition.num_clients // (size or 1))]
    log(
        logging.INFO,
        "engine: cohorts of %s clients on %d workers (%s)",
        size or "all",
        len(slots),
        ", ".join(sorted({slot.device for slot in slots})),
    )
    return CohortGrid(grid, config, [partial(RayWorker, config, slot) for slot in slots], size)
