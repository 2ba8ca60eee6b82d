"""What the rounds begin with: initial tensors, pretrained as `pretrain-data` says."""

import logging
from collections.abc import Mapping, Sequence

from flwr.common.logger import log
from flwr.serverapp import Grid

from mops_fl.config import Config
from mops_fl.data import unseen_partitions
from mops_fl.errors import ConfigError, RunError
from mops_fl.methods import method_of
from mops_fl.run.recorder import Recorder
from mops_fl.wire.asking import ask
from mops_fl.wire.records import Tensors
from mops_fl.wire.replies import Pretrained
from mops_fl.wire.requests import PRETRAIN, PretrainRequest
from strategies import Client, require
from strategies.averaging import weighted_mean

_TRIES = 3
"""Clients that are asked to pretrain, one after the other, until one gives a valid reply."""


def start(
    config: Config,
    clients: Mapping[int, Client],
    grid: Grid,
    recorder: Recorder,
    *,
    simulated: bool,
) -> Tensors:
    """All tensors before round 1: from sizes alone, then pretrained where the method asks for it.

    In a simulation a client's worker pretrains on the server's behalf; in a deployment rows of the
    server do not leave it.

    Raises:
        ConfigError: `pretrain-data` is not to be had in a deployment.
        RunError: too few of the clients that were asked gave a valid reply.
    """
    method, sizes = method_of(config.method), next(iter(clients.values())).description.sizes
    initial = method.initial(config, sizes, config.seed)
    source = config.prompts.pretrain_data
    if not method.starts_from_model(config.prompts):
        return initial
    if not simulated and source in ("server", "pooled") and method.needs_rows(config.prompts):
        return _on_the_server(config, clients, initial, recorder)
    unseen = unseen_partitions(config.partition, config.seed)
    seen = {partition: client for partition, client in clients.items() if partition not in unseen}
    if source == "own":
        return _averaged(config, seen, grid, initial, recorder)
    for partition in list(seen)[:_TRIES]:
        valid, failures = _asked(config, seen, [partition], grid, initial, recorder)
        if valid:
            return valid[partition]
    raise RunError(f"no client could pretrain; client {partition}: {failures[partition]}")


def _averaged(
    config: Config,
    clients: Mapping[int, Client],
    grid: Grid,
    initial: Tensors,
    recorder: Recorder,
) -> Tensors:
    """FedAvg of what each client makes of its own rows.

    Raises:
        RunError: too few replies are valid.
    """
    valid, failures = _asked(config, clients, [*clients], grid, initial, recorder)
    reasons = {f"client {partition}": reason for partition, reason in failures.items()}
    require("{} could pretrain", len(valid), len(clients), config.federation, reasons)
    weights = [clients[partition].description.examples for partition in valid]
    return weighted_mean([*valid.values()], weights)


def _asked(
    config: Config,
    clients: Mapping[int, Client],
    partitions: Sequence[int],
    grid: Grid,
    initial: Tensors,
    recorder: Recorder,
) -> tuple[dict[int, Tensors], dict[int, str]]:
    """What some of the clients pretrain, and why others could not, by partition id."""
    sizes = next(iter(clients.values())).description.sizes
    shapes = method_of(config.method).all_shapes(config, sizes)
    content = PretrainRequest(initial, _tasks(clients)).content()
    valid, failures = ask(
        grid,
        PRETRAIN,
        dict.fromkeys(partitions, content),
        {partition: client.node for partition, client in clients.items()},
        lambda _partition, reply: Pretrained.read(reply, shapes),
    )
    for partition, reason in failures.items():
        log(logging.WARNING, "client %d could not pretrain: %s", partition, reason)
    made = {partition: reply.tensors for partition, reply in valid.items()}
    recorder.on_pretrain(sum(map(_bytes, made.values())), len(partitions) * _bytes(initial))
    return made, failures


def _tasks(clients: Mapping[int, Client]) -> tuple[str, ...]:
    """The tasks that are trained on, in expert order: as the first client has them, others last."""
    each = (client.description.trained_tasks for client in clients.values())
    return tuple(dict.fromkeys(task for tasks in each for task in tasks))


def _on_the_server(
    config: Config, clients: Mapping[int, Client], initial: Tensors, recorder: Recorder
) -> Tensors:
    """Pretraining in this process, on rows that the server has.

    Raises:
        ConfigError: the server has none, or another model than the clients.
    """
    if config.prompts.pretrain_data == "pooled":
        raise ConfigError(
            "pretrain-data=pooled in a deployment: the clients' rows stay with the clients; use "
            "server (with server-data), own or none"
        )
    # It loads torch, which the server of a simulation never needs.
    from mops_fl.training.trainer import Trainer

    trainer = Trainer(config)
    model = trainer.model_facts.digest
    if all(client.description.model_digest != model for client in clients.values()):
        raise ConfigError(
            f"model={config.backbone.model} on the server is another than the clients': "
            "pretrain-data=server pretrains on the server, with the model that they hold"
        )
    own = any(client.description.own_data for client in clients.values())
    held = {client.description.data_digest for client in clients.values()}
    if not config.data.server_data and (own or held != {trainer.corpus.digest}):
        raise ConfigError(
            "pretrain-data=server needs server-data in a deployment: a file of rows that no client "
            "holds; without such rows use own or none"
        )
    tensors = trainer.pretrain(initial, tasks=_tasks(clients))
    recorder.on_pretrain(0, 0)
    return tensors


def _bytes(tensors: Tensors) -> int:
    return sum(value.nbytes for value in tensors.values())
