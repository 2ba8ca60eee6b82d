"""Who takes part: every node that describes itself well and holds the same backbone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from mops_fl.config import Config
from mops_fl.methods import method_of
from mops_fl.wire.replies import GATE_WEIGHTS, Description


@dataclass(frozen=True)
class Client:
    """A client that takes part."""

    node: int
    """Flower's id of its node."""
    description: Description


def admit(
    config: Config, described: Mapping[int, Description]
) -> tuple[dict[int, Client], dict[str, str]]:
    """The clients that may take part, and why others may not.

    Nodes that claim one partition id are all refused. Where backbones differ, the one that most
    clients hold is the run's (of equally many, that of the lowest partition id).

    Args:
        config: of the run; `mixed-backbones` admits others, as long as tensors fit.
        described: what each node said of itself.

    Returns:
        The clients by partition id, in its order; and the reasons by who was refused.
    """
    claims = Counter(description.partition for description in described.values())
    refused = {
        f"node {node}": f"several nodes have partition-id={description.partition}: give every "
        "node its own"
        for node, description in described.items()
        if claims[description.partition] > 1
    }
    clients = {
        description.partition: Client(node, description)
        for node, description in sorted(described.items(), key=lambda pair: pair[1].partition)
        if claims[description.partition] == 1
    }
    for partition, fault in _strangers(config, clients).items():
        refused[f"client {partition}"] = fault
        del clients[partition]
    return clients, refused


def misfit(config: Config, newcomer: Client, member: Client) -> str:
    """Why a client cannot share tensors with one that takes part; empty if it can."""
    different = _difference(_compared(config, newcomer), _compared(config, member))
    return different or _withheld(config, newcomer)


def _strangers(config: Config, clients: Mapping[int, Client]) -> dict[int, str]:
    """Why clients cannot share tensors with the rest."""
    if not clients:
        return {}
    compared = {partition: _compared(config, client) for partition, client in clients.items()}
    # of equally many the first counted is given, and clients are in the order of partition ids
    ((common, _),) = Counter(tuple(own.items()) for own in compared.values()).most_common(1)
    faults = {
        partition: _difference(own, dict(common)) or _withheld(config, clients[partition])
        for partition, own in compared.items()
    }
    return {partition: fault for partition, fault in faults.items() if fault}


def _withheld(config: Config, client: Client) -> str:
    """What the run needs and the client's owner keeps back; empty for nothing."""
    weighted = config.aggregation.aggregation == "gate-weighted"
    if weighted and GATE_WEIGHTS not in client.description.metrics:
        return "aggregation=gate-weighted needs its gate weights, and its share-metrics has no gate"
    return ""


def _difference(own: Mapping[str, str | int], common: Mapping[str, str | int]) -> str:
    """In what a client is not as most are; empty if in nothing."""
    different = [
        f"its {key} is {value}, that of most clients {common[key]}"
        for key, value in own.items()
        if value != common[key]
    ]
    if not different:
        return ""
    return "; ".join(different) + (
        ": all clients must hold the same backbone (mixed-backbones=true allows others)"
    )


def _compared(config: Config, client: Client) -> dict[str, str | int]:
    """What must be the same on all clients: the backbone, or what tensors need of it."""
    description = client.description
    if not config.federation.mixed_backbones:
        return description.backbone
    shapes = method_of(config.method).all_shapes(config, description.sizes)
    return {f"{name}'s shape": str(shape) for name, shape in shapes.items()}
