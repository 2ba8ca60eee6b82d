"""Names of the records and tensors that travel, and tensors as Flower's ArrayRecords."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord

from mops_fl.errors import ConfigError

ARRAYS: Final = "arrays"
"""Trainable tensors, both ways: the only ArrayRecord of a reply."""
FROZEN: Final = "frozen"
"""Tensors that the client needs but does not send back: P¹, and a gate that is not averaged."""
CONFIG: Final = "config"
METRICS: Final = "metrics"

PARTITION: Final = "partition-id"
"""Key of a node's configuration that says which client it is."""

PROMPTS: Final = "prompts"
"""Name of the K trainable vectors, shape [K, d]."""
GATE_HIDDEN: Final = "gate.hidden"
"""Name of W₁, shape [d_g, d]."""
GATE_OUTPUT: Final = "gate.output"
"""Name of W₂, shape [E, d_g]."""
PRETRAINED: Final = "pretrained"
"""Name of P¹, shape [K₁, d]."""
GATE: Final = (GATE_HIDDEN, GATE_OUTPUT)

Tensors = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


def partition_of(node_config: Mapping[str, object]) -> int:
    """The client that a node is, by its configuration.

    Raises:
        ConfigError: the node was not told, or not as a number.
    """
    partition = node_config.get(PARTITION)
    if type(partition) is not int or partition < 0:
        raise ConfigError(
            f"{PARTITION}={partition!r}: start every node with a number of its own from 0, "
            f'--node-config "{PARTITION}=0"'
        )
    return partition


def to_array_record(tensors: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Tensors as an ArrayRecord, in float32."""
    return ArrayRecord(
        {name: Array(np.ascontiguousarray(value, np.float32)) for name, value in tensors.items()}
    )


def from_array_record(record: ArrayRecord) -> Tensors:
    """The tensors of a record of our own making; others are read by `wire.parsing`."""
    return {name: array.numpy() for name, array in record.items()}


def norm(tensors: Mapping[str, np.ndarray]) -> float:
    """L2, over all tensors together."""
    return sum(np.square(value, dtype=np.float64).sum() for value in tensors.values()) ** 0.5


def difference(of: Mapping[str, np.ndarray], to: Mapping[str, np.ndarray]) -> Tensors:
    """What some tensors have more than others of the same names, in float64: an update."""
    return {name: value.astype(np.float64) - to[name] for name, value in of.items()}


def clip_factor(update: Mapping[str, np.ndarray], most: float) -> float:
    """What makes an update no longer than `most` (L2, over all tensors): 1, or less."""
    length = norm(update)
    return min(1.0, most / length) if length else 1.0


def num_bytes(record: ArrayRecord) -> int:
    """Bytes of an ArrayRecord as it travels."""
    return sum(len(array.data) for array in record.values())
