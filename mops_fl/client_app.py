"""The ClientApp: the same on a virtual client of a simulation and on an edge machine.

In a simulation the process that Flower calls holds the trainer, and the configuration is the
server's. On an edge machine `mops_fl.node` decides, and keeps the trainer in a process of its own.
"""

import logging
import sys
from functools import lru_cache
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.common.logger import log

from mops_fl.config import Config, Scalar

if TYPE_CHECKING:
    from mops_fl.training.trainer import Trainer

app = ClientApp()


@app.query("describe")
@app.query("pretrain")
@app.query("personalise")
@app.train()
@app.evaluate()
def answer(message: Message, context: Context) -> Message:
    """Do what a message asks for; `mops_fl.training.messages` has the kinds."""
    reply, warnings = (_virtual if _in_simulation() else _on_the_node)(message, context)
    for warning in warnings:
        log(logging.WARNING, "%s", warning)
    return reply


def _in_simulation() -> bool:
    """Whether this process is a worker of Ray, as those of simulations are."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _virtual(message: Message, context: Context) -> tuple[Message, list[str]]:
    # Flower loads this module in processes that serve no messages, too.
    from mops_fl.training import messages

    trainer = _resident(tuple(sorted(context.run_config.items())))
    return messages.answer(message, context, trainer), trainer.take_warnings()


@lru_cache(maxsize=1)
def _resident(flat: tuple[tuple[str, Scalar], ...]) -> "Trainer":
    """The trainer of this process; it outlives messages where the process does."""
    from mops_fl.training.trainer import Trainer

    return Trainer(Config.from_flat(dict(flat)))


def _on_the_node(message: Message, context: Context) -> tuple[Message, list[str]]:
    from mops_fl.node import link

    served = link.ask(message, context)
    return served.answers[0].reply, served.warnings
