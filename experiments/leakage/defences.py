"""What stands between a client's round and whoever attacks it."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from flwr.app import RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata

from mops_fl.config import Config
from mops_fl.errors import PolicyError
from mops_fl.node.enforcement import blurred, check_request
from mops_fl.node.node_config import Policy
from mops_fl.wire.records import (
    ARRAYS,
    CONFIG,
    FROZEN,
    Tensors,
    clip_factor,
    difference,
    to_array_record,
)
from mops_fl.wire.requests import TRAIN, Assignment


def refusal(
    policy: Policy, config: Config, messages: Sequence[Tensors], frozen: Tensors, clients: int
) -> str:
    """Why a node refuses the last of a run's messages; empty if it does not.

    Args:
        policy: the node's.
        config: of the run.
        messages: the tensors that the server sends, round by round.
        frozen: P¹, where there is one.
        clients: how many take part, as the server says.

    Raises:
        PolicyError: an earlier message is refused.
    """
    with TemporaryDirectory() as folder:
        *earlier, last = messages
        for tensors in earlier:
            _check(policy, config, tensors, frozen, clients, Path(folder))
        try:
            _check(policy, config, last, frozen, clients, Path(folder))
        except PolicyError as reason:
            return str(reason)
    return ""


def _check(
    policy: Policy, config: Config, sent: Tensors, frozen: Tensors, clients: int, kept: Path
) -> None:
    content = RecordDict(
        {
            ARRAYS: to_array_record(sent),
            FROZEN: to_array_record(frozen),
            CONFIG: Assignment("0" * 32, 1, 0, clients).record(),
        }
    )
    metadata = Metadata(1, "train-1", 1, 2, "", "", 0.0, 3600.0, TRAIN)
    check_request(policy, config, make_message(metadata, content), kept)


def leaving(policy: Policy, start: Tensors, update: Tensors) -> Tensors:
    """An update as the node's policy lets it leave."""
    if not policy.clip_norm:
        return update
    sent = blurred(policy, start, {name: start[name] + own for name, own in update.items()})
    return difference(sent, start)


def central_release(
    updates: Sequence[Tensors], clip: float, multiplier: float, generator: np.random.Generator
) -> Tensors:
    """What a server with central differential privacy makes known of a round.

    The mean of the updates, each scaled down to norm `clip`, with Gaussian noise of standard
    deviation ``multiplier · clip / clients`` on every number of it.
    """
    count = len(updates)
    scales = [clip_factor(own, clip) for own in updates]
    return {
        name: sum(scale * own[name] for scale, own in zip(scales, updates, strict=True)) / count
        + generator.normal(0, multiplier * clip / count, updates[0][name].shape)
        for name in updates[0]
    }
