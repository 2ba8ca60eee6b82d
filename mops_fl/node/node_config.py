"""What the owner of an edge machine decides: facts of the machine, and what it lets leave.

The keys stand in Flower's ``--node-config``. Facts are keys of the run, too; on an edge machine
they come from the node or are the defaults of what is installed there, and never the server's.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from mops_fl.config import METHODS, Config, Scalar, check_fields, defaults, key_of, typed
from mops_fl.errors import ConfigError
from mops_fl.wire.records import PARTITION, partition_of
from mops_fl.wire.replies import LOSS, SHARED

DATA_KEYS = ("dataset", "data-path")
FACTS = (
    *("model", "compression", "calibration", "calibration-path", "calibration-tasks"),
    *("calibration-samples", "sparse-kernels", "dtype", "device", *DATA_KEYS, "prefix-store-gb"),
)
"""Keys of the run that a node answers for itself."""


SHARES = {"loss,gate": SHARED, "loss": (LOSS,), "none": ()}
"""The values of `share-metrics`."""


def _number() -> dict[str, float]:
    return {"low": 0, "below": math.inf}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the node's owner allows; 0 allows anything."""

    allow_methods: str = ""
    """Comma-separated methods; empty for all."""
    max_local_steps: int = field(default=0, metadata=_number())
    """Local steps a round, at most."""
    max_rows: int = field(default=0, metadata=_number())
    """Rows that a round reads, at most: local steps × batch size."""
    min_task_rows: int = field(default=0, metadata=_number())
    """Rows that a task must have here; the rows of smaller ones are left out altogether."""
    max_norm: float = field(default=0.0, metadata=_number())
    """L2 norm of all tensors that the server sends in a message, at most."""
    max_change: float = field(default=0.0, metadata=_number())
    """L2 norm of their difference from those of the last message of the same run, at most."""
    min_clients: int = field(default=0, metadata=_number())
    """Clients that a round must have, as far as the server says how many take part."""
    clip_norm: float = field(default=0.0, metadata=_number())
    """L2 norm to which what was trained, less what was received, is scaled down."""
    noise: float = field(default=0.0, metadata=_number())
    """Standard deviation of Gaussian noise on every number of it, of the system's entropy."""
    share_metrics: str = field(default="loss,gate", metadata={"choices": SHARES})
    """What is told besides: losses by task and gate weights, losses, or neither."""

    def __post_init__(self) -> None:
        check_fields(self)
        unknown = set(self.methods) - set(METHODS)
        if unknown:
            raise ConfigError(
                f"allow-methods={self.allow_methods!r}: there is no {', '.join(sorted(unknown))}; "
                f"known methods: {', '.join(METHODS)}"
            )
        if self.noise and not self.clip_norm:
            raise ConfigError(
                f"noise={self.noise:g} without clip-norm: noise hides what has a largest norm; set "
                "clip-norm, too"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """What of `SHARED` is told."""
        return SHARES[self.share_metrics]

    @property
    def methods(self) -> tuple[str, ...]:
        """Those of `allow-methods`."""
        return tuple(name.strip() for name in self.allow_methods.split(",") if name.strip())


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """One node."""

    partition: int
    """Which client it is."""
    facts: Mapping[str, Scalar]
    """Of `FACTS`, those that the node names."""
    policy: Policy
    own_data: bool = False
    """Whether its rows are this client's alone, not a copy of what is divided among all."""
    threads: int = field(default=0, metadata=_number())
    """CPU threads of its trainer; 0 for torch's own choice."""
    prefix_store: str = ""
    """Folder of the states at L_int; empty for the cache."""
    keep_states: bool = False
    """Whether states of the node's own rows outlast a run."""
    idle_minutes: float = field(default=10.0, metadata=_number())
    """How long the trainer stays without a message."""

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def from_flat(cls, flat: Mapping[str, Scalar]) -> "NodeConfig":
        """Parse a node's configuration.

        Raises:
            ConfigError: a key or value is unknown or missing, or two contradict each other.
        """
        unknown = set(flat) - set(KEYS) - set(_FLOWERS)
        if unknown:
            name = sorted(unknown)[0]
            raise ConfigError(f"--node-config {name}={flat[name]!r}: known keys: {', '.join(KEYS)}")
        facts = {key: flat[key] for key in FACTS if key in flat}
        policy = Policy(**_given(Policy, flat))
        node = cls(partition=partition_of(flat), facts=facts, policy=policy, **_given(cls, flat))
        node.configured({})
        _check_data(flat)
        return node

    def configured(self, run: Mapping[str, Scalar]) -> Config:
        """A run's configuration with this node's facts in place of the server's.

        Raises:
            ConfigError: a value is unknown, or two contradict each other.
        """
        shipped = {key: defaults()[key] for key in FACTS}
        return Config.from_flat({**run, **shipped, **self.facts})


def _settings(cls: type) -> list[Field]:
    """The fields that stand in a flat configuration: those that have a default."""
    return [item for item in fields(cls) if item.default is not MISSING]


def _given(cls: type, flat: Mapping[str, Scalar]) -> dict[str, Any]:
    keys = {item.name: key_of(item) for item in _settings(cls)}
    kinds = {item.name: type(item.default) for item in _settings(cls)}
    return {name: typed(key, flat[key], kinds[name]) for name, key in keys.items() if key in flat}


_FLOWERS = ("num-partitions",)
"""Keys that Flower's own examples give, and that say nothing here."""

KEYS = (
    PARTITION,
    *FACTS,
    *(key_of(item) for owner in (NodeConfig, Policy) for item in _settings(owner)),
)
"""All keys of a node."""


def _check_data(flat: Mapping[str, Scalar]) -> None:
    """A node that names data must say whose they are."""
    said, named = flat.get("own-data"), sorted(set(DATA_KEYS) & set(flat))
    if (said is None and not named) or (isinstance(said, bool) and (named or not said)):
        return
    raise ConfigError(
        f"--node-config own-data={said!r} with {', '.join(named) or 'no data-path'}: a node that "
        "names data says own-data=true where they are this client's alone, and own-data=false "
        "where they are a copy of what is divided among all clients"
    )
