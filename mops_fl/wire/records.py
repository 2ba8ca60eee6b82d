"""The wire format: what stands in the messages between ServerApp and ClientApps.

Losses travel as (nll, tokens) sums a task and gate weights as sums over examples, so that adding
replies gives the global figure exactly; a mean of perplexities is not a perplexity.
"""

from collections.abc import Mapping
from typing import Final, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from mops_fl.metrics import GateSum, Tallies, Tally

ARRAYS: Final = "arrays"
"""Trainable tensors, both ways: the only ArrayRecord of a reply."""
FROZEN: Final = "frozen"
"""Tensors that the client needs but does not train: P¹, and a gate that is not averaged."""
CONFIG: Final = "config"
METRICS: Final = "metrics"

EXAMPLES: Final = "num-examples"
"""A client's training examples: its weight in FedAvg."""
STEPS: Final = "steps"
SECONDS: Final = "seconds"
ROUND: Final = "server-round"
PARTITION: Final = "partition-id"

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


def to_array_record(tensors: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Tensors as an ArrayRecord, in float32."""
    return ArrayRecord(
        {name: Array(np.ascontiguousarray(value, np.float32)) for name, value in tensors.items()}
    )


def from_array_record(record: ArrayRecord) -> Tensors:
    """The tensors of an ArrayRecord."""
    return {name: array.numpy() for name, array in record.items()}


def num_bytes(record: ArrayRecord) -> int:
    """Bytes of an ArrayRecord as it travels."""
    return sum(len(array.data) for array in record.values())


def whole(record: ConfigRecord | MetricRecord, key: str) -> int:
    """A whole number of a record."""
    return cast(int, record[key])


def put_tallies(metrics: MetricRecord, tallies: Tallies) -> None:
    """Write a tally for each task into a reply's metrics."""
    for task, tally in tallies.items():
        metrics[f"nll/{task}"] = float(tally.nll)
        metrics[f"tokens/{task}"] = int(tally.tokens)


def get_tallies(metrics: MetricRecord) -> dict[str, Tally]:
    """The tallies of a reply's metrics."""
    return {
        key.removeprefix("nll/"): Tally(float(value), int(metrics["tokens/" + key[4:]]))  # type: ignore[arg-type]
        for key, value in metrics.items()
        if key.startswith("nll/")
    }


def put_gate_sums(metrics: MetricRecord, sums: Mapping[str, GateSum]) -> None:
    """Write the gate's sums for each task into a reply's metrics."""
    for task, gate in sums.items():
        metrics[f"gate/{task}"] = [float(weight) for weight in gate.weights]
        metrics[f"gate-examples/{task}"] = int(gate.examples)


def get_gate_sums(metrics: MetricRecord) -> dict[str, GateSum]:
    """The gate's sums of a reply's metrics."""
    return {
        key.removeprefix("gate/"): GateSum(tuple(value), int(metrics["gate-examples/" + key[5:]]))  # type: ignore[arg-type]
        for key, value in metrics.items()
        if key.startswith("gate/")
    }
