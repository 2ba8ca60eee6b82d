"""The ClientApp: the same on a virtual client of a simulation and on an edge machine.

A node's own facts come from the node: ``--node-config`` may name its model, its device and its
private data (`data-path`, `dataset`), which is then this client's alone.
"""

import logging
from functools import lru_cache
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.common.logger import log

from mops_fl.config import Config, Scalar
from mops_fl.training import messages

if TYPE_CHECKING:
    from mops_fl.training.trainer import Trainer

_NODE_KEYS = ("model", "device", "dataset", "data-path")

app = ClientApp()


@lru_cache(maxsize=1)
def _resident(flat: tuple[tuple[str, Scalar], ...], own_data: bool) -> "Trainer":
    """The trainer of this process; it outlives messages where the process does."""
    # Flower loads this module in processes that serve no messages, too.
    from mops_fl.training.trainer import Trainer

    return Trainer(Config.from_flat(dict(flat)), own_data=own_data)


def _trainer(context: Context) -> "Trainer":
    own = {key: context.node_config[key] for key in _NODE_KEYS if key in context.node_config}
    flat = {**context.run_config, **own}
    return _resident(tuple(sorted(flat.items())), "data-path" in own)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Say which partition this node is, what it holds, and on which model."""
    return messages.described(message, context, _trainer(context))


@app.query("pretrain")
def pretrain(message: Message, context: Context) -> Message:
    """Train what is trained before round 1, on the examples that this process sees."""
    return messages.pretrained(message, _trainer(context))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Take the round's local steps from the tensors received."""
    trainer = _trainer(context)
    work = messages.training_work(message, context, trainer.config)
    result = trainer.train(work.partition, work.server_round, work.tensors, work.frozen)
    _tell(trainer)
    return messages.trained(message, context, trainer.config, result)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Sum losses and gate weights over the held-out examples."""
    trainer = _trainer(context)
    work = messages.evaluation_work(message, context, trainer.config)
    result = trainer.evaluate(work.partition, work.tensors, work.frozen)
    _tell(trainer)
    return messages.evaluated(message, result)


def _tell(trainer: "Trainer") -> None:
    for warning in trainer.take_warnings():
        log(logging.WARNING, "%s", warning)
