"""The ClientApp: the same on a virtual client of a simulation and on an edge machine.

A node's own facts come from the node: ``--node-config`` may name its model, its device and where
its data lies (`data-path`, `dataset`). With ``own-data=true`` these data are this client's alone;
with ``own-data=false`` they are a copy of the run's, which is divided among all clients.
"""

import logging
from functools import lru_cache
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.common.logger import log

from mops_fl.config import Config, Scalar
from mops_fl.errors import ConfigError
from mops_fl.training import messages

if TYPE_CHECKING:
    from mops_fl.training.trainer import Trainer

_DATA_KEYS = ("dataset", "data-path")
_NODE_KEYS = ("model", "device", *_DATA_KEYS)
_OWN_DATA = "own-data"

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
    return _resident(tuple(sorted(flat.items())), _own_data(context))


def _own_data(context: Context) -> bool:
    """Whether the node's data are this client's alone; a node that names data must say so.

    Raises:
        ConfigError: it does not, or speaks of own data and names none.
    """
    said, named = context.node_config.get(_OWN_DATA), set(_DATA_KEYS) & set(context.node_config)
    if isinstance(said, bool) and (named or not said):
        return said
    if said is None and not named:
        return False
    raise ConfigError(
        f"--node-config {_OWN_DATA}={said!r} with {', '.join(sorted(named)) or 'no data-path'}: "
        f"a node that names data says {_OWN_DATA}=true where they are this client's alone, and "
        f"{_OWN_DATA}=false where they are a copy of what is divided among all clients"
    )


@app.query("describe")
@app.query("pretrain")
@app.query("personalise")
@app.train()
@app.evaluate()
def answer(message: Message, context: Context) -> Message:
    """Do what a message asks for; `mops_fl.training.messages` has the kinds."""
    trainer = _trainer(context)
    reply = messages.answer(message, context, trainer)
    for warning in trainer.take_warnings():
        log(logging.WARNING, "%s", warning)
    return reply
